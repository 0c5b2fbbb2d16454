"""Plots of figures: points with intervals, per-class bars, seeds as dots; the same figures give the same bytes."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.command import UsageError
from zoo.run_directory import atomic_write

# Okabe and Ito's colours, told apart with any colour vision; black and yellow left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
PHANTOM = "phantom, not patients"
GREY = "#6B6B6B"
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "zoo",  # otherwise the ids in an SVG are random
    "svg.fonttype": "path",
    "text.parse_math": False,  # a $ in a name is a $
}


@dataclass(frozen=True)
class Point:
    """A method's figure.

    Attributes:
        label: The method's name, and what else tells it apart.
        value: The figure.
        ci95: Its interval, where it was measured.
        status: `reported`, `recomputed` or `reproduced`; a reported figure is drawn hollow.
    """

    label: str
    value: float
    ci95: tuple[float, float] | None = None
    status: str = "reproduced"


def plot_points(points: Sequence[Point], metric: str, path: Path, *, title: str = "", phantom: bool = False) -> None:
    """Figures of one metric as horizontal points with their 95 % intervals, best on top.

    Args:
        points: The figures; all must be comparable with each other.
        metric: The metric's name for people, at the axis.
        path: A `.png` or `.svg` file, written at once.
        title: Dataset, split and protocol.
        phantom: Whether the figures are the phantom's, which the title then says.

    Raises:
        UsageError: No figure, or another suffix.
        EnvironmentFault: The file cannot be written.
    """
    if not points:
        raise UsageError("there is no figure to plot")
    rows = sorted(points, key=lambda point: -point.value)
    reported = [point.status == "reported" for point in rows]

    def draw(figure: Any) -> None:
        axes = _rows(figure, [point.label for point in rows], metric)
        for place, point in enumerate(rows):
            if point.ci95 is not None:
                axes.plot(point.ci95, (place, place), color=COLOURS[0], linewidth=1.8, solid_capstyle="butt")
            inside = "white" if reported[place] else COLOURS[0]
            axes.plot(point.value, place, "o", color=COLOURS[0], markerfacecolor=inside, markersize=6.5, zorder=3)
            interval = f"  [{point.ci95[0]:.3f}, {point.ci95[1]:.3f}]" if point.ci95 else ""
            _beside(axes, place, f"{point.value:.3f}{interval}")
        _pad(axes, [edge for point in rows for edge in (point.value, *(point.ci95 or ()))])
        kinds = {"as the paper reports it": "white"} if any(reported) else {}
        kinds |= {} if all(reported) else {"scored here; the line is the 95 % interval": COLOURS[0]}
        signs = [
            axes.plot([], [], "o", color=COLOURS[0], markerfacecolor=inside, markersize=6.5, label=kind)[0]
            for kind, inside in kinds.items()
        ]
        legend(figure, signs)

    write_plot(path, draw, _height([point.label for point in rows]), title, phantom)


def plot_classes(
    classes: Mapping[str, Mapping[str, float]],
    path: Path,
    *,
    support: Mapping[str, int] | None = None,
    title: str = "",
    phantom: bool = False,
) -> None:
    """F1 of each class as bars, a group for each class, the most frequent class on top.

    Args:
        classes: Class → system → F1 in [0, 1].
        path: A `.png` or `.svg` file, written at once.
        support: Class → how many references have it; the classes are sorted by it, else kept in their order.
        title: Dataset, split and protocol.
        phantom: Whether the figures are the phantom's.

    Raises:
        UsageError: No class, more systems than there are colours, or another suffix.
        EnvironmentFault: The file cannot be written.
    """
    systems = list(dict.fromkeys(system for row in classes.values() for system in row))
    if not systems:
        raise UsageError("there is no class to plot")
    if len(systems) > len(COLOURS):
        raise UsageError(f"{len(systems)} systems in one plot of classes; plot {len(COLOURS)} at most")
    names = sorted(classes, key=lambda name: -support.get(name, 0)) if support else list(classes)
    labels = [f"{name}  ({support.get(name, 0):,})" if support else name for name in names]
    step = 0.8 / len(systems)

    def draw(figure: Any) -> None:
        from matplotlib.patches import Patch

        brackets = "  (in brackets: references with the class)" if support else ""
        axes = _rows(figure, labels, f"F1{brackets}", lines=False)
        for rank, (system, colour) in enumerate(zip(systems, COLOURS, strict=False)):
            for place, name in enumerate(names):
                value = classes[name].get(system)
                if value is None:
                    continue
                y = place + (rank - (len(systems) - 1) / 2) * step
                axes.barh(y, value, height=0.88 * step, color=colour)
                axes.text(value + 0.008, y, f"{value:.2f}", va="center", fontsize=8, color=GREY)
        axes.set_xlim(0, 1.06)
        axes.set_xticks(np.linspace(0, 1, 6))
        legend(figure, [Patch(color=colour, label=system) for system, colour in zip(systems, COLOURS, strict=False)])

    write_plot(path, draw, 1.2 + len(names) * max(0.3, 0.08 + 0.17 * len(systems)) + 0.2 * len(systems), title, phantom)


def plot_seeds(
    systems: Mapping[str, Sequence[float]], metric: str, path: Path, *, title: str = "", phantom: bool = False
) -> None:
    """The runs of each system as dots, beside them their mean ± standard deviation (ddof 1).

    Args:
        systems: System → the metric's value in each run.
        metric: The metric's name for people, at the axis.
        path: A `.png` or `.svg` file, written at once.
        title: Dataset, split and protocol.
        phantom: Whether the figures are the phantom's.

    Raises:
        UsageError: No run, or another suffix.
        EnvironmentFault: The file cannot be written.
    """
    if not systems or not all(len(values) for values in systems.values()):
        raise UsageError("there is no run to plot")
    names = list(systems)

    def draw(figure: Any) -> None:
        axes = _rows(figure, names, metric)
        edges: list[float] = []
        for place, values in enumerate(systems.values()):
            middle, spread = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            edges += [*values, middle - spread, middle + spread]
            axes.plot(values, [place + 0.14] * len(values), "o", color=COLOURS[0], alpha=0.65, markersize=6,
                      markeredgewidth=0)  # fmt: skip
            axes.errorbar(middle, place - 0.14, xerr=spread or None, fmt="|", color="black", markersize=11,
                          markeredgewidth=1.8, elinewidth=1.4, capsize=3)  # fmt: skip
            runs = f" ± {spread:.3f}  ({len(values)} runs)" if len(values) > 1 else "  (1 run)"
            _beside(axes, place, f"{middle:.3f}{runs}")
        _pad(axes, edges)
        dot = axes.plot([], [], "o", color=COLOURS[0], alpha=0.65, markeredgewidth=0, markersize=6, label="a run")[0]
        bar = axes.plot([], [], "|", color="black", markersize=11, markeredgewidth=1.8, label="mean ± sd over runs")[0]
        legend(figure, [dot, bar])

    write_plot(path, draw, _height(names, 0.42), title, phantom)


def _rows(figure: Any, labels: Sequence[str], what: str, lines: bool = True) -> Any:
    """Axes with a row for each label, the first on top."""
    axes = figure.add_subplot()
    axes.set_yticks(range(len(labels)), [textwrap.fill(label, _WRAP) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    if lines:
        axes.hlines(
            range(len(labels)), 0, 1, transform=axes.get_yaxis_transform(), color="#F1F1F1", linewidth=0.8, zorder=0
        )
    axes.set_xlabel(what)
    return axes


_WRAP = 44  # characters of a label in a line


def _height(labels: Sequence[str], line: float = 0.31) -> float:
    """Inches for the axis, the legend and as many rows as there are labels; a wrapped label takes more."""
    tallest = max(len(textwrap.wrap(label, _WRAP)) for label in labels)
    return 1.2 + len(labels) * max(line, 0.07 + 0.17 * tallest)


def _beside(axes: Any, place: float, text: str) -> None:
    axes.text(1.015, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)


def _pad(axes: Any, values: Sequence[float]) -> None:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    axes.set_xlim(low - margin if low < 0 else max(low - margin, -margin / 6), high + margin)


def legend(figure: Any, handles: Sequence[Any]) -> None:
    fits = sum(len(handle.get_label()) for handle in handles[:3]) < 110
    columns = min(3, len(handles)) if fits else 1
    figure.legend(handles=handles, loc="outside lower left", ncols=columns, frameon=False, fontsize=9)


def write_plot(path: Path, draw: Callable[[Any], None], height: float, title: str, phantom: bool) -> None:
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("png", "svg"):
        raise UsageError(f"{path}: the plot's name must end in .png or .svg")
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with rc_context(_STYLE):
        # Without pyplot there is no display to ask for, and no state that outlives the figure.
        heading = [PHANTOM] * phantom + textwrap.wrap(title, 90)
        size = (9, height + 0.19 * len(heading))
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))
        draw(figure)
        if heading:
            figure.suptitle("\n".join(heading), x=0.014, ha="left", fontsize=11, fontweight="bold")
        content = io.BytesIO()
        figure.savefig(content, format=kind, dpi=120, metadata={"svg": {"Date": None}, "png": {"Software": None}}[kind])
    atomic_write(path, content.getvalue())
