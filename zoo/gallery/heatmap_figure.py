"""Heatmaps of one film side by side, as Overlay-SFT's Fig. 6: a row a model, the film beside where the model looked."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_modules.report_generator import Heatmap
from zoo.command import UsageError
from zoo.gallery.radiograph import DIVERGING, SEQUENTIAL
from zoo.gallery.slices import outline
from zoo.leaderboard.plots import write_plot

_SIDE = {2: 3.7, 3: 2.6}  # columns → inches of a panel's width
_LINES = 7.5  # of small letters that an inch holds
_OUTLINE = "#56E0FF"


@dataclass(frozen=True, eq=False)
class HeatmapRow:
    """One row of the figure.

    Attributes:
        name: What tells its model from the others, e.g. "without guidance".
        image: The film, `(row, column)` or `(row, column, channel)`, uint8.
        heatmap: Where the model looked.
        mask: `(row, column)` as large as the image, outlined in both panels; `None` or empty: no outline.
        note: What stands below the heatmap, e.g. its contrast.
        text: What the model said, as far as there is room; where no row has any, there is no column for it.
    """

    name: str
    image: np.ndarray
    heatmap: Heatmap
    mask: np.ndarray | None = None
    note: str = ""
    text: str = ""


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
    scale = _scale([row.heatmap for row in rows])
    columns = 3 if any(row.text for row in rows) else 2
    heights = [_SIDE[columns] * row.image.shape[0] / row.image.shape[1] for row in rows]

    def draw(figure: Any) -> None:
        panels = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
        for row, height, (seen, looked, *said) in zip(rows, heights, panels, strict=True):
            _film(seen, row, row.image)
            seen.set_ylabel(_wrapped(row.name, height), fontsize=9)
            grey = row.image if row.image.ndim == 2 else row.image.mean(-1)
            _film(looked, row, grey)
            drawn = _lay_over(looked, row.heatmap, scale)
            looked.set_xlabel(textwrap.fill(row.note, round(18 * _SIDE[columns])), fontsize=8)
            for axes in said:
                axes.set_box_aspect(height / _SIDE[columns])  # as high as the film beside it
                _say(axes, row.text, int(height * _LINES))
        for axes, head in zip(panels[0], ("the film", rows[0].heatmap.title, "the report"), strict=False):
            axes.set_title(head, fontsize=10)
        bar = figure.colorbar(drawn, ax=panels[:, 1], fraction=0.05, aspect=20 * len(rows))
        bar.ax.set_facecolor("0.4")  # below clear colours, as the film is

    write_plot(path, draw, sum(heights) + 0.45 * len(rows) + 0.3, title, phantom)


def _scale(heatmaps: Sequence[Heatmap]) -> tuple[float, float]:
    """From the least to the greatest value of all; as far to both sides of 0 where one is signed."""
    values = np.concatenate([heatmap.values[np.isfinite(heatmap.values)] for heatmap in heatmaps])
    if not len(values):
        return 0.0, 1.0
    most = float(abs(values).max())
    return (-most, most) if any(heatmap.signed for heatmap in heatmaps) else (float(values.min()), float(values.max()))


def _wrapped(name: str, height: float) -> str:
    """The row's name in lines that are no longer than the film is high, in inches."""
    most = max(8, int(12 * height))
    return "\n".join(line for part in name.splitlines() for line in textwrap.wrap(part, most))


def _say(axes: Any, text: str, lines: int) -> None:
    """The text in small letters; what is longer than the panel is cut, and ends in an ellipsis."""
    axes.axis("off")
    shown = textwrap.wrap(text, 46, max_lines=lines, placeholder=" …")
    drawn = axes.text(0, 1, "\n".join(shown), va="top", fontsize=7, transform=axes.transAxes, parse_math=False)
    drawn.set_in_layout(False)


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

    stops = DIVERGING if heatmap.signed else SEQUENTIAL
    places = (0.0, 0.5, 0.5, 1.0) if heatmap.signed else np.linspace(0, 1, len(stops))
    paints = [(red / 255, green / 255, blue / 255, alpha) for red, green, blue, alpha in stops]
    colours = LinearSegmentedColormap.from_list("heat", list(zip(places, paints, strict=True)))
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
