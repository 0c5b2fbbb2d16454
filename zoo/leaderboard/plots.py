"""Plots of figures: points with intervals, per-class bars, seeds as dots. PNG or SVG; the same figures give the same bytes."""

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
_GREY = "#6B6B6B"
_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GREY,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "zoo",  # otherwise the ids in an SVG are random
    "svg.fonttype": "path",
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
