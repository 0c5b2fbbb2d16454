"""Smaller copies of large radiographs, made once: decoding a full-size JPEG costs more than all that is done to it.

A copy is an 8-bit grey JPEG (quality 95) whose shorter side is as asked for, resized bicubically with antialiasing. An
image that is no larger is copied as it is. The originals are only read.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from datamodules.files import put
from datamodules.radiograph import read_grey
from datamodules.study import DataFault

Pair = tuple[Path, Path]  # original, copy


def make_copy(original: Path, copy: Path, shorter_side: int) -> None:
    """Makes one copy, whole or not at all; does nothing where it is there.

    Raises:
        DataFault: The original cannot be read, or is not one grey image of 8 bits.
    """
    if copy.is_file():
        return
    grey = read_grey(original)
    if grey.dtype != "uint8":
        raise DataFault(f"{original}: holds 16 bits per value; only images of 8 bits are copied, set data.resized=null")
    height, width = grey.shape
    scale = shorter_side / min(height, width)
    if scale >= 1:
        put(copy, original.read_bytes())
        return
    small = Image.fromarray(grey).resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    content = io.BytesIO()
    small.save(content, "JPEG", quality=95)
    put(copy, content.getvalue())


def make_copies(pairs: Sequence[Pair], shorter_side: int, workers: int, title: str) -> None:
    """Makes every copy that is not there yet, with a progress bar; passes over originals that cannot be read.

    Args:
        pairs: Originals and where their copies belong.
        shorter_side: Of the copies, in pixels.
        workers: Processes that work side by side; 0 works in this one.
        title: Stands before the progress bar.
    """
    missing = [pair for pair in pairs if not pair[1].is_file()]
    if not missing:
        return
    make = partial(_make, shorter_side=shorter_side)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns) as bar:
        task = bar.add_task(title, total=len(missing))
        if workers < 2:
            for pair in missing:
                make(pair)
                bar.advance(task)
            return
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for _ in pool.map(make, missing, chunksize=8):
                bar.advance(task)


def _make(pair: Pair, shorter_side: int) -> None:
    with suppress(DataFault):  # it is named where the study is read
        make_copy(*pair, shorter_side)
