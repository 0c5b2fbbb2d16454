"""Segmentation masks as ASaRG's network reads them: averages over the cells of a grid, in 8 bits.

ASaRG, arXiv:2507.16623, eq. 11: a parameter-free adaptive average pooling comes before anything that is learned, so
that it may be done once and kept. A superclass is the union of its members' masks; it cannot be had from their pooled
maps, for pooling a union is not adding up what was pooled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

Frame = Literal["image", "padded_square"]


def pool(mask: np.ndarray, grid: int, frame: Frame = "image") -> np.ndarray:
    """The share of each cell that a mask covers: `AdaptiveAvgPool2d(grid)`, times 255, rounded.

    Cells overlap by a pixel where the size is no multiple of the grid, as torch's do. Pixels are counted in whole
    numbers, so the rounding is the only error (at most 0.5 / 255).

    Args:
        mask: `{0, 1}`, `(row, column)`, uint8 or bool; fastest where either axis is contiguous.
        grid: Cells along each axis.
        frame: What the grid covers: the `image`, or the `padded_square` that a CLIP-based model sees, the image in the
            middle and nothing at both ends of the shorter side.

    Returns:
        `(grid, grid)`, uint8, 255 where a cell is covered wholly.

    Raises:
        ValueError: The mask has another shape, type or values.
    """
    return _levels(*_counts(_checked(mask), grid, frame))


def pooled_maps(
    masks: Mapping[str, np.ndarray],
    classes: Sequence[str],
    grid: int,
    frame: Frame = "image",
    groups: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, np.ndarray]:
    """Pooled maps of classes, and of unions of classes, in one pass that asks for each mask once.

    Args:
        masks: Class name → `{0, 1}` `(row, column)`, all of one shape; such as decode when asked will do.
        classes: The classes wanted, in the maps' order; one without a mask is all 0.
        grid: See `pool`.
        frame: See `pool`.
        groups: Superclass name → its members' names; a member without a mask adds nothing.

    Returns:
        * `maps`: `(class, grid, grid)`, uint8;
        * `seen`: `(class,)`, bool, whether the mask has a pixel at all (which may be too few to show in `maps`);
        * `superclass_maps`: `(group, grid, grid)`, uint8, where there are `groups`.

    Raises:
        ValueError: As `pool`.
    """
    groups = groups or {}
    place = {name: index for index, name in enumerate(classes)}
    maps, seen = np.zeros((len(classes), grid, grid), np.uint8), np.zeros(len(classes), bool)
    unions: dict[str, np.ndarray] = {}
    for name in masks:  # their order, not ours: a packed file is read from front to back
        containing = [group for group, members in groups.items() if name in members]
        if name not in place and not containing:
            continue
        mask = _checked(masks[name])
        if name in place:
            counts, areas = _counts(mask, grid, frame)
            maps[place[name]], seen[place[name]] = _levels(counts, areas), counts.any()
        for group in containing:
            if group in unions:
                np.bitwise_or(unions[group], mask, out=unions[group])
            else:
                unions[group] = np.copy(mask)  # in the memory order that it has
    arrays = {"maps": maps, "seen": seen}
    if groups:
        empty = np.zeros((grid, grid), np.uint8)
        arrays["superclass_maps"] = np.stack(
            [pool(unions[group], grid, frame) if group in unions else empty for group in groups]
        )
    return arrays


def _checked(mask: np.ndarray) -> np.ndarray:
    """The mask as uint8."""
    if mask.ndim != 2 or mask.dtype not in (np.uint8, np.bool_) or not mask.size:
        raise ValueError(f"expected a mask (row, column) of uint8 or bool, not {mask.dtype} {mask.shape}")
    mask = mask.view(np.uint8)
    if mask.max() > 1:
        raise ValueError(f"a mask holds 0 and 1, this one {mask.max()}")
    return mask


def _counts(mask: np.ndarray, grid: int, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Covered pixels of each cell, and all pixels of each cell (those of the padding too), `(grid, grid)`."""
    if mask.strides[0] < mask.strides[1]:  # column by column in memory, as RLE is decoded
        counts, areas = _counts(mask.T, grid, frame)
        return counts.T, areas.T
    square = max(mask.shape) if frame == "padded_square" else None
    (tops, bottoms, heights), (lefts, rights, widths) = (_windows(n, grid, square or n) for n in mask.shape)
    kind = np.uint8 if heights.max() < 256 else np.uint32  # bytes are added many at a time
    sums = np.zeros((grid, mask.shape[1] + 1), np.int64)
    for row, (top, bottom) in enumerate(zip(tops, bottoms, strict=True)):
        np.cumsum(np.add.reduce(mask[top:bottom], axis=0, dtype=kind), dtype=np.int64, out=sums[row, 1:])
    return sums[:, rights] - sums[:, lefts], heights[:, None] * widths


def _levels(counts: np.ndarray, areas: np.ndarray) -> np.ndarray:
    return ((2 * 255 * counts + areas) // (2 * areas)).astype(np.uint8)  # halves go up


@lru_cache(maxsize=64)
def _windows(length: int, grid: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start, end and size of each cell along an axis of `length` pixels in the middle of `side`; ends are cut to it."""
    edges = np.arange(grid + 1) * side
    starts, ends = edges[:-1] // grid, -(-edges[1:] // grid)
    before = (side - length) // 2
    return np.clip(starts - before, 0, length), np.clip(ends - before, 0, length), ends - starts
