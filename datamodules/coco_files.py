"""COCO files with masks in compressed RLE, read a piece at a time: a file of many radiographs has gigabytes.

Format: `{"images": […], "categories": […], "annotations": […]}`. CXAS wraps the one entry of `images` in a second list
where the file is of one image. RLE: lengths of runs, of 0 and 1 in turn, down the columns, each written as its
difference to the one before the last, in groups of five bits (pycocotools 2.0.11, `maskApi.c`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from json.decoder import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import rich.progress

from datamodules.study import DataFault

_PIECE = 2**20
_LONGEST = 2**28  # bytes of one annotation, pixels of one mask: what claims more is broken
_LONG = 2**26  # bytes of a file that is worth a progress bar


class CocoFile:
    """What a COCO file holds: names, and where in the file the annotations of each image lie, but none of them.

    Args:
        path: The file. It is read through once.

    Attributes:
        path: The file.
        categories: Category id → name.

    Raises:
        ValueError, KeyError, TypeError: It is no such file, or was cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.categories: dict[int, str] = {}
        self._images: dict[str, list[Any]] = {}
        self._places: dict[Any, list[list[int]]] = {}
        last = None
        short = path.stat().st_size < _LONG
        with rich.progress.open(path, "rb", description=path.name, transient=True, disable=short) as file:
            for key, value, start, text in _elements(_Reader(file)):
                if key == "annotations" and value:
                    image = value["image_id"]
                    if image == last:
                        self._places[image][-1][1] = start + len(text)
                    else:
                        self._places.setdefault(image, []).append([start, start + len(text)])
                    last = image
                elif key == "categories" and value:
                    category = _utf8(text)
                    self.categories[category["id"]] = category["name"]
                elif key == "images" and value:
                    for image in _utf8(text) if isinstance(value, list) else [_utf8(text)]:
                        self._images.setdefault(_stem(str(image["file_name"])), []).append(image["id"])

    def __contains__(self, stem: str) -> bool:
        return stem in self._images

    def annotations(self, stem: str) -> Iterator[Mapping[str, Any]]:
        """The annotations of the image with that stem; of the file's only image, whatever it is called.

        Raises:
            DataFault: There is no such image, or more than one.
        """
        ids = next(iter(self._images.values()), []) if len(self._images) == 1 else self._images.get(stem, [])
        if len(ids) != 1:
            raise DataFault(f"{self.path}: {len(ids)} images are called {stem}; their names must differ, folders aside")
        with self.path.open("rb") as file:
            for start, end in self._places.get(ids[0], []):
                file.seek(start)
                yield from json.loads(b"[" + file.read(end - start) + b"]")


def decode_rle(segmentation: Any) -> np.ndarray:
    """A mask from COCO's compressed RLE.

    pycocotools' own decoder leaves whatever was in memory where the runs end early, and crashes on absurd sizes.

    Args:
        segmentation: `{"size": [rows, columns], "counts": text}`.

    Returns:
        `{0, 1}` `(row, column)`, uint8, column by column in memory.

    Raises:
        ValueError, KeyError, TypeError: It is no compressed RLE, or its runs do not fill the mask.
    """
    rows, columns = segmentation["size"]
    if not isinstance(segmentation["counts"], str):
        raise TypeError("its counts are no text; compress it, as pycocotools' mask.frPyObjects does")
    if not (isinstance(rows, int) and isinstance(columns, int) and rows > 0 and 0 < rows * columns <= _LONGEST):
        raise ValueError(f"there is no mask of {rows} × {columns} pixels")
    runs = _runs(segmentation["counts"])
    if runs.min() < 0 or runs.sum() != rows * columns:
        raise ValueError("its runs do not fill the mask; it was cut short or belongs to another size")
    mask = np.zeros(rows * columns, np.uint8)
    first, last = runs[0], rows * columns - (runs[-1] if len(runs) % 2 else 0)  # nothing before and after
    inner = runs[1 : len(runs) - len(runs) % 2] if len(runs) > 1 else runs[:0]
    mask[first:last] = np.repeat((np.arange(len(inner)) % 2 == 0).view(np.uint8), inner)
    return mask.reshape((rows, columns), order="F")


def _runs(counts: str) -> np.ndarray:
    """The lengths of the runs."""
    groups = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not len(groups) or groups.min() < 0 or groups.max() > 63 or groups[-1] & 32:
        raise ValueError("its counts are no compressed RLE, or were cut short")
    ends = np.flatnonzero(groups & 32 == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError("a run is longer than any mask")
    shifts = 5 * (np.arange(len(groups)) - np.repeat(starts, lengths))
    values = np.add.reduceat((groups & 31) << shifts, starts)
    values -= ((groups[ends] & 16) > 0).astype(np.int64) << 5 * lengths  # the sign
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


# JSON from front to back. Bytes are read as Latin-1, so that places in the text are places in the file.


class _Reader:
    """Takes JSON apart, holding little more than one value at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._decoder = file, JSONDecoder()
        self._text, self._at, self._before = "", 0, 0

    def peek(self) -> str:
        """The next character that is no space."""
        while True:
            while self._at < len(self._text):
                if not self._text[self._at].isspace():
                    return self._text[self._at]
                self._at += 1
            self._more()

    def take(self, marks: str) -> str:
        """The next character, which must be one of these."""
        mark = self.peek()
        if mark not in marks:
            raise ValueError(f"no JSON at byte {self._before + self._at}")
        self._at += 1
        return mark

    def value(self) -> tuple[Any, int, str]:
        """The next value, the byte that it begins at, and its text."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                if end < len(self._text):  # else a number might go on
                    break
            except JSONDecodeError:
                if len(self._text) - self._at > _LONGEST:
                    raise
            self._more()
        start, text = self._before + self._at, self._text[self._at : end]
        self._at = end
        return value, start, text

    def _more(self) -> None:
        rest = self._text[self._at :]
        piece = self._file.read(max(_PIECE, len(rest)))
        if not piece:
            raise ValueError("it is no JSON object, or was cut short")
        self._before += self._at
        self._text, self._at = rest + piece.decode("latin-1"), 0


def _elements(reader: _Reader) -> Iterator[tuple[str, Any, int, str]]:
    """Each element of each list at the top of the file: the list's name, and what `value` gives."""
    reader.take("{")
    while True:
        key = reader.value()[0]
        reader.take(":")
        if reader.peek() != "[":
            reader.value()
        else:
            reader.take("[")
            while reader.peek() != "]":
                yield (key, *reader.value())
                if reader.peek() != "]":
                    reader.take(",")
            reader.take("]")
        if reader.take(",}") == "}":
            return


def _utf8(text: str) -> Any:
    return json.loads(text.encode("latin-1"))


def _stem(name: str) -> str:
    """As CXAS makes names of output files."""
    return Path(name.replace("\\", "/")).stem
