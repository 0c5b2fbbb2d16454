"""A dataset's tables as they were downloaded: plain, gzipped or zipped."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TextIO

from datamodules.study import DataFault


def find_table(root: Path, pattern: str) -> Path | None:
    """The one file below `root` of that name (a glob pattern with a suffix), unpacked or packed; `None` without one.

    Raises:
        DataFault: Several files fit.
    """
    for each in (pattern, f"{pattern}.gz", f"{pattern}.zip", f"{pattern.rsplit('.', 1)[0]}.zip"):
        found = sorted(root.glob(each))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise DataFault(f"{root}: holds {names}; keep one of them")
        if found:
            return found[0]
    return None


def read_text(path: Path, suffix: str) -> str:
    """The text of a file, of a gzipped one, or of the one file with that suffix in a zip archive.

    Raises:
        DataFault: It cannot be read, or is not UTF-8.
    """
    with _opened(path, suffix) as text:
        return text.read()


def read_csv(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and row, every value a string, of a table in any of the forms of `read_text`, one after the other.

    Raises:
        DataFault: It cannot be read, is no CSV, or lacks one of `columns`.
    """
    with _opened(path, ".csv") as text:
        rows = csv.DictReader(text)
        if lacking := [column for column in columns if column not in (rows.fieldnames or ())]:
            there = ", ".join(rows.fieldnames or ()) or "none"
            raise DataFault(f"{path}: no column {', '.join(lacking)}; the columns are: {there}")
        for row in rows:
            yield rows.line_num, {name: value if isinstance(value, str) else "" for name, value in row.items()}


@contextmanager
def _opened(path: Path, suffix: str) -> Iterator[TextIO]:
    """The text, to be read piece by piece; what goes wrong on the way becomes a DataFault."""
    try:
        with ExitStack() as stack:
            yield io.TextIOWrapper(_unpacked(path, suffix, stack), encoding="utf-8-sig", newline="")
    except UnicodeDecodeError as error:
        raise DataFault(f"{path}: is not UTF-8 text ({error.reason})") from None
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, csv.Error) as error:
        raise DataFault(f"{path}: cannot be read ({error}); fetch it again") from None


def _unpacked(path: Path, suffix: str, stack: ExitStack) -> IO[bytes] | gzip.GzipFile:
    if path.suffix == ".gz":
        return stack.enter_context(gzip.GzipFile(path))
    if path.suffix != ".zip":
        return stack.enter_context(path.open("rb"))
    archive = stack.enter_context(zipfile.ZipFile(path))
    names = [n for n in archive.namelist() if n.endswith(suffix) and not n.startswith("__MACOSX/")]
    if len(names) != 1:
        raise DataFault(f"{path}: expected one {suffix} file in it, found {len(names)}")
    return stack.enter_context(archive.open(names[0]))
