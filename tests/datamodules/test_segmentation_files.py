"""Segmentation files: every form that CXAS writes gives the same masks; what is broken is named in a line."""

from __future__ import annotations

import json
import os
import zipfile

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as oracle

import datamodules.coco_files as coco_files
from datamodules.coco_files import decode_rle
from datamodules.cxas_classes import CXAS
from datamodules.segmentation_files import has_masks, mask_file, open_masks
from datamodules.study import DataFault

SHAPE = (37, 52)
SHOWN = {"heart": 121, "left lung": 136, "breast right": 158}  # by CXAS's numbers


def _all(seed=0):
    """`(159, row, column)`, bool: blocks for three classes, noise in one of them."""
    masks = np.zeros((159, *SHAPE), bool)
    random = np.random.default_rng(seed)
    for number in SHOWN.values():
        y, x = random.integers(0, 15, 2)
        masks[number, y : y + 20, x : x + 30] = True
    masks[136] &= random.random(SHAPE) < 0.7
    return masks


def _rle(mask):
    rle = oracle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def _annotations(masks, image, first=1):
    """As CXAS makes them: without empty classes."""
    shown = [number for number in range(len(masks)) if masks[number].any()]
    return [
        {"id": first + n, "image_id": image, "category_id": n, "segmentation": _rle(masks[n]), "bbox": [0.0, 1.0]}
        for n in shown
    ]


def _coco(images, annotations, **more):
    names = [{"supercategory": name, "id": number, "name": name} for number, name in enumerate(CXAS)]
    whole = {"info": {}, "licenses": [], "images": images, "categories": names, "annotations": annotations}
    return {**whole, **more}


def _write(folder, form, masks, stem="a"):
    if form == "json":
        images = [[{"id": 1, "file_name": f"/data/x/{stem}.jpg"}]]  # a list in a list, as CXAS has it for one file
        (folder / f"{stem}.json").write_text(json.dumps(_coco(images, _annotations(masks, 1))))
    elif form == "npy":
        np.save(folder / f"{stem}.npy", masks)
    elif form == "npz":
        np.savez_compressed(folder / f"{stem}.npz", masks)
    else:
        (folder / stem).mkdir()
        for name, mask in zip(CXAS, masks, strict=True):
            Image.fromarray(mask).convert("1").save(folder / stem / f"{name}.{form}")


@pytest.mark.parametrize("form", ["json", "npy", "npz", "png", "jpg"])
def test_every_form_gives_the_same_masks(tmp_path, form):
    truth = _all()
    assert not has_masks(tmp_path, "a")
    _write(tmp_path, form, truth)
    assert has_masks(tmp_path, "a") and not has_masks(tmp_path, "b")
    masks = open_masks(tmp_path, "a", SHAPE)
    assert masks.file == mask_file(tmp_path, "a")
    assert list(masks) == list(SHOWN) if form == "json" else set(masks) == set(CXAS)
    assert "heart" in masks and "pacemaker" not in masks and len(masks) == (3 if form == "json" else 159)
    for name in (*SHOWN, "heart"):  # and once more, from the front
        mask = masks[name]
        assert mask.dtype == np.uint8 and mask.flags.writeable
        wrong = (mask != truth[SHOWN[name]]).mean()
        assert wrong == 0 or form == "jpg" and wrong < 0.01
    with pytest.raises(KeyError):
        masks["pacemaker"]


def test_one_json_of_many_images(tmp_path, monkeypatch):
    monkeypatch.setattr(coco_files, "_PIECE", 100)  # values do not end where pieces end
    truth = {f"Ü{n}": _all(n) for n in range(3)}
    images = [{"id": n, "file_name": f"/x/p{n}/{stem}.dcm"} for n, stem in enumerate(truth)]
    annotations = [a for n, masks in enumerate(truth.values()) for a in _annotations(masks, n, 1000 * n)]
    annotations = annotations[:-2] + annotations[:1] + annotations[-2:]  # one stands apart from its image's others
    for ascii_only, indent in ((True, None), (False, 1)):
        folder = tmp_path / str(ascii_only)
        folder.mkdir()
        text = json.dumps(_coco(images, annotations), ensure_ascii=ascii_only, indent=indent)
        (folder / "folder.json").write_text(text, encoding="utf-8")
        (folder / "classes.json").write_text("[]")  # not a second one
        for stem, masks in truth.items():
            found = open_masks(folder, stem)
            assert {name: number for name, number in SHOWN.items() if name in found} == SHOWN and len(found) == 3
            assert all(np.array_equal(found[name], masks[number]) for name, number in SHOWN.items())
        assert not has_masks(folder, "Ü3")


def test_a_json_of_many_images_is_read_through_once(tmp_path, monkeypatch):
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(3)]
    path = tmp_path / "folder.json"
    path.write_text(json.dumps(_coco(images, _annotations(_all(), 1))))
    real, read = coco_files._elements, []
    monkeypatch.setattr(coco_files, "_elements", lambda reader: read.append(1) or real(reader))
    assert [len(open_masks(tmp_path, str(n))) for n in range(3)] == [0, 3, 0] and len(read) == 1
    path.write_text(json.dumps(_coco(images, [])))
    os.utime(path, ns=(1, 1))
    assert len(open_masks(tmp_path, "1")) == 0 and len(read) == 2


def test_of_two_json_files_neither_is_taken_for_all_images(tmp_path):
    for stem in "ab":
        _write(tmp_path, "json", _all(), stem)
    assert has_masks(tmp_path, "a") and not has_masks(tmp_path, "c")
    with pytest.raises(DataFault, match="no masks of c; give c.json, c.npz, c.npy or a folder c"):
        open_masks(tmp_path, "c")


def test_masks_of_one_class_are_united(tmp_path):
    one, other = np.zeros((2, *SHAPE), bool)
    one[:5], other[:, :5] = True, True
    twice = [{"image_id": 1, "category_id": 121, "segmentation": _rle(mask)} for mask in (one, other)]
    (tmp_path / "a.json").write_text(json.dumps(_coco([{"id": 1, "file_name": "a.png"}], twice)))
    assert np.array_equal(open_masks(tmp_path, "a")["heart"], one | other)


def test_names_from_a_list_beside_the_arrays(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, *SHAPE), np.uint8))
    with pytest.raises(DataFault, match="a.npy: holds 2 masks, but CXAS has 159 names; write a classes.txt beside it"):
        open_masks(tmp_path, "a")
    (tmp_path / "classes.json").write_text('["one", "two"]')
    assert list(open_masks(tmp_path, "a")) == ["one", "two"]
    (tmp_path / "classes.txt").write_text("left\n\nright \n")
    assert list(open_masks(tmp_path, "a")) == ["left", "right"]
    (tmp_path / "classes.txt").write_text("left\nleft\n")
    with pytest.raises(DataFault, match="classes.txt: a name is there twice"):
        open_masks(tmp_path, "a")


def test_coco_without_names_uses_cxas_numbers(tmp_path):
    whole = _coco([{"id": 1, "file_name": "a.png"}], _annotations(_all(), 1), categories=[{}])
    (tmp_path / "a.json").write_text(json.dumps(whole))
    assert list(open_masks(tmp_path, "a")) == list(SHOWN)


@pytest.mark.parametrize("form", ["json", "npy", "npz"])
def test_files_cut_short_are_named(tmp_path, form):
    masks = _all() | (np.random.default_rng(0).random((159, *SHAPE)) < 0.1)
    _write(tmp_path, form, masks)
    path = tmp_path / f"a.{form}"
    whole = path.read_bytes()
    for end in (0, 1, 40, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(DataFault, match=rf"a\.{form}: ") as caught:
            open_masks(tmp_path, "a")
        assert "\n" not in str(caught.value)


def test_a_picture_cut_short_is_named(tmp_path):
    _write(tmp_path, "png", _all())
    path = tmp_path / "a" / "heart.png"
    path.write_bytes(path.read_bytes()[:50])
    masks = open_masks(tmp_path, "a")
    assert masks["left lung"].any()
    with pytest.raises(DataFault, match="the mask of heart cannot be read"):
        masks["heart"]


def test_packed_data_that_does_not_match_its_checksum_is_named(tmp_path):
    _write(tmp_path, "npz", _all())
    path = tmp_path / "a.npz"
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 255
    path.write_bytes(whole)
    with pytest.raises(DataFault, match=r"a\.npz: "):
        masks = open_masks(tmp_path, "a")
        for name in masks:
            masks[name]


def _zip(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")


@pytest.mark.parametrize(
    ("name", "write", "what"),
    [
        ("a.npy", lambda path: np.save(path, np.array([{}], object), allow_pickle=True), "Python objects"),
        ("a.npy", lambda path: np.save(path, np.zeros((4, 4), bool)), r"expected \(class, row, column\)"),
        ("a.npz", lambda path: np.savez(path, np.zeros((159, 2, 2))), "of bool or uint8, not float64"),
        ("a.npz", lambda path: np.savez(path, np.array([{}], object)), "not object"),
        ("a.npz", lambda path: np.savez(path, a=np.zeros(1), b=np.zeros(1)), "2 arrays instead of one"),
        ("a.npz", lambda path: np.savez(path, np.zeros((2, 2, 159), bool).T), "save np.ascontiguousarray of it"),
        ("a.npz", lambda path: _zip(path, "README"), "0 arrays instead of one"),
        ("a.json", lambda path: path.write_text("[1, 2]"), "no JSON at byte 0"),
        ("a.json", lambda path: path.write_text('{"annotations": [{"a": 1}]}'), "image_id"),
        ("a.json", lambda path: path.write_text('{"a": 1} x'), "0 images are called a"),
    ],
)
def test_alien_files_are_named(tmp_path, name, write, what):
    write(tmp_path / name)
    with pytest.raises(DataFault, match=rf"{name}: .*{what}"):
        open_masks(tmp_path, "a")


def test_masks_of_another_size_than_the_image_or_each_other(tmp_path):
    masks = [_rle(np.ones(shape)) for shape in (SHAPE, SHAPE[::-1])]
    annotations = [{"image_id": 1, "category_id": n, "segmentation": mask} for n, mask in enumerate(masks)]
    (tmp_path / "a.json").write_text(json.dumps(_coco([{"id": 1, "file_name": "a.png"}], annotations)))
    found = open_masks(tmp_path, "a")
    assert found["spine"].all()
    with pytest.raises(DataFault, match="the mask of cervical spine has 52 × 37 pixels, not 37 × 52"):
        found["cervical spine"]
    with pytest.raises(DataFault, match="the mask of spine has 37 × 52 pixels, not 512 × 512"):
        open_masks(tmp_path, "a", (512, 512))["spine"]


def test_two_images_of_one_name(tmp_path):
    images = [{"id": n, "file_name": f"p{n}/a.png"} for n in range(2)] + [{"id": 2, "file_name": "b.png"}]
    (tmp_path / "all.json").write_text(json.dumps(_coco(images, [])))
    with pytest.raises(DataFault, match="2 images are called a"):
        open_masks(tmp_path, "a")
    assert list(open_masks(tmp_path, "b")) == []


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999, 1])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (37, 52), (400, 300)])
def test_rle_is_decoded_as_pycocotools_does(shape, share):
    mask = np.random.default_rng(1).random(shape) < share
    assert np.array_equal(decode_rle(_rle(mask)), mask)
    mask[0, 0] ^= True  # begins with the other value
    assert np.array_equal(decode_rle(_rle(mask)), mask)


@pytest.mark.parametrize(
    "broken",
    [
        {"size": [100, 81]},  # runs end early
        {"size": [10, 8]},
        {"size": [10**6, 10**7]},  # crashes pycocotools
        {"size": [-100, -80]},
        {"counts": ""},
        {"counts": "\xff"},
        {"counts": "o" * 50},
        {"counts": [10, 20]},
    ],
)
def test_broken_rle_is_refused(broken):
    whole = _rle(np.pad(np.ones((40, 40)), ((10, 50), (20, 20))))
    assert decode_rle(whole).sum() == 1600
    with pytest.raises((ValueError, TypeError, AttributeError)):
        decode_rle({**whole, **broken})
    for end in range(len(whole["counts"])):
        with pytest.raises(ValueError, match="runs|counts"):
            decode_rle({**whole, "counts": whole["counts"][:end]})
