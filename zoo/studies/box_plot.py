"""A study's box plot: a panel for each metric, a box over cases for each point, the reports as dots."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.leaderboard.plots import COLOURS, GREY, legend, write_plot
from zoo.studies.cases import Cases, Reports
from zoo.studies.results import Results, metric_label

WHISKERS = 1.5  # interquartile ranges, Tukey's
_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples, cut to [0, 1), lie evenly however many there are


def plot_boxes(results: Results, cases: Cases, path: Path) -> None:
    """Draws quartiles and reports of every point: along the axis from left to right, without one a row for each arm.

    Args:
        results: The study's figures.
        cases: Its cases.
        path: A `.png` or `.svg` file, written at once.

    Raises:
        EnvironmentFault: The file cannot be written.
    """
    upright = results.design.axis is not None
    slots = _slots(cases.rows)
    arms = list(dict.fromkeys(row.point.arm for row in cases.rows))
    colours = {arm: COLOURS[number % len(COLOURS)] if upright else COLOURS[0] for number, arm in enumerate(arms)}
    columns = min(len(cases.metrics), 3 if len(cases.rows) <= 8 else 2 if len(cases.rows) <= 16 else 1)
    lines = math.ceil(len(cases.metrics) / columns)
    height = (2.9 if upright else 0.7 + 0.36 * len(slots)) * lines

    def draw(figure: Any) -> None:
        grid = figure.add_gridspec(lines, columns)
        for number, metric in enumerate(cases.metrics):
            line, column = divmod(number, columns)
            axes = figure.add_subplot(grid[line, column])
            for place, slot in enumerate(slots):
                _slot(axes, place, slot, metric, colours, upright)
            if results.design.axis:
                _upright(axes, slots, metric_label(metric), results.design.axis)
            else:
                _lying(axes, slots, metric_label(metric), named=column == 0)
        legend(figure, _signs(cases, colours if upright and len(arms) > 1 else {}))

    title = f"{results.design.description.rstrip('.')}. {results.title()}; {cases.design()}".removeprefix(". ")
    title = title.replace("phantom, not patients: ", "")
    write_plot(path, draw, height + 0.9 + 0.2 * math.ceil(len(arms) / 3), title, results.scored["phantom"])


def _slots(rows: Sequence[Reports]) -> list[list[Reports]]:
    """What stands side by side at one place: the points of one value on the axis; behind them arms without an axis."""
    along: dict[Any, list[Reports]] = {}
    for row in rows:
        if row.point.at is not None:
            along.setdefault(row.point.at, []).append(row)
    return [*along.values(), *([row] for row in rows if row.point.at is None)]


def _slot(axes: Any, place: int, slot: Sequence[Reports], metric: str, colours: dict[str, str], upright: bool) -> None:
    width = 0.72 / len(slot)
    for number, row in enumerate(slot):
        values, colour = row.values(metric), colours[row.point.arm]
        if not len(values):
            continue
        middle = place + (number - (len(slot) - 1) / 2) * width
        axes.boxplot(
            [values],
            positions=[middle],
            widths=0.86 * width,
            whis=WHISKERS,
            orientation="vertical" if upright else "horizontal",
            manage_ticks=False,
            showfliers=False,  # they are among the dots
            patch_artist=True,
            boxprops={"facecolor": f"{colour}38", "edgecolor": colour},
            medianprops={"color": colour, "linewidth": 2.2},
            whiskerprops={"color": colour},
            capprops={"color": colour},
        )
        aside = middle + (np.arange(1, len(values) + 1) * _GOLDEN % 1 - 0.5) * 0.6 * width
        spots = (aside, values) if upright else (values, aside)
        size = 3.5 if len(values) <= 100 else 2
        axes.plot(*spots, "o", color=colour, alpha=0.35, markersize=size, markeredgewidth=0)


def _count(slot: Sequence[Reports]) -> str:
    return "/".join(str(count) for count in dict.fromkeys(len(row.cases) for row in slot))


def _upright(axes: Any, slots: Sequence[Sequence[Reports]], label: str, axis: str) -> None:
    names = [str(row.point.arm if row.point.at is None else row.point.at) for row, *_ in slots]
    labels = [
        f"{textwrap.fill(name, 14, break_long_words=False)}\n{_count(slot)}"
        for name, slot in zip(names, slots, strict=True)
    ]
    axes.set_xticks(range(len(slots)), labels, fontsize=8)
    axes.set_xlim(-0.6, len(slots) - 0.4)
    axes.set_xlabel(axis, fontsize=9)
    axes.set_ylabel(label)
    axes.grid(axis="y")


def _lying(axes: Any, slots: Sequence[Sequence[Reports]], label: str, named: bool) -> None:
    names = [f"{textwrap.fill(row.point.name, 30)}  n={len(row.cases)}" for row, *_ in slots]
    axes.set_yticks(range(len(slots)), names if named else [""] * len(slots))
    axes.set_ylim(len(slots) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(label)
    axes.grid(axis="x")


def _signs(cases: Cases, colours: dict[str, str]) -> list[Any]:
    """Arms by colour, and what boxes and dots are."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    seeds = max(len(row.tables) for row in cases.rows)
    report = f"{'a case' if seeds == 1 else f'a case in one of {seeds} seeds'}; in the last line, how many cases"
    box = f"median, quartiles; whiskers to the farthest within {WHISKERS} box lengths"
    return [
        *(Patch(facecolor=f"{colour}38", edgecolor=colour, label=arm) for arm, colour in colours.items()),
        Patch(facecolor=f"{GREY}38", edgecolor=GREY, label=box),
        Line2D([], [], color=GREY, marker="o", linestyle="", alpha=0.5, markersize=4, markeredgewidth=0, label=report),
    ]
