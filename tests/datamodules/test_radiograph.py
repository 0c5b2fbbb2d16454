"""Grey values from files, the way to 8 bit, and masks of boxes, against the reference implementation's own."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from datamodules.masks import box_mask, disturbed_box
from datamodules.radiograph import read_grey, to_8_bit
from datamodules.study import DataFault

GREY = (np.arange(12 * 9, dtype=np.uint16) * 600).reshape(12, 9)


@pytest.fixture(scope="module")
def reference(shared):
    return shared / "golden" / "regionformer"


def test_16_bit_values_come_out_untouched(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    values = read_grey(tmp_path / "a.png")
    assert values.dtype == np.uint16 and (values == GREY).all()
    assert GREY.max() > 2**15  # signed 16 bits would not do


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B"])
def test_they_do_whatever_mode_pillow_opens_them_in(tmp_path, monkeypatch, mode):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    kind = {"I": np.int32, "I;16": "<u2", "I;16B": ">u2"}[mode]
    opened = Image.frombytes(mode, GREY.shape[::-1], GREY.astype(kind).tobytes())
    monkeypatch.setattr(Image, "open", lambda path, formats: opened)
    values = read_grey(tmp_path / "a.png")
    assert opened.mode == mode and values.dtype == np.uint16 and (values == GREY).all()


def test_8_bit_values_stay_8_bit(tmp_path):
    grey = (GREY // 256).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(np.full((16, 16), 77, np.uint8)).save(tmp_path / "b.jpg")
    assert read_grey(tmp_path / "a.png").dtype == np.uint8 and (read_grey(tmp_path / "a.png") == grey).all()
    assert (read_grey(tmp_path / "b.jpg") == 77).all()


def test_an_image_that_changed_is_read_again_and_one_that_did_not_is_not(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(GREY).save(path)
    first = read_grey(path)
    assert read_grey(path) is first and not first.flags.writeable
    Image.fromarray(GREY + 1).save(tmp_path / "b.png")
    (tmp_path / "b.png").replace(path)
    assert (read_grey(path) == GREY + 1).all()


def _save(mode):
    return lambda path: Image.new(mode, (4, 4)).save(path)


def _cut(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 65535, (64, 64), np.uint16)).save(path)
    path.write_bytes(path.read_bytes()[:4000])


@pytest.mark.parametrize(
    ("make", "name", "expected"),
    [
        (_save("RGB"), "a.png", r"a.png: is no grey image \(mode RGB\)"),
        (_save("RGBA"), "a.png", r"mode RGBA"),
        (_save("1"), "a.png", r"mode 1"),
        (_cut, "a.png", "a.png: cannot be read as an image, it is damaged or cut short .*; fetch it again"),
        (lambda path: path.write_text("no image"), "a.png", "cannot be read as an image"),
        (lambda path: None, "a.png", "a.png: no such file"),
        (lambda path: path.write_bytes(b"DICM"), "a.dcm", "a.dcm: is no DICOM file .no DICM at byte 128.; fetch it"),
        (lambda path: Image.fromarray(np.array([[0, 70000]], np.int32)).save(path), "a.tif", "from 0 to 70000"),
    ],
)
def test_what_is_no_radiograph_is_named(tmp_path, make, name, expected):
    make(tmp_path / name)
    with pytest.raises(DataFault, match=expected):
        read_grey(tmp_path / name)


@pytest.mark.parametrize("case", ["u16", "u8", "const16", "zero16"])
def test_8_bit_is_the_reference_implementations(reference, case):
    stored = np.load(reference / "percentile_norm.npz")
    grey = to_8_bit(stored[f"{case}.in"])
    assert grey.dtype == np.uint8 and (grey == stored[f"{case}.out"]).all()


def test_16_bit_values_in_32_bits_count_as_16_bit_ones(reference):
    stored = np.load(reference / "percentile_norm.npz")
    assert (to_8_bit(stored["u16.in"].astype(np.int32)) == stored["u16.out"]).all()
    assert (stored["u16.out"] != stored["u16_as_int32.out"]).any()  # older Pillow took the reference another way


def test_8_bit_from_a_stretch_worked_out_by_hand():
    ramp = np.arange(1000, 1201, dtype=np.uint16)[None]  # 0 to 1 in steps of 1/200; its 99th percentile is 0.99
    grey = to_8_bit(ramp)[0]
    assert grey[0] == 0 and (grey[198:] == 255).sum() >= 2 and grey[100] == int(0.5 / 0.99 * 255)
    with pytest.raises(ValueError, match="whole numbers"):
        to_8_bit(np.zeros((2, 2)))


def test_box_masks_are_the_reference_implementations(reference):
    cases, stored = json.loads((reference / "masks_boxes.json").read_text()), np.load(reference / "masks.npz")
    for width, height in cases["sizes_WH"]:
        expected = np.unpackbits(stored[f"mask_W{width}_H{height}_packed"], axis=-1)[..., :width]
        for boxes, mask in zip(cases["box_sets"], expected, strict=True):
            assert (box_mask(boxes, width, height) == mask).all(), boxes


def test_a_box_mask_by_hand():
    mask = box_mask([(0.25, 0.5, 0.75, 2), (0.9, 0.1, 0.1, 0.9)], 8, 4)  # the second is inverted
    expected = np.zeros((4, 8), np.uint8)
    expected[2:4, 2:6] = 1
    assert mask.dtype == np.uint8 and (mask == expected).all()


def test_disturbed_boxes_follow_the_formula(reference):
    stored = np.load(reference / "box_noise_proposal.npz")
    for level in range(1, 6):
        for box, draw, out in zip(
            stored["boxes"], stored["u_tx_ty_s"][level - 1], stored["out"][level - 1], strict=True
        ):
            assert disturbed_box(tuple(box), tuple(draw), level) == pytest.approx(tuple(out), abs=1e-12)
    assert stored["reverted"].any()


def test_a_disturbed_box_by_hand():
    assert disturbed_box((0.4, 0.4, 0.6, 0.6), (0.5, -1, 1), 0) == (0.4, 0.4, 0.6, 0.6)
    assert disturbed_box((0.4, 0.4, 0.6, 0.6), (0.5, -1, 1), 5) == pytest.approx((0.43, 0.19, 0.73, 0.49))
    assert disturbed_box((0, 0, 0.1, 0.1), (-1, 0, 0), 5) == (0, 0, 0.1, 0.1)  # pushed out of the image: as it was
