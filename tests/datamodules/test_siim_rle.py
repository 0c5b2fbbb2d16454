"""Run-length masks: by hand, there and back, what is no mask, and SIIM-ACR's own."""

from __future__ import annotations

import csv
import gzip

import numpy as np
import pytest

from datamodules.siim_rle import decode, encode, is_empty

MASK = np.array([[0, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 1, 0]], np.uint8)
TEXT = "5 2 5 1 1 2"  # down the columns, each gap from the end of the run before


def test_gaps_are_relative_and_run_down_the_columns():
    mask = decode(TEXT, 4, 5)
    assert mask.tolist() == MASK.tolist() and mask.dtype == np.uint8 and mask.flags.c_contiguous
    absolute = np.zeros(20, np.uint8)
    for start, length in ((5, 2), (5, 1), (1, 2)):
        absolute[start : start + length] = 1
    assert mask.tolist() != absolute.reshape(5, 4).T.tolist()  # what reading the gaps as places would give
    assert mask.tolist() != decode(TEXT, 5, 4).T.tolist()


def test_pixels_may_be_counted_from_1():
    assert (decode("6 2 5 1 1 2", 4, 5, base=1) == MASK).all() and encode(MASK, base=1) == "6 2 5 1 1 2"
    assert decode("1 1", 4, 5, base=1)[0, 0] == 1
    with pytest.raises(ValueError, match="first run begins at pixel 0, but the image's first pixel is 1"):
        decode("0 1", 4, 5, base=1)


def test_there_and_back_with_corners_and_full_masks():
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 2, rng.integers(1, 9, 2), dtype=np.uint8) for _ in range(100)]
    masks += [np.ones((3, 4), np.uint8), np.zeros((3, 4), np.uint8), np.eye(5, dtype=np.uint8)]
    for mask in masks:
        for base in (0, 1):
            assert (decode(encode(mask, base), *mask.shape, base) == mask).all()
    assert encode(MASK * 255) == encode(MASK.astype(bool)) == TEXT


@pytest.mark.parametrize("text", ["-1", " -1", "", " \n", "NaN", "nan"])
def test_empty_masks(text):
    assert is_empty(text) and not decode(text, 4, 5).any() and encode(decode(text, 4, 5)) == "-1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5 2 5", "3 numbers, the last one without its partner"),
        ("5 2 five 1", "'five' stands among its numbers"),
        ("5 -2", "'-2' stands among its numbers"),
        ("5.0 2", "'5.0' stands"),
        ("19 2", "its runs end 1 pixels behind an image of 4 × 5"),
        ("5 2 99999999999999999999 1", "behind an image"),
    ],
)
def test_what_is_no_mask_is_refused(text, expected):
    with pytest.raises(ValueError, match=expected):
        decode(text, 4, 5)
    assert not is_empty(text)


def test_siims_own_masks_come_back_to_the_digit(shared):
    table = shared / "real" / "siim" / "train-rle-first3000.csv.gz"
    if not table.is_file():
        pytest.skip(f"no {table}")
    with gzip.open(table, "rt") as file:
        texts = [row[1].strip() for row in list(csv.reader(file))[1:]]
    positive = [text for text in texts if not is_empty(text)]
    assert len(positive) == 811
    assert all(encode(decode(text, 1024, 1024)) == text for text in positive[::8])
