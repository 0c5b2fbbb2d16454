"""The per-study table: what intervals and tests need of every study, in numbers, without any text."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.study import DataFault
from zoo.metrics.pairs import Corpus, Score
from zoo.metrics.protocols import PROTOCOLS, Metric
from zoo.metrics.significance import Aggregate, mean

UNITS = {"patient": "patients", "examination": "examinations"}  # what studies may share; the wider one first
_HEAD = re.compile(r"# protocol (\w+) version (\d{1,9})")


@dataclass(frozen=True)
class Clusters:
    """Studies that belong together, as those of one patient do: resamples take all of them, or none.

    Attributes:
        unit: What they share, a key of `UNITS`; also the name of their column in the per-study table.
        names: Each study's patient or examination, `(study,)`.
    """

    unit: str
    names: Sequence[Hashable]

    def numbers(self) -> np.ndarray:
        """The names' numbers in the order of their first study, `(study,)`."""
        places = {name: place for place, name in enumerate(dict.fromkeys(self.names))}
        return np.array([places[name] for name in self.names])


@dataclass(frozen=True, eq=False)
class StudyTable:
    """One row a study.

    Attributes:
        ids: The studies' ids, or their hashes in a submission.
        columns: Name → `(study,)`: `<metric key>` holds the studies' own values, `<corpus name>.<column>` what a corpus
            metric sums; `patient` or `examination`, where studies share these, the number of a study's.
        protocol: The protocol's id.
        version: The protocol's version.
    """

    ids: list[str]
    columns: Mapping[str, np.ndarray]
    protocol: str
    version: int

    @property
    def clusters(self) -> np.ndarray | None:
        """The number of each study's patient, else of its examination, `(study,)`; `None` where none are shared."""
        return next((self.columns[unit] for unit in UNITS if unit in self.columns), None)

    def keys(self) -> list[str]:
        """The protocol's metrics that can be computed from this table, in the protocol's order."""
        return [key for key, metric in self._metrics().items() if set(_needed(key, metric)) <= set(self.columns)]

    def metric(self, key: str) -> tuple[np.ndarray, Aggregate]:
        """A metric's statistics and how its value comes from their sums.

        Returns:
            `(study, column)` and a function `(sums (…, column), number of studies) → value (…)`.

        Raises:
            DataFault: The protocol has no such metric, or this table lacks its columns.
        """
        metric = self._metrics().get(key)
        if metric is None or not set(_needed(key, metric)) <= set(self.columns):
            raise DataFault(f"no metric {key!r} in this table; it holds {', '.join(self.keys()) or 'none'}")
        table = np.stack([self.columns[name] for name in _needed(key, metric)], axis=1)
        if metric.corpus is None:
            return table, mean
        formula = metric.corpus.formula
        return table, lambda sums, n: formula(sums)

    def _metrics(self) -> Mapping[str, Metric]:
        return PROTOCOLS[self.protocol].metrics


def _needed(key: str, metric: Metric) -> list[str]:
    return [key] if metric.corpus is None else statistics_columns(metric.corpus)


def statistics_columns(corpus: Corpus) -> list[str]:
    """The names of a corpus metric's columns in the table."""
    return [f"{corpus.name}.{column}" for column in corpus.columns]


def columns_of(key: str, metric: Metric, score: Score) -> dict[str, np.ndarray]:
    """A score's columns."""
    columns = {} if score.values is None else {key: score.values}
    if metric.corpus is not None and score.statistics is not None:
        columns |= dict(zip(statistics_columns(metric.corpus), score.statistics.T, strict=True))
    return columns


def write_table(path: Path, table: StudyTable) -> None:
    """Writes the table as CSV, under a first line that names its protocol; floats come back as they were."""
    from zoo.run_directory import atomic_write

    text = io.StringIO()
    print(f"# protocol {table.protocol} version {table.version}", file=text)
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["id", *table.columns])
    columns = [[_short(value) for value in column.tolist()] for column in table.columns.values()]
    rows.writerows(zip(table.ids, *columns, strict=True))
    atomic_write(path, text.getvalue())


def table_of(ids: Sequence[str], result: dict[str, Any]) -> StudyTable:
    """`engine.evaluate`'s `per_study` as a table; it is taken out of the dictionary."""
    columns = {name: np.asarray(column, dtype=np.float64) for name, column in result.pop("per_study").items()}
    return StudyTable(list(ids), columns, result["protocol"], result["version"])


def _short(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def read_table(path: Path) -> StudyTable:
    """Reads what `write_table` wrote.

    Raises:
        DataFault: The file is no such table, or it is of a protocol or a version that is not this program's.
    """
    try:
        first, _, rest = path.read_text(encoding="utf-8").partition("\n")
        lines = list(csv.reader(io.StringIO(rest)))
    except OSError as error:
        raise DataFault(f"{path}: {error.strerror or error}") from error
    except (ValueError, csv.Error) as error:
        raise DataFault(f"{path}: not a per-study table") from error
    head = _HEAD.fullmatch(first)
    if not head or len(lines) < 2:
        raise DataFault(f"{path}: not a per-study table (its first line should read: # protocol <id> version <number>)")
    protocol, version = head[1], int(head[2])
    if protocol not in PROTOCOLS or PROTOCOLS[protocol].version != version:
        known = ", ".join(f"{name} version {rules.version}" for name, rules in PROTOCOLS.items())
        raise DataFault(
            f"{path}: of protocol {protocol} version {version}, and this program knows {known}; score it anew"
        )
    header, *rows = lines
    if header[:1] != ["id"] or len(set(header)) != len(header) or any(len(row) != len(header) for row in rows):
        raise DataFault(f"{path}: its rows do not fit its header")
    try:
        numbers = np.array([[float(cell) for cell in row[1:]] for row in rows], dtype=np.float64)
    except ValueError as error:
        raise DataFault(f"{path}: a value is no number") from error
    ids = [row[0] for row in rows]
    if len(set(ids)) != len(ids) or not np.isfinite(numbers).all():
        raise DataFault(f"{path}: an id comes twice, or a value is not finite")
    return StudyTable(ids, dict(zip(header[1:], numbers.T, strict=True)), protocol, version)
