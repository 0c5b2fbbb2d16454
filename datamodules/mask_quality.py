"""Masks of a wanted quality: annotations made worse to a Dice score, and the output of a segmentation model.

How well a method does with masks like those a segmentation model gives is asked by giving it masks of several Dice
scores (Overlay-SFT, §3.4 and Fig. 3: 0.9 to 0.5, 20 cases each). Readers of CANDID-PTX agree with each other at a Dice
score of 0.71 ± 0.04 only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.ct_volume import read_stored
from datamodules.files import unreadable
from datamodules.radiograph import read_picture
from datamodules.study import DataFault

LEVELS = (0.9, 0.8, 0.7, 0.6, 0.5)  # the paper's Dice scores
TOLERANCE = 0.03  # half a level's band, as in the paper: 0.87 to 0.93, …
_STEPS = 24  # of a bisection
_SUFFIXES = (".png", ".nii.gz", ".nii")


def band(level: float) -> tuple[float, float]:
    """The least and the greatest Dice score that count as a level."""
    return level - TOLERANCE, level + TOLERANCE


def dice_of(a: np.ndarray, b: np.ndarray) -> float:
    """Dice score of two masks of one shape; 1 where both are empty.

    Raises:
        ValueError: The shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"masks of {a.shape} and {b.shape} cannot be compared")
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero((a != 0) & (b != 0)) / total if total else 1.0


# Annotations made worse.


def degrade(mask: np.ndarray, dice: float, method: str, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """A worse mask whose Dice score with `mask` is `dice`, as nearly as the method gets.

    `erode` and `dilate` take and add whole pixels in the order of their distance from the rim, so the score is exact to
    a pixel. `shift` moves the mask along a random angle, `elastic` warps it by a smooth random field; how far is found
    by bisection. Where they end more than TOLERANCE beside the score (a mask of few pixels moves by whole ones, one at
    the picture's edge leaves it), the mask is eroded instead.

    Args:
        mask: `(row, column)`; what is not 0 belongs to it.
        dice: Wanted score, above 0, 1 at most.
        method: One of METHODS.
        rng: Decides the angle and the field; the same state gives the same mask.

    Returns:
        `{0, 1}`, uint8, `(row, column)`, empty where `mask` is, never where it is not; and the method that made it.

    Raises:
        ValueError: There is no such method, or no mask can have such a score.
    """
    if method not in METHODS:
        raise ValueError(f"no method {method!r}; there are {', '.join(METHODS)}")
    if not 0 < dice <= 1:
        raise ValueError(f"a Dice score of {dice} cannot be made; it is above 0, 1 at most")
    whole = (mask != 0).astype(np.uint8)
    if not whole.any() or dice == 1:
        return whole, method
    worse = METHODS[method](whole, dice, rng)
    if method != "erode" and not (worse.any() and abs(dice_of(worse, whole) - dice) <= TOLERANCE):
        return _erode(whole, dice, rng), "erode"
    return worse, method


def _erode(mask: np.ndarray, dice: float, rng: np.random.Generator) -> np.ndarray:
    box, worse = _around(mask, 1), np.zeros_like(mask)  # all that is chosen lies in the mask
    worse[box] = _innermost(mask[box], dice / (2 - dice))  # of |G| pixels k are left: Dice = 2k / (|G| + k)
    return worse


def _dilate(mask: np.ndarray, dice: float, rng: np.random.Generator) -> np.ndarray:
    return _innermost(mask, (2 - dice) / dice)  # Dice = 2|G| / (|G| + k)


def _innermost(mask: np.ndarray, share: float) -> np.ndarray:
    """The pixels of the smallest signed distance from the mask's rim, so many times as many as the mask's; at least 1.

    Of pixels of one distance, the first ones of the picture.
    """
    from scipy import ndimage

    inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(mask == 0)
    distance = (outside - inside).ravel()
    count = min(max(1, round(share * np.count_nonzero(mask))), mask.size)
    rim = np.partition(distance, count - 1)[count - 1]
    chosen = distance < rim
    chosen[np.flatnonzero(distance == rim)[: count - np.count_nonzero(chosen)]] = True
    return chosen.reshape(mask.shape).astype(np.uint8)


def _shift(mask: np.ndarray, dice: float, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.nonzero(mask)

    def moved(length: float) -> np.ndarray:
        row, column = rows + round(length * np.sin(angle)), columns + round(length * np.cos(angle))
        there = (row >= 0) & (row < mask.shape[0]) & (column >= 0) & (column < mask.shape[1])
        placed = np.zeros_like(mask)
        placed[row[there], column[there]] = 1
        return placed

    return _nearest(moved, mask, dice, float(np.hypot(np.ptp(rows) + 1, np.ptp(columns) + 1)))


def _elastic(mask: np.ndarray, dice: float, rng: np.random.Generator) -> np.ndarray:
    from scipy import ndimage

    thick = float(ndimage.distance_transform_edt(np.pad(mask[_around(mask, 0)], 1)).max())
    scale = max(2.0, min(mask.shape) / 40, thick)  # of the field: what is thick would be torn by a finer one
    box = _around(mask, int(2 * scale))  # as far as the mask may spread
    place = np.mgrid[box].astype(np.float32)
    coarse = rng.standard_normal((2, *(int(length / scale) + 4 for length in place.shape[1:])), np.float32)
    picture = (place.shape[2], place.shape[1])
    window = (1, 1, 1 + place.shape[2] / scale, 1 + place.shape[1] / scale)
    parts = [Image.fromarray(part).resize(picture, Image.Resampling.BICUBIC, window) for part in coarse]
    field = np.stack([np.asarray(part) for part in parts])

    def warped(length: float) -> np.ndarray:
        placed = np.zeros_like(mask)
        placed[box] = ndimage.map_coordinates(mask, place + length * field, order=0, mode="constant")
        return placed

    return _nearest(warped, mask, dice, 2 * scale)


def _around(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    """The mask's bounding box with a margin, cut at the picture's edge."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    (top, bottom), (left, right) = ((int(at[0]), int(at[-1]) + 1) for at in (rows, columns))
    height, width = mask.shape
    return (
        slice(max(top - margin, 0), min(bottom + margin, height)),
        slice(max(left - margin, 0), min(right + margin, width)),
    )


def _nearest(make: Callable[[float], np.ndarray], mask: np.ndarray, dice: float, longest: float) -> np.ndarray:
    """Of the masks that bisection meets between 0 and `longest` pixels, the one whose Dice score is nearest."""
    low, high, best, least = 0.0, longest, mask, 1 - dice
    for _ in range(_STEPS):
        middle = (low + high) / 2
        made = make(middle)
        score = dice_of(made, mask)
        if abs(score - dice) < least:
            best, least = made, abs(score - dice)
        if least < 1e-3:
            break
        low, high = (middle, high) if score > dice else (low, middle)
    return best


METHODS: Mapping[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "erode": _erode,
    "dilate": _dilate,
    "shift": _shift,
    "elastic": _elastic,
}


# A segmentation model's output.


def prediction_file(folder: Path, name: str) -> Path | None:
    """The file of an image's predicted mask: `<name>.png`, `.nii.gz` or `.nii`; `None` where there is none."""
    return next((path for suffix in _SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def read_prediction(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """A predicted mask, as nnU-Net (2D) and MONAI write them.

    Whole numbers are labels, where everything but 0 is the mask; so are a PNG's grey values, but if they go beyond 1
    only those above 127 count (a probability times 255, or 0 and 255). Fractions are probabilities, mask above 0.5. Of
    several channels (softmax) the pixels belong to the mask where the first, the background, is not the largest.
    NIfTI's first axis is the column: it is turned to `(row, column)`.

    Args:
        path: PNG or NIfTI.
        shape: Rows and columns of the image.

    Returns:
        `{0, 1}`, uint8, `(row, column)`.

    Raises:
        DataFault: It cannot be read, or is not as large as the image.
    """
    try:
        values = _picture(path) if path.suffix == ".png" else _nifti(path)
    except DataFault:
        raise
    except Exception as error:  # what a broken file makes the readers raise can be anything
        raise DataFault(unreadable(path, error, "as a predicted mask")) from None
    if values.ndim == 3:
        values = values.argmax(axis=2) if values.shape[2] > 1 else values[..., 0]
    if values.shape != tuple(shape):
        sizes = f"{' × '.join(map(str, values.shape))} pixels, not {shape[0]} × {shape[1]}"
        raise DataFault(f"{path}: the predicted mask has {sizes} as its image; export it at the image's own size")
    return (values > 0.5).astype(np.uint8)


def _picture(path: Path) -> np.ndarray:
    mode, values = read_picture(path)
    if mode not in ("1", "L", "P"):
        raise ValueError(f"its mode is {mode}; a mask has one channel of 1 or 8 bits")
    values = values.astype(np.uint8, copy=False)
    return values if values.max(initial=0) <= 1 else values > 127


def _nifti(path: Path) -> np.ndarray:
    """`(row, column)` or `(row, column, channel)`; axes of length 1 beyond the plane are dropped."""
    stored, slope, inter, _ = read_stored(path)
    values = stored if (slope, inter) == (1, 0) else stored * slope + inter
    planes = [length for length in values.shape[2:] if length > 1]
    if values.ndim < 2 or len(planes) > 1:
        raise ValueError(f"expected a plane, with channels behind it at most, not {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are no numbers")
    return values.reshape(*values.shape[:2], *planes).swapaxes(0, 1)


@dataclass(frozen=True)
class Picked:
    """The cases of one level.

    Attributes:
        names: Their names, the one nearest to the level first.
        short: How many fewer there are than asked for.
    """

    names: tuple[str, ...]
    short: int


def pick_cases(dices: Mapping[str, float], level: float, cases: int = 20, seed: int = 0) -> Picked:
    """The cases whose Dice score is nearest to a level, within its band; of equally near ones the seed decides.

    Args:
        dices: Name of a case → its Dice score.
        level: The wanted score.
        cases: At most so many.
        seed: Decides between ties, whatever the order of `dices`.
    """
    low, high = band(level)
    within = sorted(name for name, dice in dices.items() if low - 1e-9 <= dice <= high + 1e-9)
    random.Random(f"mask quality {seed}").shuffle(within)
    names = sorted(within, key=lambda name: round(abs(dices[name] - level), 6))[:cases]
    return Picked(tuple(names), cases - len(names))
