"""Run-length masks as SIIM-ACR's pneumothorax challenge writes them, and CANDID-PTX after it.

The text is pairs `gap length`: pixels passed over since the end of the run before, and pixels of the run. Pixels are
counted down the columns, from the left column to the right one. `-1` stands for an empty mask.
"""

from __future__ import annotations

import numpy as np

from datamodules.faults import shown

_EMPTY = ("", "-1", "nan")


def is_empty(rle: str) -> bool:
    """Whether the text stands for a mask without a pixel: `-1`, nothing, or `NaN`, white space around it aside."""
    return rle.strip().lower() in _EMPTY


def decode(rle: str, rows: int, columns: int, base: int = 0) -> np.ndarray:
    """The mask that a text stands for.

    Args:
        rle: Pairs `gap length`, or what `is_empty` knows.
        rows: Rows of the image.
        columns: Columns of the image.
        base: The number of the image's first pixel, 0 or 1. With 1 the whole mask lies a pixel earlier.

    Returns:
        `{0, 1}`, uint8, `(row, column)`.

    Raises:
        ValueError: The text has letters or a number without its partner, or leaves the image.
    """
    flat = np.zeros(rows * columns, np.uint8)
    if not is_empty(rle):
        gaps, lengths = _pairs(rle, flat.size + 1)
        ends = np.cumsum(gaps + lengths) - base
        starts = ends - lengths
        if starts[0] < 0:
            raise ValueError(f"its first run begins at pixel 0, but the image's first pixel is {base}")
        if ends[-1] > flat.size:
            raise ValueError(f"its runs end {ends[-1] - flat.size} pixels behind an image of {rows} × {columns}")
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            flat[start:end] = 1
    return np.ascontiguousarray(flat.reshape(columns, rows).T)


def encode(mask: np.ndarray, base: int = 0) -> str:
    """The text of a mask; `decode` gives it back.

    Args:
        mask: `(row, column)`; what is not 0 belongs to it.
        base: See `decode`.
    """
    flat = np.pad((mask != 0).ravel("F"), 1)
    edges = np.flatnonzero(flat[1:] != flat[:-1])  # begin, end, begin, end, …
    if not edges.size:
        return "-1"
    numbers = np.diff(edges, prepend=0)
    numbers[0] += base
    return " ".join(map(str, numbers.tolist()))


def _pairs(rle: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaps and lengths, none of them below 0 or above `size`."""
    words = rle.split()
    if wrong := next((word for word in words if not (word.isascii() and word.isdigit())), None):
        raise ValueError(f"{shown(wrong)} stands among its numbers; they are whole and not below 0")
    if len(words) % 2:
        raise ValueError(f"it has {len(words)} numbers, the last one without its partner")
    # a number of very many digits is beyond any image
    numbers = np.array([int(word) if len(word) < 12 else size for word in words], np.int64).clip(max=size)
    return numbers[::2], numbers[1::2]
