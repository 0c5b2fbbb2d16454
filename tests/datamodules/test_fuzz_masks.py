"""Drawn inputs for what reads masks and boxes: run lengths of SIIM and of COCO, COCO files, tables' and typed boxes."""

import io
import json
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from datamodules import siim_rle
from datamodules.coco_files import decode_rle
from datamodules.masks import box_mask, disturbed_box
from datamodules.padchest_gr import PadChestGR
from datamodules.padchest_gr_tables import boxes_of, parse_boxes
from datamodules.segmentation_files import open_masks
from datamodules.study import DataFault, SettingsFault
from lit_modules.nets.pooled_maps import pool
from tests.fuzz import fuzz

SIDES = st.integers(0, 12)
MASKS = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 1))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


# SIIM's run lengths.


@fuzz(60)
@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=12), elements=st.integers(0, 1)),
    st.sampled_from([0, 1]),
)
def test_a_mask_comes_back_from_its_run_lengths(mask, base):
    assert np.array_equal(siim_rle.decode(siim_rle.encode(mask, base), *mask.shape, base), mask)


NUMBERS = st.lists(st.integers(-2, 30) | st.sampled_from([10**12, 2**63, 10**30]), max_size=8)


@fuzz(100)
@given(st.text(max_size=30) | NUMBERS.map(lambda numbers: " ".join(map(str, numbers))), SIDES, SIDES)
@example("0 1000000000000", 3, 4)
@example("9" * 5000 + " 1", 3, 4)
@example("² 1", 3, 4)
def test_any_run_lengths_are_a_mask_of_the_images_size_or_refused(text, rows, columns):
    try:
        mask = siim_rle.decode(text, rows, columns)
    except ValueError as fault:
        assert len(str(fault)) < 200
    else:
        assert mask.shape == (rows, columns) and set(np.unique(mask)) <= {0, 1}


# COCO's.


def coco_counts(mask):
    """COCO's compressed RLE by its description: runs of 0 and 1 in turn, differences to the one before the last."""
    runs, value = [], 0
    for pixel in mask.ravel("F").tolist():
        if pixel == value:
            runs[-1:] = [runs[-1] + 1] if runs else [1]
        else:
            runs += [0, 1] if not runs else [1]
            value = pixel
    text = ""
    for place, run in enumerate(runs):
        number, more = run - (runs[place - 2] if place > 2 else 0), True
        while more:
            group, number = number & 31, number >> 5
            more = number != (-1 if group & 16 else 0)
            text += chr(48 + (group | 32 * more))
    return text


@fuzz(60)
@given(MASKS)
def test_a_mask_comes_back_from_cocos_run_lengths(mask):
    assert np.array_equal(decode_rle({"size": list(mask.shape), "counts": coco_counts(mask)}), mask)
    assert pool(decode_rle({"size": list(mask.shape), "counts": coco_counts(mask)}), 3).shape == (3, 3)


COUNTS = st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=20)
SEGMENTATIONS = st.fixed_dictionaries(
    {"size": st.lists(st.integers(-3, 12) | JSON, min_size=1, max_size=3) | JSON, "counts": COUNTS | JSON}
)


@fuzz(100)
@given(SEGMENTATIONS | JSON)
@example({"size": [2, 2], "counts": [0, 4]})
@example({"size": [2**40, 2**40], "counts": "4"})
@example({"size": [2, 2], "counts": "oooooo?"})
@example({"size": [10**400, []], "counts": "4"})
@example({"size": ["0123456789", 10**12], "counts": "4"})
def test_any_segmentation_is_a_mask_of_its_own_size_or_refused(segmentation):
    try:
        mask = decode_rle(segmentation)
    except (ValueError, KeyError, TypeError):
        return
    assert list(mask.shape) == list(map(int, segmentation["size"])) and set(np.unique(mask)) <= {0, 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("masks")


IMAGES = st.fixed_dictionaries(
    {"id": st.integers(0, 2), "file_name": st.sampled_from(["a.png", "b/a.jpg", "c.png"]) | JSON}
)
ANNOTATIONS = st.fixed_dictionaries(
    {"image_id": st.integers(0, 2) | JSON, "category_id": st.integers(0, 2) | JSON, "segmentation": SEGMENTATIONS}
)
COCO = st.fixed_dictionaries(
    {
        "images": st.lists(IMAGES | JSON, max_size=3),
        "categories": st.lists(
            st.fixed_dictionaries({"id": st.integers(0, 2), "name": st.text(max_size=4)}) | JSON, max_size=3
        ),
        "annotations": st.lists(ANNOTATIONS | JSON, max_size=3),
    }
)


@fuzz(60)
@given((COCO | JSON).map(json.dumps).map(str.encode) | st.binary(max_size=40), st.integers(0, 200))
@example(b'{"images": [{"id": 0, "file_name": 5}]}', 200)
@example(b'{"images": ' + b"[" * 100_000, 200_000)
def test_any_coco_file_gives_masks_or_one_fault_that_names_it(folder, content, cut):
    path = folder / "a.json"
    path.write_bytes(content[:cut] if cut else content)
    try:
        for mask in open_masks(folder, "a").values():
            assert mask.ndim == 2 and set(np.unique(mask)) <= {0, 1}
    except DataFault as fault:
        assert str(folder) in str(fault) and "\n" not in str(fault)


@fuzz(60)
@given(MASKS, st.binary(max_size=12), st.integers(0, 200))
@example(np.ones((2, 2), np.uint8), b"((", 60)
def test_any_array_file_gives_masks_or_one_fault_that_names_it(folder, mask, rubbish, place):
    packed = io.BytesIO()
    np.save(packed, mask[None])
    (folder / "classes.txt").write_text("lung\n")
    written = packed.getvalue()
    (folder / "b.npy").write_bytes(written[:place] + rubbish + written[place + len(rubbish) :])
    try:
        found = dict(open_masks(folder, "b", mask.shape))
    except DataFault as fault:
        assert str(folder) in str(fault) and "\n" not in str(fault)
    else:
        assert found["lung"].shape == mask.shape


# Boxes.

EDGES = st.floats() | st.integers(-2, 3) | st.just(10**400) | st.booleans() | st.text(max_size=3)


@fuzz(100)
@given(st.lists(st.lists(EDGES, max_size=5) | JSON, max_size=4) | st.text(max_size=10))
@example([[0, 0, 10**400, 1]])
@example([[math.nan, 0, 1, 1], [0, -math.inf, math.inf, 1]])
def test_any_boxes_lie_in_the_image_and_have_an_area_or_are_named(raw):
    boxes, wrong = boxes_of(raw)
    for x0, y0, x1, y1 in boxes:
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
        assert box_mask([(x0, y0, x1, y1)], 7, 5).shape == (5, 7)
    lost = sum(gone for _, gone in wrong)
    assert len(boxes) + lost == (1 if isinstance(raw, str) else len(raw))
    assert all(isinstance(what, str) for what, _ in wrong)


@fuzz(60)
@given(st.tuples(*[st.floats(0, 1)] * 4), st.tuples(*[st.floats(-1, 1)] * 3), st.integers(0, 5))
def test_a_box_marked_carelessly_keeps_an_area_in_the_image(edges, draw, level):
    boxes, _ = boxes_of([list(edges)])
    for box in boxes:
        x0, y0, x1, y1 = disturbed_box(box, draw, level)
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1


LITERALS = JSON.map(repr) | st.text(st.sampled_from("[](){}',.0123-e nN"), max_size=20) | st.text(max_size=20)


@fuzz(100)
@given(LITERALS)
@example("[" * 300)
@example("-" * 100_000 + "1")
@example("[[0, 'x', [[0, 0, 1, 1]]]]")
def test_any_field_of_boxes_is_a_list_or_stays_the_text_that_it_is(text):
    found = parse_boxes(text)
    assert isinstance(found, list) or found == text
    boxes_of(found)


@fuzz(60)
@given(LITERALS | st.lists(EDGES, max_size=9).map(lambda edges: ",".join(map(str, edges))))
@example("1e400,0,1,1")
@example("a\0.json")
@example("")
def test_typed_boxes_are_boxes_or_refused_in_one_line(folder, text):
    film = folder / "film.png"
    if not film.is_file():
        Image.new("L", (2, 2)).save(film)
    try:
        study = PadChestGR(str(folder)).study_from_files(film, text)
    except (SettingsFault, DataFault) as fault:
        assert "\n" not in str(fault)
    else:
        boxes = study.boxes.get("finding", ())
        assert all(0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 for x0, y0, x1, y1 in boxes)
