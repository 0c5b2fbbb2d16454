"""What a study looks like on a page: CT slices in two windows as WebP, and the outlines of its regions as SVG paths."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from datamodules.study import Study

# Level and width in HU, as chest CT is commonly read.
WINDOWS = {"lung": (-600.0, 1500.0), "mediastinal": (40.0, 400.0)}
# Display axes: head up in a coronal slice, front up in an axial one, the patient's right on the viewer's left in both.
DISPLAY = ("S", "P", "L")
OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "S": "I", "I": "S"}
LONGEST_SIDE = 360  # pixels of a drawn slice; forty studies of eight levels stay under 25 MB
LEVELS = 8
THUMBNAIL = (132, 116)
SUBPIXEL = 2  # outline points are whole numbers in half pixels of the drawn slice


@dataclass(frozen=True)
class Slice:
    """One slice as drawn.

    Attributes:
        plane: `axial` or `coronal`.
        index: The slice's index along the display axis (`S` for axial, `P` for coronal).
        images: Window name → data URI.
        size: Width and height of the images in pixels.
        outlines: Region name → SVG path data in `size * SUBPIXEL` coordinates, and where its label stands.
    """

    plane: str
    index: int
    images: Mapping[str, str]
    size: tuple[int, int]
    outlines: Mapping[str, tuple[str, tuple[int, int]]]


@dataclass(frozen=True)
class Pictures:
    """All that a page draws of one study.

    Attributes:
        axial: Levels from the head down.
        coronal: One slice.
        level_rows: Where each axial level lies in the coronal slice, as a fraction of its height.
        best: Region name → position in `axial` of the level that shows most of it.
        thumbnail: Data URI of the middle level in the lung window, small.
        oriented: Whether the study said how it lies; if not, it is drawn in file order.
    """

    axial: Sequence[Slice]
    coronal: Slice
    level_rows: Sequence[float]
    best: Mapping[str, int]
    thumbnail: str
    oriented: bool

    @property
    def outlined(self) -> Collection[str]:
        """The names of what is outlined."""
        return self.best.keys()


def draw(study: Study) -> Pictures:
    """Draws a study whose volume has been read.

    Args:
        study: With `volume` (HU); `masks`, `spacing` and `orientation` where known.
    """
    volume, masks, spacing = _display(study)
    area = {name: mask.sum(axis=(1, 2), dtype=np.int64) for name, mask in masks.items()}
    depth = {name: mask.sum(axis=(0, 2), dtype=np.int64) for name, mask in masks.items()}
    levels = choose_levels(area, len(volume))
    frontal = _fullest(depth) if depth else volume.shape[1] // 2
    rows, columns = _body(volume)
    z, y, x = spacing
    height, width, length = (rows.stop - rows.start) * y, (columns.stop - columns.start) * x, len(volume) * z
    scale = LONGEST_SIDE / max(height, width, length)

    middle = levels[len(levels) // 2]

    def axial(index: int) -> Slice:
        window = (index, rows, columns)
        return _slice("axial", index, volume[window], {n: m[window] for n, m in masks.items()}, (y * scale, x * scale))

    window = (slice(None, None, -1), frontal, columns)
    coronal = _slice(
        "coronal", frontal, volume[window], {n: m[window] for n, m in masks.items()}, (z * scale, x * scale)
    )
    return Pictures(
        axial=[axial(index) for index in levels],
        coronal=coronal,
        level_rows=[1 - (index + 0.5) / len(volume) for index in levels],
        best={name: int(np.argmax(counts[levels])) for name, counts in area.items() if counts[levels].any()},
        thumbnail=encode(_grey(volume[middle, rows, columns], WINDOWS["lung"], THUMBNAIL)),
        oriented=study.orientation is not None,
    )


def choose_levels(area: Mapping[str, np.ndarray], count: int, atleast: int = LEVELS) -> list[int]:
    """Levels, from the last index to the first, such that every region is well visible on one of them.

    Args:
        area: Region → voxels on each level, `(level,)`.
        count: How many levels there are.
        atleast: As many are chosen, evenly filled in, where there are so many.
    """
    shares = {name: counts / counts.max() for name, counts in area.items() if counts.any()}
    chosen: list[int] = []
    left = set(shares)
    while left:
        level = int(np.argmax(sum(np.minimum(shares[name], 0.7) for name in sorted(left))))
        seen = {name for name in left if shares[name][level] >= 0.5}
        if not seen:
            seen = {max(sorted(left), key=lambda name: shares[name][level])}
            level = int(np.argmax(shares[next(iter(seen))]))
        chosen.append(level)
        left -= seen
    shown = np.flatnonzero(sum(area.values())) if shares else np.arange(count)
    for level in np.linspace(shown[0], shown[-1], atleast + 2).round().astype(int)[1:-1]:
        if len(chosen) < atleast and level not in chosen:
            chosen.append(int(level))
    return sorted(set(chosen), reverse=True)


def outline(mask: np.ndarray) -> list[np.ndarray]:
    """Closed outlines of a mask.

    Args:
        mask: `(row, column)`.

    Returns:
        Polygons `(point, 2)` of (x, y) through the middles of the pixels' outer edges, (0, 0) being the first pixel's
        corner, the longest first; specks and pinholes are left out beside larger outlines.
    """
    inside = np.pad(mask.astype(bool), 1)
    step: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # Unit edges with the region on their right, in padded corner coordinates (row, column).
    for (dr, dc), start, end in (
        ((1, 0), (0, 0), (0, 1)),
        ((0, -1), (0, 1), (1, 1)),
        ((-1, 0), (1, 1), (1, 0)),
        ((0, 1), (1, 0), (0, 0)),
    ):
        for r, c in np.argwhere(inside & ~np.roll(inside, (dr, dc), (0, 1))).tolist():
            step.setdefault((r + start[0], c + start[1]), []).append((r + end[0], c + end[1]))
    loops = []
    while step:
        corner = first = next(iter(step))
        corners = [first]
        while True:
            ends = step[corner]
            following = ends.pop()
            if not ends:
                del step[corner]
            corner = following
            if corner == first:
                break
            corners.append(corner)
        loops.append(np.array(corners))
    longest = max((len(loop) for loop in loops), default=0)
    kept = [loop for loop in loops if len(loop) >= min(longest, 9)]
    return [(loop + np.roll(loop, -1, axis=0))[:, ::-1] / 2 - 1 for loop in sorted(kept, key=len, reverse=True)]


def simplify(points: np.ndarray, tolerance: float) -> np.ndarray:
    """Drops points of a closed polygon that lie within `tolerance` of the line between their neighbours.

    Every second point in turn, so that neighbours never go together, until nothing more goes.
    """
    parity, idle = 0, 0
    while idle < 2 and len(points) > 4:
        before, after = np.roll(points, 1, axis=0), np.roll(points, -1, axis=0)
        chord, arm = after - before, points - before
        length = np.maximum(np.hypot(*chord.T), 1e-9)
        away = np.abs(chord[:, 0] * arm[:, 1] - chord[:, 1] * arm[:, 0]) / length
        keep = (away > tolerance) | (np.hypot(*arm.T) > length)
        keep[parity::2] = True
        keep[-1] |= len(points) % 2 == 1  # in a ring of odd length the last and the first are neighbours
        idle = idle + 1 if keep.all() else 0
        points, parity = points[keep], 1 - parity
    return points


def _display(study: Study) -> tuple[np.ndarray, dict[str, np.ndarray], tuple[float, float, float]]:
    """Views of the volume and of the masks that are not empty, with axes `DISPLAY`, and the spacing in that order."""
    assert study.volume is not None
    orientation = study.orientation or ("L", "P", "S")
    order = [next(i for i, letter in enumerate(orientation) if letter in (axis, OPPOSITE[axis])) for axis in DISPLAY]
    turn = tuple(slice(None, None, 1 if orientation[i] == axis else -1) for i, axis in zip(order, DISPLAY, strict=True))
    spacing = study.spacing or (1.0, 1.0, 1.0)
    masks = {name: mask.transpose(order)[turn] for name, mask in (study.masks or {}).items() if mask.any()}
    z, y, x = (float(spacing[i]) for i in order)
    return study.volume.transpose(order)[turn], masks, (z, y, x)


def _body(volume: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns that hold more than air and the table's thin lines, with a small margin."""
    solid = volume[:: max(1, len(volume) // 16)] > -300
    found = []
    for axis in (1, 2):
        share = solid.mean(axis=tuple({0, 1, 2} - {axis}))
        where = np.flatnonzero(share > 0.02)
        low, high = (where[0], where[-1]) if len(where) else (0, len(share) - 1)
        margin = len(share) // 50 + 1
        found.append(slice(max(0, int(low) - margin), min(len(share), int(high) + margin + 1)))
    return found[0], found[1]


def _fullest(depth: Mapping[str, np.ndarray]) -> int:
    """The plane that shows something of the most regions."""
    shares = [counts / counts.max() for counts in depth.values()]
    return int(np.argmax(np.sum([np.minimum(share, 0.5) for share in shares], axis=0)))


def _slice(
    plane: str, index: int, pixels: np.ndarray, masks: Mapping[str, np.ndarray], scale: tuple[float, float]
) -> Slice:
    height, width = pixels.shape
    size = (max(1, round(width * scale[1])), max(1, round(height * scale[0])))
    stretch = np.array([size[0] / width, size[1] / height]) * SUBPIXEL
    images = {name: encode(_grey(pixels, window, size)) for name, window in WINDOWS.items()}
    outlines = {name: path_data(outline(mask), stretch) for name, mask in masks.items() if mask.any()}
    return Slice(plane, index, images, size, outlines)


def path_data(polygons: Sequence[np.ndarray], stretch: np.ndarray) -> tuple[str, tuple[int, int]]:
    """Relative SVG path data, and the topmost point of the longest polygon.

    Args:
        polygons: The longest first, `(point, 2)` of (x, y) each.
        stretch: What x and y are multiplied by.
    """
    parts = []
    for polygon in polygons:
        points = simplify(polygon * stretch, tolerance=0.35 * float(stretch.max())).round().astype(int)
        moves = np.diff(points, axis=0).tolist()
        parts.append(f"M{points[0][0]} {points[0][1]}l" + " ".join(f"{x} {y}" for x, y in moves) + "z")
    top = polygons[0][np.argmin(polygons[0][:, 1])] * stretch
    return "".join(parts), (round(float(top[0])), round(float(top[1])))


def _grey(pixels: np.ndarray, window: tuple[float, float], size: tuple[int, int]) -> Image.Image:
    level, width = window
    shade = (pixels.astype(np.float32) - (level - width / 2)) / width
    return Image.fromarray((shade.clip(0, 1) * 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


def encode(image: Image.Image, quality: int = 72) -> str:
    """A picture as a WebP data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
