"""A dataset's tables and texts as they were downloaded: plain, gzipped or zipped.

UTF-8 with any line ends, with or without the mark that Windows programs put first. A character 0 is a fault: no report
has one, but files on a disk that lost power do, and tables of 16-bit text.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

from datamodules.files import stand_in, unreadable
from datamodules.study import DataFault

csv.field_size_limit(2**24)  # characters; at its own 131,072 a report of 20,000 words is none
_NAME = 30  # characters of a column's name at most: where the header is missing, a report would stand in its place
_ENCODE = "fetch it again, or save it as UTF-8"
_ZERO = f"holds characters 0 (a damaged file, or 16-bit text); {_ENCODE}"


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
        DataFault: It cannot be read, is not UTF-8, or holds a character 0.
    """
    with _opened(path, suffix) as text:
        content = text.read()
    if "\0" in content:
        raise DataFault(f"{path}: {_ZERO}")
    return content


def read_json(path: Path) -> Any:
    """What a JSON file holds, in any of the forms of `read_text`.

    Raises:
        DataFault: It cannot be read, is no JSON, or a string in it is no text (a character 0, half an emoji).
    """
    text = read_text(path, ".json")
    try:
        content = json.loads(text)
        if "\\u" in text:
            whole = json.dumps(content, ensure_ascii=False)
            whole.encode()  # fails at halves of pairs
            if "\\u0000" in whole:
                raise ValueError(_ZERO)
    except (ValueError, RecursionError) as error:
        told = "half a character" if isinstance(error, UnicodeEncodeError) else str(error)  # its own words quote it
        raise DataFault(unreadable(path, told, "as JSON")) from None
    return content


def read_csv(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and row, every value a string, of a table in any of the forms of `read_text`, one after the other.

    Raises:
        DataFault: It cannot be read, is no CSV, lacks one of `columns` or has it twice, was cut short within a row (its
            last line has no end), or has a row of more or fewer values than columns. One that was cut between two rows
            is a table like any other.
    """
    with _opened(path, ".csv") as text:
        rows = csv.DictReader(_whole_lines(text, path), strict=True)  # strict: a quote must be closed
        names = rows.fieldnames or ()
        if lacking := [column for column in columns if column not in names]:
            there = f"the columns are: {', '.join(names) or 'none'}"
            if not all(len(name) <= _NAME for name in names):
                there = "its first line is no header"
            what = f"no column {', '.join(lacking)}; {there}"
            raise DataFault(f"{path}: {stand_in(path) or what}")
        if twice := [column for column in columns if names.count(column) > 1]:
            raise DataFault(f"{path}: several columns are called {', '.join(twice)}; keep one of them")
        for row in rows:
            if None in row or None in row.values():
                what = f"its row has {'more' if None in row else 'fewer'} values than the table has columns"
                raise DataFault(f"{path}:{rows.line_num}: {what}; it is damaged or cut short, fetch it again")
            yield rows.line_num, dict(row)


def _whole_lines(lines: TextIO, path: Path) -> Iterator[str]:
    line = "\n"
    for line in lines:
        if "\0" in line:
            raise DataFault(f"{path}: {_ZERO}")
        yield line
    if not line.endswith(("\n", "\r")):
        raise DataFault(f"{path}: its last line has no end, so it may be cut short; fetch it again, or end the line")


@contextmanager
def _opened(path: Path, suffix: str) -> Iterator[TextIO]:
    """The text, to be read piece by piece; what goes wrong on the way becomes a DataFault."""
    try:
        with ExitStack() as stack:
            yield io.TextIOWrapper(_unpacked(path, suffix, stack), encoding="utf-8-sig", newline="")
    except FileNotFoundError:
        raise DataFault(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataFault(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); {_ENCODE}") from None
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, csv.Error, RuntimeError) as error:
        raise DataFault(unreadable(path, error)) from None


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
