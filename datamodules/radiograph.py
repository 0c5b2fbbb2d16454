"""Radiographs from files: the grey values as they are stored, and the way to 8 bit of the CLIP-based methods."""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.study import DataFault

# A 16-bit grey PNG has mode I;16 in Pillow 10.3 and later, and I (32 bits) before.
_SIXTEEN_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_DICOM = (".dcm", ".dicom")
_BROKEN = (OSError, ValueError, SyntaxError, zlib.error, struct.error, Image.DecompressionBombError)


def read_grey(path: Path) -> np.ndarray:
    """A grey image's own values, untouched.

    Several studies may share one image, one after the other in a dataset's order: the last two images stay decoded in
    each process, so the array is read-only.

    Args:
        path: PNG or JPEG.

    Returns:
        `(row, column)`, uint16 from 16-bit files whatever Pillow's version, uint8 from 8-bit files.

    Raises:
        DataFault: No such file, it cannot be read, or it is not grey.
    """
    if path.suffix.lower() in _DICOM:
        raise DataFault(f"{path}: DICOM is not read; save it as a 16-bit grey PNG first")
    try:
        return _decode(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        raise DataFault(f"{path}: no such file") from None
    except _BROKEN as error:
        raise DataFault(f"{path}: cannot be read as an image ({' '.join(str(error).split())})") from None


@lru_cache(maxsize=2)
def _decode(path: Path, _changed: int) -> np.ndarray:
    with Image.open(path) as picture:
        picture.load()
        mode, values = picture.mode, np.asarray(picture)
    if mode in _SIXTEEN_BITS:
        if values.min() < 0 or values.max() > 65535:
            raise DataFault(f"{path}: holds values from {values.min()} to {values.max()}; 16 bits hold 0 to 65535")
        values = values.astype(np.uint16)
    elif mode != "L":
        raise DataFault(f"{path}: is no grey image (mode {mode}); a radiograph has one channel of 8 or 16 bits")
    else:
        values = values.copy()
    values.flags.writeable = False
    return values


def to_8_bit(image: np.ndarray) -> np.ndarray:
    """Grey values on 0 to 255, where 255 is the 99th percentile and all above it.

    As RegionFormer's code does it: 16-bit values are stretched from their minimum to their maximum first, 8-bit values
    are not; the last step cuts the fraction off instead of rounding. 16-bit values in wider integers, as older Pillow
    gives them, count as 16-bit ones. A constant 16-bit image becomes black.

    Args:
        image: `(row, column)`, whole numbers: uint8, or 16-bit values in any wider type.

    Returns:
        `(row, column)`, uint8.

    Raises:
        ValueError: The values are no whole numbers.
    """
    if image.dtype.kind not in "ui":
        raise ValueError(f"grey values are whole numbers, these are {image.dtype}")
    grey = image.astype(np.float32)
    if image.dtype == np.uint8:
        grey /= 255
    else:
        darkest, brightest = grey.min(), grey.max()
        grey = (grey - darkest) / (brightest - darkest + 1e-8)
    grey = np.clip(grey / (np.percentile(grey, 99) + 1e-8), 0, 1)
    return (grey * 255).astype(np.uint8)
