"""Masks made worse to a Dice score, and what segmentation models write."""

from __future__ import annotations

import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from datamodules.mask_quality import (
    LEVELS,
    METHODS,
    band,
    degrade,
    dice_of,
    pick_cases,
    prediction_file,
    read_prediction,
)
from datamodules.study import DataFault


def rng(name: str = "") -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def crescent() -> np.ndarray:
    row, column = np.mgrid[:320, :320]
    whole = np.hypot(row - 160, column - 140) < 100
    return (whole & (np.hypot(row - 190, column - 180) >= 100)).astype(np.uint8)


def test_dice_by_hand():
    a, b = np.zeros((3, 4), np.uint8), np.zeros((3, 4), np.uint8)
    assert dice_of(a, b) == 1
    a[0, :3], b[0, 1:] = 1, 1  # two of three pixels in common
    assert dice_of(a, b) == pytest.approx(2 / 3) and dice_of(a, 1 - a) == 0
    with pytest.raises(ValueError, match="cannot be compared"):
        dice_of(a, a.T)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("level", LEVELS)
def test_worse_masks_have_the_wanted_score(method: str, level: float):
    mask = crescent()
    worse, made = degrade(mask, level, method, rng(f"{method}{level}"))
    assert made == method and worse.dtype == np.uint8 and worse.shape == mask.shape and worse.max() == 1
    score = dice_of(worse, mask)
    assert band(level)[0] <= score <= band(level)[1]
    if method in ("erode", "dilate"):
        assert score == pytest.approx(level, abs=2e-3)  # it has some ten thousand pixels
        inside = (worse <= mask) if method == "erode" else (worse >= mask)
        assert inside.all()
    if method == "shift":
        assert worse.sum() == mask.sum()  # nothing of it left the picture
    again, _ = degrade(mask, level, method, rng(f"{method}{level}"))
    assert np.array_equal(again, worse)


def test_other_numbers_give_another_mask():
    for method in ("shift", "elastic"):
        one, other = (degrade(crescent(), 0.7, method, rng(seed))[0] for seed in "ab")
        assert not np.array_equal(one, other), method


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_mask_stays_empty_and_a_tiny_one_is_never_lost(method: str):
    empty, made = degrade(np.zeros((9, 7), np.uint8), 0.5, method, rng())
    assert not empty.any() and made == method
    for pixels in range(1, 6):
        tiny = np.zeros((9, 7), np.uint8)
        tiny[4, :pixels] = 1
        for level in LEVELS:
            worse, made = degrade(tiny, level, method, rng(f"{pixels}"))
            assert worse.any() and made in (method, "erode")
            reached = 2 * max(1, round(pixels * level / (2 - level)))  # what whole pixels allow
            if made == "erode":
                assert dice_of(worse, tiny) == pytest.approx(reached / (pixels + reached / 2))


def test_a_shift_that_cannot_reach_the_score_is_an_erosion():
    """One pixel is met or missed; and at the picture's corner, half of a mask leaves it."""
    single = np.zeros((9, 9), np.uint8)
    single[4, 4] = 1
    worse, made = degrade(single, 0.5, "shift", rng())
    assert made == "erode" and np.array_equal(worse, single)
    row = np.zeros((1, 3), np.uint8)
    row[0] = 1
    worse, made = degrade(row, 0.8, "shift", rng())
    assert made == "erode" or abs(dice_of(worse, row) - 0.8) <= 0.03


def test_wrong_questions():
    with pytest.raises(ValueError, match="there are erode, dilate"):
        degrade(crescent(), 0.5, "blur", rng())
    for dice in (0.0, 1.2):
        with pytest.raises(ValueError, match="above 0, 1 at most"):
            degrade(crescent(), dice, "erode", rng())
    assert np.array_equal(degrade(crescent(), 1.0, "elastic", rng())[0], crescent())


# ---- predictions ----------------------------------------------------------------------------------------------------

SHAPE = (3, 5)
WANTED = np.array([[0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], np.uint8)  # the upper right corner


def nifti(path: Path, values: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    return path


def test_pngs_of_labels_and_of_grey_values(tmp_path: Path):
    for name, values in (("labels", WANTED), ("grey", WANTED * 255), ("soft", WANTED * 100 + 60)):
        Image.fromarray(values).save(tmp_path / f"{name}.png")
        path = prediction_file(tmp_path, name)
        assert path is not None and np.array_equal(read_prediction(path, SHAPE), WANTED), name
    assert prediction_file(tmp_path, "other") is None
    Image.fromarray(np.stack([WANTED] * 3, -1)).save(tmp_path / "colour.png")
    with pytest.raises(DataFault, match="mode is RGB"):
        read_prediction(tmp_path / "colour.png", SHAPE)


def test_niftis_begin_with_the_column(tmp_path: Path):
    """As nnU-Net writes labels, (column, row, 1), and MONAI probabilities or a softmax with its channels behind."""
    turned = np.ascontiguousarray(WANTED.T)
    softmax = np.stack([0.8 - 0.6 * turned, 0.2 + 0.6 * turned], -1).astype(np.float32)
    for name, values in {
        "labels": turned[..., None], "plane": turned, "probability": (0.1 + 0.6 * turned).astype(np.float32)[..., None],
        "softmax": softmax, "softmax2": softmax[:, :, None],
    }.items():  # fmt: skip
        nifti(tmp_path / f"{name}.nii.gz", values)
        path = prediction_file(tmp_path, name)
        assert path is not None and np.array_equal(read_prediction(path, SHAPE), WANTED), name


def test_a_prediction_of_another_size_is_a_fault_and_so_is_a_broken_file(tmp_path: Path):
    path = nifti(tmp_path / "a.nii.gz", np.ascontiguousarray(WANTED))  # as if its first axis were the row
    with pytest.raises(DataFault, match=r"has 5 × 3 pixels, not 3 × 5 as its image; export"):
        read_prediction(path, SHAPE)
    for name, content in (("b.nii.gz", b"no gzip"), ("b.png", b"no picture"), ("c.nii.gz", path.read_bytes()[:60])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataFault, match="cannot be read.*fetch it again") as fault:
            read_prediction(tmp_path / name, SHAPE)
        assert "\n" not in str(fault.value)
    with pytest.raises(DataFault, match="no numbers"):
        read_prediction(nifti(tmp_path / "d.nii.gz", np.full((5, 3), np.nan, np.float32)), SHAPE)


def test_the_nearest_cases_are_picked_whatever_their_order():
    dices = {"far": 0.83, "near": 0.801, "nearer": 0.8, "below": 0.769, "low": 0.77, "tie a": 0.79, "tie b": 0.81}
    picked = pick_cases(dices, 0.8, cases=3)
    assert picked.names[:2] == ("nearer", "near") and picked.names[2] in ("tie a", "tie b") and picked.short == 0
    assert pick_cases(dict(reversed(dices.items())), 0.8, cases=3) == picked
    assert {pick_cases(dices, 0.8, 3, seed).names[2] for seed in range(9)} == {"tie a", "tie b"}
    everything = pick_cases(dices, 0.8)
    assert set(everything.names) == set(dices) - {"below"} and everything.short == 14
