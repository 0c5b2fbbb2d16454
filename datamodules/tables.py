"""A dataset's tables as they were downloaded: plain, gzipped or zipped."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

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
    try:
        return _content(path, suffix).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataFault(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise DataFault(f"{path}: cannot be read ({error}); fetch it again") from None


def _content(path: Path, suffix: str) -> bytes:
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if path.suffix != ".zip":
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if n.endswith(suffix) and not n.startswith("__MACOSX/")]
        if len(names) != 1:
            raise DataFault(f"{path}: expected one {suffix} file in it, found {len(names)}")
        return archive.read(names[0])


def read_csv(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and row, every value a string, of a table in any of the forms of `read_text`.

    Raises:
        DataFault: It cannot be read, is no CSV, or lacks one of `columns`.
    """
    rows = csv.DictReader(io.StringIO(read_text(path, ".csv"), newline=""))
    try:
        if lacking := [column for column in columns if column not in (rows.fieldnames or ())]:
            there = ", ".join(rows.fieldnames or ()) or "none"
            raise DataFault(f"{path}: no column {', '.join(lacking)}; the columns are: {there}")
        for row in rows:
            yield rows.line_num, {name: value if isinstance(value, str) else "" for name, value in row.items()}
    except csv.Error as error:
        raise DataFault(f"{path}:{rows.line_num}: cannot be read as CSV ({error}); fetch it again") from None
