"""Heatmaps of one film side by side, as Overlay-SFT's Fig. 6: a row a model, what it saw beside what it answered to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_modules.report_generator import Heatmap
from zoo.command import UsageError
from zoo.gallery.radiograph import SEQUENTIAL
from zoo.gallery.slices import outline
from zoo.leaderboard.plots import write_plot

_SIDE = 3.7  # inches of a panel's width
_OUTLINE = "#56E0FF"


@dataclass(frozen=True, eq=False)
class HeatmapRow:
    """One row of the figure.

    Attributes:
        name: What tells its model from the others, e.g. "without guidance".
        image: What the model saw: `(row, column)` or `(row, column, channel)`, uint8.
        heatmap: Where it looked; not signed.
        mask: `(row, column)` as large as the image, outlined in both panels; `None` or empty: no outline.
        note: What stands below the heatmap, e.g. its contrast.
    """

    name: str
    image: np.ndarray
    heatmap: Heatmap
    mask: np.ndarray | None = None
    note: str = ""


def draw_heatmaps(rows: Sequence[HeatmapRow], path: Path, *, title: str = "", phantom: bool = False) -> None:
    """Draws the rows below each other, their heatmaps on one scale: equal colours are equal values in the whole figure.

    Args:
        rows: At least one.
        path: A `.png` or `.svg` file, written at once.
        title: What the figure shows.
        phantom: Whether the films are the phantom's, which the title then says.

    Raises:
        UsageError: No row, another suffix, or a mask of another size than its image.
        EnvironmentFault: The file cannot be written.
    """
    if not rows:
        raise UsageError("there is no heatmap to draw")
    for row in rows:
        if row.mask is not None and row.mask.shape != row.image.shape[:2]:
            raise UsageError(f"{row.name}: the mask is {row.mask.shape}, its image {row.image.shape[:2]}")
    values = np.concatenate([row.heatmap.values[np.isfinite(row.heatmap.values)] for row in rows])
    scale = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    heights = [_SIDE * row.image.shape[0] / row.image.shape[1] for row in rows]

    def draw(figure: Any) -> None:
        panels = figure.subplots(len(rows), 2, squeeze=False, height_ratios=heights)
        for row, (seen, looked) in zip(rows, panels, strict=True):
            _film(seen, row, row.image)
            seen.set_ylabel(row.name, fontsize=11)
            grey = row.image if row.image.ndim == 2 else row.image.mean(-1)
            _film(looked, row, grey)
            drawn = _lay_over(looked, row.heatmap, scale)
            looked.set_xlabel(row.note, fontsize=9)
        panels[0, 0].set_title("what the model saw", fontsize=10)
        panels[0, 1].set_title(rows[0].heatmap.title, fontsize=10)
        bar = figure.colorbar(drawn, ax=panels[:, 1], fraction=0.05, aspect=20 * len(rows))
        bar.ax.set_facecolor("0.4")  # below clear colours, as the film is

    write_plot(path, draw, sum(heights) + 0.3 * len(rows) + 0.3, title, phantom)


def _film(axes: Any, row: HeatmapRow, picture: np.ndarray) -> None:
    """The picture with the mask's outline, in pixels from the upper left corner."""
    height, width = picture.shape[:2]
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    for polygon in outline(row.mask) if row.mask is not None else ():
        axes.fill(*polygon.T, fill=False, edgecolor=_OUTLINE, linewidth=1.2)
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=(), yticks=())
    axes.spines[:].set_visible(False)


def _lay_over(axes: Any, heatmap: Heatmap, scale: tuple[float, float]) -> Any:
    """The heatmap where it lies on the film, smooth between the middles of its cells."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list(
        "heat", [(red / 255, green / 255, blue / 255, alpha) for red, green, blue, alpha in SEQUENTIAL]
    )
    width, height = axes.get_xlim()[1], axes.get_ylim()[0]
    x0, y0, x1, y1 = heatmap.frame
    drawn = axes.imshow(
        np.ma.masked_invalid(heatmap.values),
        cmap=colours,
        vmin=scale[0],
        vmax=scale[1],
        interpolation="bilinear",
        extent=(x0 * width, x1 * width, y1 * height, y0 * height),
    )
    axes.set(xlim=(0, width), ylim=(height, 0))
    return drawn
