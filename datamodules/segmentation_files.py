"""Segmentation masks of radiographs as CXAS, and most other tools, leave them on disk; found by looking.

For an image whose file is called `<stem>.jpg` (or .png, .dcm), the first of these that is in the folder:

    <stem>.json             COCO with compressed RLE, of this image
    <stem>.npz, <stem>.npy  one array (class, row, column), bool or uint8
    <stem>/                 one PNG or JPEG a class, named by it
    <any name>.json         COCO with compressed RLE, of many images; if it is the folder's only JSON

A mask is named by the file's own categories, or by its picture's name. Masks that only have numbers are named by
`classes.txt` (a name a line) or `classes.json` (a list) in the folder, and without one by CXAS's list. What stands in
`made_by.txt`, the tool and its version, goes with what is made of the masks.

CXAS (0.0.20) writes all of these; it leaves empty classes out of COCO, and stores them everywhere else.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from os import scandir
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from PIL import Image

from datamodules.coco_files import CocoFile, decode_rle
from datamodules.cxas_classes import CXAS
from datamodules.files import unreadable
from datamodules.radiograph import read_picture
from datamodules.study import DataFault

_BROKEN = (  # what zipfile, Pillow, NumPy and json stumble with
    *(OSError, EOFError, LookupError, TypeError, ValueError, SyntaxError, MemoryError, RuntimeError),
    *(struct.error, zlib.error, zipfile.BadZipFile, Image.DecompressionBombError, TokenError),
)
_PICTURES = (".png", ".jpg", ".jpeg")
_NAMES = ("classes.txt", "classes.json")


class Masks(Mapping[str, np.ndarray]):
    """Class name → `{0, 1}` mask `(row, column)`, uint8, read and decoded each time it is asked for.

    Which classes there are costs nothing to ask. A class may be there and empty. Ask for the classes in the mapping's
    own order: a compressed array is read from front to back. Two masks of one class are united.

    Attributes:
        file: What the masks are read from, a file or a folder.
    """

    def __init__(
        self,
        file: Path,
        parts: Mapping[str, Sequence[Any]],
        decode: Callable[[Any], np.ndarray],
        shape: tuple[int, int] | None,
    ) -> None:
        self.file = file
        self._parts, self._decode, self._shape = parts, decode, shape

    def __getitem__(self, name: str) -> np.ndarray:
        """The mask.

        Raises:
            KeyError: There is no such class.
            DataFault: It cannot be decoded, or is not as large as the image or the masks before it.
        """
        masks = [self._read(name, part) for part in self._parts[name]]
        for other in masks[1:]:
            np.bitwise_or(masks[0], other, out=masks[0])
        return masks[0]

    def __contains__(self, name: object) -> bool:
        return name in self._parts  # a mapping's own way would decode it

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def _read(self, name: str, part: Any) -> np.ndarray:
        try:
            mask = self._decode(part)
        except _BROKEN as error:
            raise DataFault(f"{self.file}: the mask of {name} cannot be read ({_one_line(error)})") from None
        if self._shape is None:
            self._shape = mask.shape
        if mask.shape != self._shape:
            sizes = f"{mask.shape[0]} × {mask.shape[1]} pixels, not {self._shape[0]} × {self._shape[1]}"
            raise DataFault(f"{self.file}: the mask of {name} has {sizes} as its image or the masks before it")
        return mask


def mask_file(folder: Path, stem: str) -> Path | None:
    """The file or folder that `open_masks` would read; `None` where there are no masks of that image.

    Raises:
        DataFault: A JSON file of many images cannot be read.
    """
    for suffix in (".json", ".npz", ".npy"):
        if (path := folder / f"{stem}{suffix}").is_file():
            return path
    if (path := folder / stem).is_dir():
        return path
    try:
        common = _common_json(folder, folder.stat().st_mtime_ns)
    except FileNotFoundError:
        return None
    return common if common and stem in _coco(common) else None


def has_masks(folder: Path, stem: str) -> bool:
    """Whether there are masks of an image.

    Raises:
        DataFault: A JSON file of many images cannot be read.
    """
    return mask_file(folder, stem) is not None


def made_by(folder: Path) -> str | None:
    """What made the masks, in the words of the folder's `made_by.txt`."""
    path = folder / "made_by.txt"
    try:
        return path.read_text(encoding="utf-8-sig").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataFault(f"{path}: cannot be read ({_one_line(error)})") from None


def open_masks(folder: Path, stem: str, shape: tuple[int, int] | None = None) -> Masks:
    """The masks of an image; which there are is read at once, the masks themselves when asked for.

    Args:
        folder: Where the segmentation tool wrote to.
        stem: The image file's name without its ending.
        shape: Rows and columns of the image, which its masks must have.

    Raises:
        DataFault: There are none, or what there is cannot be read.
    """
    path = mask_file(folder, stem)
    if path is None:
        raise DataFault(f"{folder}: no masks of {stem}; give {stem}.json, {stem}.npz, {stem}.npy or a folder {stem}")
    try:
        if path.is_dir():
            return Masks(path, _pictures(path), _picture, shape)
        if path.suffix == ".json":
            coco = _coco(path) if path.stem != stem else CocoFile(path)
            return Masks(path, _annotations(coco, stem, folder), lambda part: decode_rle(part["segmentation"]), shape)
        count, decode = _zipped(path) if path.suffix == ".npz" else _mapped(path)
        return Masks(path, {name: [index] for index, name in enumerate(_names(folder, count, path))}, decode, shape)
    except _BROKEN as error:
        raise DataFault(unreadable(path, error, "as masks")) from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# Names.


def _names(folder: Path, count: int | None, path: Path) -> Sequence[str]:
    """What the masks are called that have only numbers; `count` says how many there are, where that is known."""
    names, source = list(CXAS), "CXAS"
    for file in (folder / name for name in _NAMES):
        if file.is_file():
            text, source = file.read_text(encoding="utf-8-sig"), file.name
            names = json.loads(text) if file.suffix == ".json" else [n.strip() for n in text.splitlines() if n.strip()]
            break
    if len(set(names)) != len(names):
        raise DataFault(f"{folder / source}: a name is there twice; give each class a name of its own")
    if count is not None and len(names) != count:
        advice = f"write a classes.txt beside it, {count} names, one a line"
        raise DataFault(f"{path}: holds {count} masks, but {source} has {len(names)} names; {advice}")
    return names


# COCO.


@lru_cache(maxsize=16)
def _common_json(folder: Path, _changed: int) -> Path | None:
    """The folder's only JSON."""
    found = None
    with scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".json") and entry.name not in _NAMES:
                if found:
                    return None
                found = folder / entry.name
    return found


def _coco(path: Path) -> CocoFile:
    """A file of many images, read through once in each process."""
    return _read_coco(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _read_coco(path: Path, _changed: int) -> CocoFile:
    try:
        return CocoFile(path)
    except _BROKEN as error:
        raise DataFault(unreadable(path, error, "as COCO")) from None


def _annotations(coco: CocoFile, stem: str, folder: Path) -> dict[str, list[Any]]:
    """Class name → its annotations."""
    names = coco.categories or dict(enumerate(_names(folder, None, coco.path)))
    parts: dict[str, list[Any]] = {}
    for annotation in coco.annotations(stem):
        number = annotation["category_id"]
        if number not in names:
            raise DataFault(f"{coco.path}: {stem} has a mask of category {number}, which has no name")
        parts.setdefault(names[number], []).append(annotation)
    return parts


# Arrays.


def _mapped(path: Path) -> tuple[int, Callable[[int], np.ndarray]]:
    """How many masks an .npy file holds, and what reads one of them."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    _check_array(array.shape, array.dtype)
    return len(array), lambda index: _of_two(array[index])


def _zipped(path: Path) -> tuple[int, Callable[[int], np.ndarray]]:
    """As `_mapped`, of an .npz file; read piece by piece, for all masks of a radiograph may take a gigabyte."""
    archive = zipfile.ZipFile(path)
    members = [name for name in archive.namelist() if name.endswith(".npy")]
    if len(members) != 1:
        raise ValueError(f"it holds {len(members)} arrays instead of one")
    stream = archive.open(members[0])
    version = np.lib.format.read_magic(stream)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, by_columns, dtype = read_header(stream)
    _check_array(shape, dtype)
    if by_columns:
        raise ValueError("it is stored column by column; save np.ascontiguousarray of it")
    start, size = stream.tell(), shape[1] * shape[2]

    def read(index: int) -> np.ndarray:
        stream.seek(start + index * size)  # forwards it unpacks what it skips, backwards it begins anew
        return _of_two(np.frombuffer(stream.read(size), np.uint8).reshape(shape[1:]))

    return shape[0], read


def _of_two(values: np.ndarray) -> np.ndarray:
    """A mask `{0, 1}` of 0 and one other value: an array has no checksum, and what is damaged has more."""
    mask, highest = values != 0, values.max(initial=0)
    if highest > 1 and not np.array_equal(values, mask * highest):
        raise ValueError("it holds more than two values")
    return mask.view(np.uint8)


def _check_array(shape: tuple[int, ...], dtype: np.dtype) -> None:
    if len(shape) != 3 or dtype not in (np.bool_, np.uint8):
        raise ValueError(f"expected (class, row, column) of bool or uint8, not {dtype} {shape}")


# Pictures.


def _pictures(folder: Path) -> dict[str, list[Path]]:
    parts: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _PICTURES:
            parts.setdefault(path.stem, []).append(path)
    return parts


def _picture(path: Path) -> np.ndarray:
    """A picture of two grey values; JPEG blurs them."""
    mode, values = read_picture(path)
    if mode not in ("1", "L"):
        raise ValueError(f"its mode is {mode}; a mask has one channel of 1 or 8 bits")
    values = values.astype(np.uint8, copy=False)
    return (values > (127 if values.max(initial=0) > 1 else 0)).view(np.uint8)
