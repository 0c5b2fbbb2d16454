"""A study's figures of single cases: quartiles at every point, and changes from point to point on the same cases.

A case is a study of the test split; with several seeds it has a report in each. Quartiles are over all of these, as a
box shows what a single report is like; a change is that of a case's mean, as its reports are not independent.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from datamodules.study import DataFault
from zoo.leaderboard.render import label_of
from zoo.metrics.per_study import UNITS, StudyTable, read_table
from zoo.metrics.protocols import PROTOCOLS
from zoo.metrics.significance import bootstrap_ci, mean, resample
from zoo.run_directory import RunDirectory
from zoo.studies.design import Point


@dataclass(frozen=True, eq=False)
class Reports:
    """A point's reports, case by case.

    Attributes:
        point: The point.
        tables: Seed → the per-study table of its run, all of one protocol.
    """

    point: Point
    tables: Mapping[int, StudyTable]

    @cached_property
    def cases(self) -> list[str]:
        """The cases' ids, in order."""
        return sorted({case for table in self.tables.values() for case in table.ids})

    def values(self, metric: str) -> np.ndarray:
        """The metric of every report, seed after seed, `(report,)`; empty where reports have none of their own."""
        own = [table.columns[metric] for table in self.tables.values() if metric in table.columns]
        return np.concatenate(own) if own else np.empty(0)

    def all_have(self, metric: str) -> bool:
        """Whether every report has the metric."""
        return all(metric in table.columns for table in self.tables.values())

    def means(self, metric: str) -> np.ndarray:
        """Each case's mean over its reports, which must all have the metric, `(case,)`, in the order of `cases`."""
        own: dict[str, list[float]] = {}
        for table in self.tables.values():
            for case, value in zip(table.ids, table.columns[metric], strict=True):
                own.setdefault(case, []).append(value)
        return np.array([np.mean(own[case]) for case in self.cases])


@dataclass(frozen=True)
class Quartiles:
    """What single reports of a point are like in one metric.

    Attributes:
        point: The point's name.
        arm: Its arm's.
        at: Its place on the axis.
        metric: The metric's key.
        cases: How many there are.
        seeds: How many runs reported on them.
        reports: How many reports the quartiles are of.
        minimum: The least value.
        q1: A quarter of the reports lie below; interpolated linearly, as the other two.
        median: Half of them.
        q3: Three quarters.
        maximum: The largest value.
    """

    point: str
    arm: str
    at: Any
    metric: str
    cases: int
    seeds: int
    reports: int
    minimum: float
    q1: float
    median: float
    q3: float
    maximum: float


@dataclass(frozen=True)
class Change:
    """How a metric of the same cases changes between neighbouring points of an axis.

    Attributes:
        before: The name of the point that comes first in the study's file.
        after: Of the next one.
        metric: The metric's key.
        change: Mean over cases of `after` − `before`.
        ci95: Its bootstrap interval; `None` where there is nothing to draw from.
    """

    before: str
    after: str
    metric: str
    change: float
    ci95: tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class Cases:
    """The cases of a study.

    Attributes:
        rows: The points that have any, in the order of the study's table.
        metrics: Those of the study's metrics that a single report has.
    """

    rows: tuple[Reports, ...]
    metrics: tuple[str, ...]

    @cached_property
    def paired(self) -> dict[str, list[Reports]]:
        """The arms whose points, two or more, have the same cases."""
        arms: dict[str, list[Reports]] = {}
        for row in self.rows:
            arms.setdefault(row.point.arm, []).append(row)
        return {arm: rows for arm, rows in arms.items() if len(rows) > 1 and _same_cases(rows)}

    @property
    def unit(self) -> str:
        """What the intervals of changes resample."""
        columns = {name for row in self.rows for table in row.tables.values() for name in table.columns}
        return next((several for one, several in UNITS.items() if one in columns), "cases")

    def design(self) -> str:
        """Which points can be compared case by case, for a caption."""
        if len(self.rows) < 2:
            return f"{len(self.rows[0].cases)} cases"
        if _same_cases(self.rows):
            return f"paired: the same {len(self.rows[0].cases)} cases at every point"
        arms = [f"the same {len(rows[0].cases)} cases at every point of {arm!r}" for arm, rows in self.paired.items()]
        return f"paired: {', '.join(arms)}" if arms else "not paired: the points differ in their cases"

    def quartiles(self) -> list[Quartiles]:
        """Point by point, metric by metric."""
        return [
            Quartiles(row.point.name, row.point.arm, row.point.at, metric, len(row.cases), len(row.tables), len(values),
                      *np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist())
            for row in self.rows
            for metric in self.metrics
            if len(values := row.values(metric))
        ]  # fmt: skip

    def changes(self) -> list[Change]:
        """Between neighbours on the axes of arms that are paired, metric by metric."""
        return [
            _change(before, after, metric)
            for rows in self.paired.values()
            for before, after in pairwise(rows)
            for metric in self.metrics
            if before.all_have(metric) and after.all_have(metric)
        ]

    def as_json(self) -> dict[str, Any]:
        """Quartiles and changes as plain data."""
        return {
            "paired": self.design(),
            "intervals": f"percentile bootstrap over {self.unit}",
            "quartiles": [asdict(row) for row in self.quartiles()],
            "changes": [asdict(row) for row in self.changes()],
        }

    def comma_separated(self) -> str:
        """`cases.csv`: a row for each point and metric, all digits."""
        text = io.StringIO()
        rows = csv.DictWriter(text, list(Quartiles.__dataclass_fields__), lineterminator="\n")
        rows.writeheader()
        rows.writerows(map(asdict, self.quartiles()))
        return text.getvalue()


def _same_cases(rows: Sequence[Reports]) -> bool:
    """Whether the points have the same cases, in each seed too that they have runs of: seeds may draw others."""
    of_seed: dict[int, set[frozenset[str]]] = {}
    for row in rows:
        for seed, table in row.tables.items():
            of_seed.setdefault(seed, set()).add(frozenset(table.ids))
    return all(row.cases == rows[0].cases for row in rows) and all(len(sets) == 1 for sets in of_seed.values())


def _change(before: Reports, after: Reports, metric: str) -> Change:
    changes = after.means(metric) - before.means(metric)
    drawn = resample(changes[:, None], _clusters(before))
    interval = None if drawn is None else bootstrap_ci(drawn[0], mean, drawn[1])
    return Change(before.point.name, after.point.name, metric, float(changes.mean()), interval)


def _clusters(row: Reports) -> list[str]:
    """For each of the cases the first one of its patient or examination, as any seed's table joins them."""
    joined = {case: {case} for case in row.cases}
    for table in row.tables.values():
        parts: dict[float, list[str]] = {}
        for case, number in zip(table.ids, table.clusters if table.clusters is not None else (), strict=False):
            parts.setdefault(number, []).append(case)
        for part in parts.values():
            whole = set().union(*(joined[case] for case in part))
            joined |= dict.fromkeys(whole, whole)
    return [min(joined[case]) for case in row.cases]


def read_cases(
    points: Sequence[Point], metrics: Sequence[str], done: Mapping[tuple[str, int], RunDirectory]
) -> tuple[Cases | None, list[str]]:
    """Reads the per-study tables of the runs that are done.

    Args:
        points: In the order of the study's table.
        metrics: Those of the study's that any run has.
        done: Point's name and seed → run.

    Returns:
        The cases, `None` where no run tells of any; and what there is to know about them, a sentence each.
    """
    rows, notes = [], []
    for point in points:
        tables = {}
        for seed in point.runs:
            if (run := done.get((point.name, seed))) is None:
                continue
            try:
                tables[seed] = read_table(run.per_study)
            except DataFault as fault:
                notes.append(f"{point.name}, seed {seed}: no cases: {fault}")
        if tables:
            rows.append(Reports(point, tables))
    known = [metric for metric in metrics if any(len(row.values(metric)) for row in rows)]
    notes += _notes(metrics, known, rows)
    return (Cases(tuple(rows), tuple(known)) if known else None), notes


def _notes(metrics: Sequence[str], known: Sequence[str], rows: Sequence[Reports]) -> Iterator[str]:
    """Which metrics a single report has not, and of which its value is another one than the table's."""
    lacking = [metric for metric in metrics if metric not in known]
    if groups := [label_of(metric.rpartition("/")[2]) for metric in lacking if "/" in metric]:
        yield f"No box for {', '.join(groups)} of a group: the runs' per_study.csv does not tell groups apart."
    if others := [label_of(metric) for metric in lacking if "/" not in metric]:
        yield f"No box for {', '.join(others)}: the runs' per_study.csv holds no value of single cases."
    for protocol in dict.fromkeys(table.protocol for row in rows for table in row.tables.values()):
        rules = PROTOCOLS[protocol].metrics
        if corpus := [key for key in known if key in rules and rules[key].corpus]:
            names = ", ".join(label_of(key) for key in corpus)
            yield (
                f"Single cases have their report's own value of {names}, by the same protocol "
                f"({rules[corpus[0]].how}); means over seeds are of the whole corpus, and not the cases' mean."
            )
