"""What a radiograph looks like on a page: one WebP, outlines of boxes and masks, and heatmaps to lay over it."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from datamodules.masks import Box
from datamodules.radiograph import to_8_bit
from datamodules.study import Study
from lit_modules.report_generator import Heatmap
from zoo.gallery.slices import SUBPIXEL, encode, outline, path_data

LONGEST_SIDE = 700  # pixels of the drawn image; forty of them stay under 4 MB
THUMBNAIL = (132, 132)
# Red, green, blue and opacity along the scale, between which is interpolated. What is neutral is clear, so that the
# image shows; blue and orange stay apart for colour-blind readers, and both from grey.
SEQUENTIAL = ((64, 20, 140, 0.0), (170, 30, 150, 0.4), (245, 110, 50, 0.6), (255, 225, 90, 0.75))
DIVERGING = ((20, 110, 255, 0.75), (90, 170, 255, 0.0), (255, 160, 60, 0.0), (255, 110, 0, 0.75))
BAR = 24  # colours of a colour bar


@dataclass(frozen=True)
class Layer:
    """A heatmap as drawn.

    Attributes:
        name: The view's name.
        title: What it is.
        note: What a reader must know; may be empty.
        uri: The grid, one pixel a cell, with opacity.
        frame: Where it lies, as fractions of the image.
        bar: The scale's colours from its low to its high end, as CSS writes them.
        ticks: What is written at the scale's ends and at 0, each with its place along the bar, from 0 to 1.
    """

    name: str
    title: str
    note: str
    uri: str
    frame: Box
    bar: Sequence[str]
    ticks: Mapping[str, float]


@dataclass(frozen=True)
class Radiograph:
    """All that a page draws of one radiograph.

    Attributes:
        image: Data URI.
        size: Width and height of the image in pixels.
        outlines: Name → SVG path data in `size * SUBPIXEL` coordinates, and where its label stands; the largest first.
        boxed: The names that boxes are of, as opposed to masks, in the study's order.
        layers: Heatmaps.
        thumbnail: Data URI, small.
    """

    image: str
    size: tuple[int, int]
    outlines: Mapping[str, tuple[str, tuple[int, int]]]
    boxed: Sequence[str]
    layers: Sequence[Layer]
    thumbnail: str

    @property
    def outlined(self) -> Collection[str]:
        """The names of what is outlined, those of boxes first."""
        return dict.fromkeys([*self.boxed, *self.outlines])


def draw_radiograph(study: Study) -> Radiograph:
    """Draws a study whose image has been read, as yet without heatmaps.

    Args:
        study: With `image`; `boxes` and `masks` where known.
    """
    assert study.image is not None
    grey = Image.fromarray(to_8_bit(study.image))
    scale = min(1.0, LONGEST_SIDE / max(grey.size))
    size = (max(1, round(grey.width * scale)), max(1, round(grey.height * scale)))
    drawn = grey.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    small = drawn.copy()
    small.thumbnail(THUMBNAIL)
    return Radiograph(
        image=encode(drawn, quality=80),
        size=size,
        outlines=_outlines(study, size),
        boxed=[name for name, boxes in (study.boxes or {}).items() if boxes],
        layers=(),
        thumbnail=encode(small),
    )


def with_heatmaps(drawn: Radiograph, heatmaps: Mapping[str, Heatmap]) -> Radiograph:
    """The radiograph with a layer for each heatmap."""
    return replace(drawn, layers=[_layer(name, heatmap) for name, heatmap in heatmaps.items()])


def _layer(name: str, heatmap: Heatmap) -> Layer:
    """A cell whose value is not finite is clear."""
    values = np.asarray(heatmap.values, dtype=np.float64)
    known = values[np.isfinite(values)]
    low, high = float(known.min(initial=0)), float(known.max(initial=0))
    if heatmap.signed:
        high = max(-low, high)
        low = -high
    colours = _paint(values, low, high, heatmap.signed)
    buffer = io.BytesIO()
    Image.fromarray(colours).save(buffer, "PNG", optimize=True)
    bar = _paint(np.linspace(low, high, BAR), low, high, heatmap.signed)
    return Layer(
        name=name,
        title=heatmap.title,
        note=heatmap.note,
        uri="data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"),
        frame=heatmap.frame,
        bar=[f"rgb({red} {green} {blue} / {alpha / 255:.2f})" for red, green, blue, alpha in bar.tolist()],
        ticks=_ticks(low, high, heatmap.signed),
    )


def _ticks(low: float, high: float, signed: bool) -> dict[str, float]:
    if low == high:
        return {"0": 0.5}
    words = {low: " against", high: " for"} if signed else {}
    marks = {low: 0.0, 0.0: -low / (high - low), high: 1.0}
    return {f"{value:.3g}{words.get(value, '')}".replace("-", "−"): place for value, place in marks.items()}


def _paint(values: np.ndarray, low: float, high: float, signed: bool) -> np.ndarray:
    """Values of any shape → red, green, blue and opacity, uint8, along a new last axis."""
    span = high - low
    share = np.nan_to_num((values - low) / span if span else np.full(values.shape, 0.5 if signed else 0.0))
    stops = np.array(DIVERGING if signed else SEQUENTIAL) * (1, 1, 1, 255)
    places = (0.0, 0.5, 0.5, 1.0) if signed else np.linspace(0, 1, len(stops))
    colours = np.stack([np.interp(share, places, channel) for channel in stops.T], axis=-1)
    colours[~np.isfinite(values), 3] = 0
    return colours.round().astype(np.uint8)


def _outlines(study: Study, size: tuple[int, int]) -> dict[str, tuple[str, tuple[int, int]]]:
    """As in `Radiograph`: a mask's and the boxes of the same name are one outline."""
    found: dict[str, tuple[str, tuple[int, int]]] = {}
    area: dict[str, float] = {}
    for name, mask in (study.masks or {}).items():
        fitted = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
        if fitted.any():
            found[name] = path_data(outline(fitted), np.array([SUBPIXEL, SUBPIXEL]))
            area[name] = float(fitted.astype(bool).mean())
    for name, boxes in (study.boxes or {}).items():
        if boxes:
            path, corner = _rectangles(boxes, size)
            before, place = found.get(name, ("", corner))
            found[name] = (before + path, place)
            area[name] = area.get(name, 0.0) + sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes)
    edge = 0.02 * SUBPIXEL * max(size)  # no label is cut off
    right, bottom = size[0] * SUBPIXEL - edge, size[1] * SUBPIXEL - edge
    return {
        name: (path, (round(min(max(x, edge), right)), round(min(max(y, edge), bottom))))
        for name, (path, (x, y)) in sorted(found.items(), key=lambda item: -area[item[0]])
    }


def _rectangles(boxes: Sequence[Box], size: tuple[int, int]) -> tuple[str, tuple[int, int]]:
    """Relative SVG path data of the boxes, and the upper left corner of the first."""
    corners = (np.array(boxes).clip(0, 1) * (*size, *size) * SUBPIXEL).round().astype(int).tolist()
    path = "".join(f"M{x0} {y0}h{x1 - x0}v{y1 - y0}h{x0 - x1}z" for x0, y0, x1, y1 in corners)
    return path, (corners[0][0], corners[0][1])
