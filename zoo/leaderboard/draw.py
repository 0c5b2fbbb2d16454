"""Which plot a request asks for: a metric of the board, or of a comparison, with what may not be mixed refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zoo.command import UsageError
from zoo.leaderboard.board import Row, difference
from zoo.leaderboard.plots import Point, plot_classes, plot_points, plot_seeds
from zoo.leaderboard.render import label_of, method_text, title_of

if TYPE_CHECKING:
    from zoo.leaderboard.compare import Comparison
    from zoo.leaderboard.systems import System


def draw_board(rows: Sequence[Row], metric: str, path: Path) -> None:
    """Draws one metric of rows that may be compared with each other.

    Raises:
        UsageError: No row has the metric, or two of them must not be compared.
    """
    shown = [row for row in rows if metric in row.figures]
    if not shown:
        known = ", ".join(sorted({key for row in rows for key in row.figures}))
        raise UsageError(f"no row has the metric {metric!r}; there are: {known}")
    for place, row in enumerate(shown):
        reason = next((found for other in shown[:place] if (found := difference(other, row))), None)
        if reason:
            raise UsageError(
                f"these rows must not stand in one plot ({row.method}, {row.source}: {reason}); narrow them down with "
                "--dataset, --protocol, --status, --method or --phantom"
            )
    points = [
        Point(f"{method_text(row)} ({row.source})", row.figures[metric].value, row.figures[metric].ci95, row.status)
        for row in shown
    ]
    plot_points(points, label_of(metric), path, title=title_of(shown[0]), phantom=shown[0].phantom)


def draw_comparison(systems: Sequence[System], found: Comparison, metric: str | None, path: Path) -> None:
    """Draws a comparison: points with intervals, the runs of each system as dots, or bars for each class.

    Args:
        systems: What was compared.
        found: The comparison.
        metric: One of its metrics (its first by default), or a set of labels such as `chexbert_14`.
        path: The picture.

    Raises:
        UsageError: There is no such metric.
    """
    metric = metric or next(iter(found.metrics))
    title = f"{found.n} studies, protocol {found.protocol} version {found.version}"
    if metric not in found.metrics:
        classes, support = _classes(systems, metric)
        plot_classes(classes, path, support=support, title=title, phantom=found.phantom)
    elif all(len(system.runs) == 1 for system in systems):
        entries = found.metrics[metric]
        points = [Point(system.name, entries[system.name].value, entries[system.name].ci95) for system in systems]
        plot_points(points, label_of(metric), path, title=title, phantom=found.phantom)
    else:
        values = {name: entry.values for name, entry in found.metrics[metric].items()}
        plot_seeds(values, label_of(metric), path, title=title, phantom=found.phantom)


def _classes(systems: Sequence[System], name: str) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Label → system → F1, and each label's number of references.

    Raises:
        UsageError: A system has several runs, the systems have different studies, or one lacks these labels.
    """
    from zoo.metrics.labels import class_figures
    from zoo.metrics.per_study import statistics_columns
    from zoo.metrics.protocols import PROTOCOLS

    metrics = PROTOCOLS[systems[0].runs[0].table.protocol].metrics
    corpus = next(
        (
            metric.corpus
            for metric in metrics.values()
            if metric.corpus and metric.corpus.labels and metric.corpus.name == name
        ),
        None,
    )
    columns = statistics_columns(corpus) if corpus else []
    if corpus is None or not all(set(columns) <= set(system.runs[0].table.columns) for system in systems):
        raise UsageError(
            f"no metric and no set of labels {name!r} in all of these; compared were the metrics that all have"
        )
    if any(len(system.runs) > 1 for system in systems):
        raise UsageError("bars for each class are drawn of one run a system")
    if len({frozenset(system.runs[0].table.ids) for system in systems}) > 1:
        raise UsageError("bars for each class are drawn of systems on the same studies")
    classes: dict[str, dict[str, float]] = {label: {} for label in corpus.labels}
    support: dict[str, int] = {}
    for system in systems:
        sums = np.array([system.runs[0].table.columns[column].sum() for column in columns])
        for label, figures in class_figures(sums, corpus.labels).items():
            classes[label][system.name] = figures["f1"]
            support[label] = int(figures["support"])
    return classes, support
