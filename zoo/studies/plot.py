"""A study's plot: a panel for each metric, lines along the axis that arms vary, or a dot for each seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from zoo.leaderboard.plots import COLOURS, GREY, legend, write_plot
from zoo.studies.results import Results, Row, metric_label

# Told apart without colour, too.
MARKERS, DASHES = ("o", "s", "^", "D", "v", "P"), ("-", "--", "-.", ":")
FLAT = ((0, (6, 2)), (0, (1, 1.5)), (0, (4, 2, 1, 2)), (0, (10, 3)))  # of horizontal lines
PER_ROW = 3  # small panels in a row


def plot_study(results: Results, path: Path) -> None:
    """Draws the metrics of a study, the first one large: mean and sd over seeds, and every seed's figure as a dot.

    Args:
        results: The figures.
        path: A `.png` or `.svg` file, written at once.

    Raises:
        EnvironmentFault: The file cannot be written.
    """
    metrics = [key for key in results.design.metrics if any(row.figures[key] for row in results.rows)]
    if not metrics:
        return
    arms = list(dict.fromkeys(row.point.arm for row in results.rows))
    large, small = (3.6, 2.4) if results.design.axis else (0.7 + 0.36 * len(arms),) * 2
    rows = math.ceil((len(metrics) - 1) / PER_ROW)

    def draw(figure: Any) -> None:
        columns = min(PER_ROW, max(1, len(metrics) - 1))
        grid = figure.add_gridspec(1 + rows, columns, height_ratios=[large] + [small] * rows)
        handles: dict[str, Any] = {}
        for number, metric in enumerate(metrics):
            line, column = divmod(number - 1, columns)
            axes = figure.add_subplot(grid[0, :] if number == 0 else grid[1 + line, column])
            if results.design.axis:
                handles |= _along(axes, results, arms, metric, large=number == 0)
                axes.tick_params(axis="x", labelsize=8 if number else 10)
            else:
                handles |= _dots(axes, results.rows, metric, named=number == 0 or column == 0)
        legend(figure, list(handles.values()))

    title = f"{results.design.description.rstrip('.')}. {results.title()}".removeprefix(". ")
    height = large + small * rows + 0.3 * (1 + rows) + 0.25 * math.ceil(len(arms) / 3) + 0.3
    write_plot(path, draw, height, title.replace("phantom, not patients: ", ""), results.scored["phantom"])


def _along(axes: Any, results: Results, arms: Sequence[str], metric: str, large: bool) -> dict[str, Any]:
    """Lines with a band of one sd; an arm without an axis as a horizontal line. Returns arm → legend handle."""
    from matplotlib.patches import Patch

    places = _places(results)
    handles = {}
    flat = islice(cycle(FLAT), len(arms))
    for number, arm in enumerate(arms):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        rows = [row for row in results.rows if row.point.arm == arm and row.figures[metric]]
        if not rows:
            continue
        means = np.array([row.mean(metric) for row in rows], dtype=float)
        sds = np.array([row.sd(metric) or 0.0 for row in rows])
        if rows[0].point.at is None:
            handles[arm] = axes.axhline(means[0], color=colour, linestyle=next(flat), linewidth=1.8, label=arm)
            axes.axhspan(means[0] - sds[0], means[0] + sds[0], color=colour, alpha=0.12, linewidth=0)
            continue
        x = np.array([places[row.point.at] for row in rows], dtype=float)
        style = {"color": colour, "marker": marker, "linestyle": DASHES[number % len(DASHES)], "linewidth": 1.8}
        handles[arm] = axes.plot(x, means, markersize=6, label=arm, zorder=3, **style)[0]
        axes.fill_between(x, means - sds, means + sds, color=colour, alpha=0.2, linewidth=0)
        for at, row in zip(x, rows, strict=True):
            seeds = list(row.figures[metric].values())
            axes.plot([at] * len(seeds), seeds, marker, color=colour, markersize=3.5, alpha=0.5, markeredgewidth=0)
    if any(row.sd(metric) for row in results.rows):
        handles["±"] = Patch(color=GREY, alpha=0.3, label="± sd over seeds; small marks: a seed each")
    axes.set_xlabel(results.design.axis)
    axes.set_ylabel(metric_label(metric))
    axes.set_xticks(list(places.values()), _spaced(places, 0.02 if large else 0.08))
    axes.grid(axis="y")
    return handles


def _places(results: Results) -> dict[Any, float]:
    """Value on the axis → where it stands: numbers by size, anything else side by side."""
    values = list(dict.fromkeys(row.point.at for row in results.rows if row.point.at is not None))
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    return {value: value for value in sorted(values)} if numbers else {value: at for at, value in enumerate(values)}


def _spaced(places: Mapping[Any, float], least: float) -> list[str]:
    """The places' names, empty where one would stand closer to the last than `least` of the axis."""
    reach = max(places.values()) - min(places.values())
    labels, last = [], -math.inf
    for name, place in places.items():
        far = place - last >= least * reach
        labels.append(str(name) if far else "")
        last = place if far else last
    return labels


def _dots(axes: Any, rows: Sequence[Row], metric: str, named: bool) -> dict[str, Any]:
    """A row for each point: seeds as dots, mean ± sd as a bar below them. Returns what the signs mean."""
    handles = {}
    for place, row in enumerate(rows):
        values = list(row.figures[metric].values())
        if not values:
            continue
        dots = axes.plot(values, [place - 0.14] * len(values), "o", color=COLOURS[0], alpha=0.65, markersize=6,
                         markeredgewidth=0, label="a seed")  # fmt: skip
        bar = axes.errorbar(row.mean(metric), place + 0.14, xerr=row.sd(metric), fmt="|", color="black", markersize=11,
                            markeredgewidth=1.8, elinewidth=1.4, capsize=3, label="mean ± sd over seeds")  # fmt: skip
        handles = {"seed": dots[0], "mean": bar}
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [row.point.name for row in rows] if named else [""] * len(rows))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.hlines(range(len(rows)), 0, 1, transform=axes.get_yaxis_transform(), color="#F1F1F1", linewidth=0.8, zorder=0)
    axes.grid(axis="x")
    axes.set_xlabel(metric_label(metric))
    return handles
