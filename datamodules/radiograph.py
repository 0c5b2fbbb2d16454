"""Radiographs from files, PNG, JPEG or DICOM: their grey values, and the way to 8 bit of the CLIP-based methods."""

from __future__ import annotations

import struct
import warnings
import zlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from datamodules.files import unreadable
from datamodules.study import DataFault

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

# A 16-bit grey PNG has mode I;16 in Pillow 10.3 and later, and I (32 bits) before.
_SIXTEEN_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_FORMATS = ("PNG", "JPEG", "TIFF")  # others Pillow may hand to other programs
_DICOM = (".dcm", ".dicom")
# All that is read of a DICOM file: the picture and how it is shown. Nothing about a person is even parsed.
_TAGS = [
    *("SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData"),
]
_BROKEN = (OSError, ValueError, SyntaxError, zlib.error, struct.error, Image.DecompressionBombError)


def read_grey(path: Path) -> np.ndarray:
    """A grey image's values: those of a PNG or JPEG untouched, those of a DICOM file as it is meant to be seen.

    DICOM (PS3.3 C.11.1, C.11.2, C.7.6.3.1.2) means `bits` bits per value, 0 to `2**bits - 1`, higher is brighter:

    * the file's values as they are, signed ones moved up to start at 0; `bits` are its Bits Stored;
    * if there is a modality LUT: its entries, and their bits;
    * if there is a VOI LUT (the first one): its entries, and their bits; if there is a window instead (the first one):
      what it cuts out, stretched over all `bits`. A rescale slope only sets the units of these two (if it is negative,
      it also turns the values around); without them it changes nothing;
    * MONOCHROME1, where higher is darker, is then turned around: `2**bits - 1 - value`.

    Several studies may share one image, one after the other in a dataset's order: the last two images stay decoded in
    each process, so the array is read-only.

    Args:
        path: PNG, JPEG, or, with any suffix, DICOM: uncompressed, deflated, RLE, JPEG of 8 bits or JPEG 2000, and
            where python-gdcm is installed (it need not be) lossless JPEG and JPEG-LS.

    Returns:
        `(row, column)`, uint8 of 8-bit files, whatever their values, else uint16; in DICOM `bits` decides.

    Raises:
        DataFault: No such file, it cannot be read, or it is not one grey image of 16 bits at most.
    """
    try:
        return _decode(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        raise DataFault(f"{path}: no such file") from None
    except _BROKEN as error:
        raise DataFault(unreadable(path, error, "as an image")) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@lru_cache(maxsize=2)
def _decode(path: Path, _changed: int) -> np.ndarray:
    values = _dicom(path) if _is_dicom(path) else _picture(path)
    values.flags.writeable = False
    return values


def _picture(path: Path) -> np.ndarray:
    """A PNG's or JPEG's values."""
    mode, values = read_picture(path)
    if mode in _SIXTEEN_BITS:
        if values.min() < 0 or values.max() > 65535:
            raise DataFault(f"{path}: holds values from {values.min()} to {values.max()}; 16 bits hold 0 to 65535")
        return values.astype(np.uint16)
    if mode != "L":
        raise DataFault(f"{path}: is no grey image (mode {mode}); a radiograph has one channel of 8 or 16 bits")
    return values.copy()


def read_picture(path: Path) -> tuple[str, np.ndarray]:
    """A PNG's or JPEG's mode, as Pillow names it, and its values `(row, column)`.

    A PNG has checksums, which are compared. A JPEG has none: one that was cut short is found, one whose bytes changed
    shows another picture.

    Raises:
        OSError, SyntaxError, …: It cannot be read.
    """
    with Image.open(path, formats=_FORMATS) as picture:
        picture.verify()  # decoding passes over the checksums of the pixels' chunks
    with Image.open(path, formats=_FORMATS) as picture:
        picture.load()
        return picture.mode, np.asarray(picture)


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        marked = file.read(132)[128:] == b"DICM"
    if not marked and path.suffix.lower() in _DICOM:
        raise DataFault(f"{path}: is no DICOM file (no DICM at byte 128); fetch it again or name it by its format")
    return marked


def _dicom(path: Path) -> np.ndarray:
    """A DICOM file's values as they are meant to be seen; see `read_grey`."""
    from pydicom import dcmread

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote what stands in the file
        try:
            dataset = dcmread(path, specific_tags=list(_TAGS))
            if problem := _unfit(dataset):
                raise DataFault(f"{path}: {problem}")
            return _as_seen(dataset, dataset.pixel_array)
        except (DataFault, OSError):
            raise
        except Exception as error:  # a broken file makes pydicom stumble in any way
            what = f"its image cannot be read ({_one_line(error)})"
            raise DataFault(f"{path}: {what}; fetch it again, or save it as a grey PNG") from None


def _unfit(dataset: Dataset) -> str | None:
    """Why this is not one grey image that can be unpacked here, and what to do about it."""
    if "PixelData" not in dataset:
        return "holds no image, or was cut short before its end; give a DICOM radiograph"
    if (frames := int(dataset.get("NumberOfFrames") or 1)) > 1:
        return f"holds {frames} frames; save the one to be read as a file of its own"
    kind = dataset.PhotometricInterpretation
    if dataset.SamplesPerPixel != 1 or kind not in ("MONOCHROME1", "MONOCHROME2"):
        return f"is no grey image ({kind}); a radiograph is MONOCHROME1 or MONOCHROME2"
    if dataset.BitsStored > 16:
        return f"holds {dataset.BitsStored} bits per value; save it with 16 at most"
    syntax = dataset.file_meta.TransferSyntaxUID
    if not _unpacks(syntax, dataset.BitsStored):
        return f"its compression ({syntax.name}) is not read; pip install python-gdcm, then: gdcmconv --raw IN OUT"
    return None


def _unpacks(syntax: UID, bits: int) -> bool:
    """Whether pydicom with what is installed unpacks this transfer syntax."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEGExtended12Bit

    if syntax == JPEGExtended12Bit and bits > 8:  # pydicom lists decoders for it, but they only do 8 bits
        return False
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:
        return False


def _as_seen(dataset: Dataset, stored: np.ndarray) -> np.ndarray:
    """Stored values, `(row, column)`, through modality LUT, VOI LUT and photometric interpretation; see `read_grey`."""
    bits = dataset.BitsStored
    if dataset.get("ModalityLUTSequence"):
        values, bits = _look_up(stored, dataset.ModalityLUTSequence[0], dataset)
        ends = [0, 2**bits - 1]
    else:
        slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
        values = stored * slope + intercept
        lowest = -(2 ** (bits - 1)) if dataset.PixelRepresentation == 1 else 0
        ends = sorted(end * slope + intercept for end in (lowest, lowest + 2**bits - 1))
    if dataset.get("VOILUTSequence"):
        seen, bits = _look_up(np.rint(values), dataset.VOILUTSequence[0], dataset)
    else:
        seen = np.rint(_windowed(values, dataset, ends) * (2**bits - 1))
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        seen = 2**bits - 1 - seen
    return seen.astype(np.uint8 if bits <= 8 else np.uint16)


def _windowed(values: np.ndarray, dataset: Dataset, ends: list[float]) -> np.ndarray:
    """Values to 0 to 1 by the file's first window (PS3.3 C.11.2.1.2, C.11.2.1.3), else by the ends of their range."""
    center, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if center is None or width is None:
        return np.clip((values - ends[0]) / (ends[1] - ends[0]), 0, 1)
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or width < (1 if function == "LINEAR" else 1e-6):
        raise ValueError(f"there is no {function} window of width {width:g}")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR":
        center, width = center - 0.5, max(width - 1, 1e-6)
    return np.clip((values - center) / width + 0.5, 0, 1)


def _first(value: Any) -> float | None:
    """A tag's first number, where it has one."""
    numbers = [number for number in np.ravel(value) if number not in (None, "")]
    return float(numbers[0]) if numbers else None


def _look_up(values: np.ndarray, lut: Dataset, dataset: Dataset) -> tuple[np.ndarray, int]:
    """The LUT's entries for whole values, and the bits of its entries (PS3.3 C.11.1.1, C.11.2.1.1)."""
    entries, first, bits = lut.LUTDescriptor
    entries, table = entries % 2**16 or 2**16, lut.LUTData
    if isinstance(table, bytes):  # entries of 8 bits may lie two to a word
        word = "<u2" if dataset.original_encoding[1] else ">u2"
        table = np.frombuffer(table, np.uint8 if len(table) < 2 * entries else word)
    table = np.asarray(table, np.int64)[:entries]
    found = table[np.clip(values.astype(np.int64) - first, 0, len(table) - 1)]
    return found, max(bits, int(table.max()).bit_length())


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
