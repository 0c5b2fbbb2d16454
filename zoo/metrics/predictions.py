"""Reads files of predictions, and names everything that is wrong with one at once."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.faults import shown
from datamodules.study import DataFault

Row = tuple[str, str, str]
_SHOWN = 20  # faults, before "and … more"
_MISSING = {"nan", "none", "null", "na", "n/a", "<na>"}  # what other programs write where there is nothing
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CELL = re.compile(r'(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r\n|\r|\n|$)')


def read_predictions(
    path: Path, named: Sequence[str | None], known: Sequence[tuple[str, str, str]]
) -> tuple[tuple[str, str, str], list[Row]]:
    """Reads a file of predictions.

    An empty prediction is a text (`""` in either format) and is kept; a cell without anything is a missing one.

    Args:
        path: A `.csv` (UTF-8, RFC 4180, first row names the columns) or `.jsonl` file.
        named: The columns of ids, references and predictions; `None` where they are to be found among `known`.
        known: Usual column names, tried in order.

    Returns:
        The columns, and one `(id, reference, prediction)` for each row, in the file's order.

    Raises:
        DataFault: One line for each fault, with its row and id.
    """
    if path.suffix.lower() not in _READERS:
        raise DataFault(f"{path}: the name must end in .csv or .jsonl")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataFault(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataFault(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    if not text.strip():
        raise DataFault(f"{path} is empty")
    rows = list(_READERS[path.suffix.lower()](path, text))
    if not rows:
        raise DataFault(f"{path} has a header and no rows")
    columns = _columns(path, rows[0][1], named, known)
    return columns, _checked(path, rows, columns)


def read_column(path: Path, name: str) -> list[str | None]:
    """Another column of a file that `read_predictions` accepted, in the same order; `None` where a cell has nothing.

    Raises:
        DataFault: The file has no such column.
    """
    rows = [row for _, row in _READERS[path.suffix.lower()](path, path.read_text("utf-8-sig"))]
    if not any(name in row for row in rows):
        raise DataFault(f"{path} has no column {name!r}; its columns are: {_named(rows[0])}")
    return [None if row.get(name) in (None, "") else str(row[name]) for row in rows]


def _named(columns: Iterable[str]) -> str:
    return ", ".join(shown(name, most=30) for name in columns)  # without a header they are the first report's words


def _csv(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, column → text); `None` is a cell without anything, which the csv module cannot tell from `""`."""
    header: list[str] = []
    cells: list[str | None] = []
    line, position, started = 1, 0, 1
    while position < len(text):
        match = _CELL.match(text, position)
        if match is None:
            raise DataFault(f"{path}, line {line}: a quotation mark stands inside a cell; double it and quote the cell")
        quoted, bare, end = match.groups()
        cells.append(quoted.replace('""', '"') if quoted is not None else bare or None)
        line += len(re.findall(r"\r\n|\r|\n", match.group()))
        position = match.end()
        if end == "," and position < len(text):
            continue
        cells += [None] * (end == ",")  # the file ends behind a comma
        if not header:
            header = [cell or "" for cell in cells]
            if len(set(header)) < len(header):
                raise DataFault(f"{path}: two columns have the same name; rename one of {_named(header)}")
        elif cells != [None]:
            if len(cells) != len(header):
                raise DataFault(
                    f"{path}, line {started}: {len(cells)} cells under {len(header)} columns; quote texts with commas"
                )
            yield started, dict(zip(header, cells, strict=True))
        cells, started = [], line


def _jsonl(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, content in enumerate(text.split("\n"), 1):
        if content.strip():
            try:
                row = json.loads(content)
            except (ValueError, RecursionError) as error:
                raise DataFault(f"{path}, line {line}: not JSON ({getattr(error, 'msg', error)})") from error
            if not isinstance(row, dict):
                raise DataFault(f"{path}, line {line}: not a JSON object")
            yield line, row


_READERS = {".csv": _csv, ".jsonl": _jsonl}


def _columns(
    path: Path, first: Mapping[str, Any], named: Sequence[str | None], known: Sequence[tuple[str, str, str]]
) -> tuple[str, str, str]:
    for usual in known:
        wanted = tuple(given or name for given, name in zip(named, usual, strict=True))
        if all(name in first for name in wanted):
            return wanted[0], wanted[1], wanted[2]
    kinds = ("id", "reference", "prediction")
    lacking = [f"--{kind} {name!r}" for kind, name in zip(kinds, named, strict=True) if name and name not in first]
    lacking = lacking or [f"a column for --{kind}" for kind, name in zip(kinds, named, strict=True) if not name]
    raise DataFault(f"{path} lacks {', '.join(lacking)}; its columns are: {_named(first)}")


def _checked(path: Path, rows: list[tuple[int, dict[str, Any]]], columns: tuple[str, str, str]) -> list[Row]:
    good: list[Row] = []
    faults: list[str] = []
    seen: dict[str, int] = {}
    for line, row in rows:
        cells = [row.get(column) for column in columns]
        study = str(cells[0]) if isinstance(cells[0], str | int) and str(cells[0]).strip() else ""
        where = f"{path}, line {line}" + (f", {study!a}" if _UNFIT.search(study) else f", {study}" if study else "")
        problems = [] if study else [f"column {columns[0]!r} holds no id"]
        if _UNFIT.search(study):
            problems.append("its id holds a line end or another character that tables cannot keep")
        if study and study in seen:
            problems.append(f"this id stands on line {seen[study]} already")
        seen.setdefault(study, line)
        for kind, column, cell in zip(("reference", "prediction"), columns[1:], cells[1:], strict=True):
            problem = _problem(kind, cell)
            if problem:
                problems.append(f"column {column!r}: {problem}")
        faults += [f"{where}: {problem}" for problem in problems]
        if not problems:
            good.append((study, str(cells[1]), str(cells[2])))
    if faults:
        more = [f"and {len(faults) - _SHOWN} more faults"] if len(faults) > _SHOWN else []
        raise DataFault("\n".join(faults[:_SHOWN] + more))
    return good


def _problem(kind: str, cell: Any) -> str | None:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return f'the {kind} is missing (an empty report is written "")'
    if not isinstance(cell, str):
        return f"not a text: {'a list' if isinstance(cell, list) else shown(json.dumps(cell))}"
    if cell.strip().lower() in _MISSING:
        return f"the {kind} is missing: {cell.strip()!r}"
    if re.fullmatch(r"\s*[-+]?\d+([.,]\d+)?([eE][-+]?\d+)?\s*", cell):
        return f"not a text: {cell.strip()[:40]}"
    if kind == "reference" and not cell.strip():
        return "the reference is empty: there is nothing to score against"
    return None
