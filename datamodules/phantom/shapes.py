"""Shapes in millimetres and the canvas that they are painted on.

World frame: origin at the carina, x to the patient's left, y to the back, z to the head (mm). Canvas arrays are
`(z, y, x)`; the finished study shows them as `(x, y, z)`, whose axes then point left, posterior, superior.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np

Point = tuple[float, float, float]
Box = tuple[slice, slice, slice]
SLICE_MM = 3.0  # RadGenome-ChestCT's spacing is 1 x 1 x 3 mm


@dataclass(frozen=True)
class Ellipsoid:
    """An axis-aligned ellipsoid; centre and half-axes in mm."""

    center: Point
    radii: Point


@dataclass(frozen=True)
class Tube:
    """A chain of tapering capsules through `points`, `radii` in mm, one per point."""

    points: tuple[Point, ...]
    radii: tuple[float, ...]

    def pieces(self) -> Iterable[tuple[Point, Point, float, float]]:
        """Yield `(start, end, start radius, end radius)` of every capsule."""
        return zip(self.points[:-1], self.points[1:], self.radii[:-1], self.radii[1:], strict=True)


class Canvas:
    """A tissue map `(z, y, x)` with region masks; every shape touches its bounding box only.

    Attributes:
        tissue: uint8 tissue numbers, `(z, y, x)`.
        masks: region → uint8 `{0, 1}`, `(z, y, x)`.
        x: World mm of every column; `y` and `z` likewise.
    """

    def __init__(self, columns: int, z_bottom: float, slices: int, regions: Iterable[str]):
        self.shape = (slices, columns, columns)
        self.tissue = np.zeros(self.shape, np.uint8)
        self.masks = {region: np.zeros(self.shape, np.uint8) for region in regions}
        self.x = np.arange(columns, dtype=np.float32) - (columns - 1) / 2
        self.y = self.x + 8  # the carina lies in front of the body's middle
        self.z = z_bottom + SLICE_MM * np.arange(slices, dtype=np.float32)

    def box(self, low: Point, high: Point) -> Box:
        """Slices `(z, y, x)` of the voxels between two corners, cut at the canvas's rim; may be empty."""

        def span(axis: np.ndarray, a: float, b: float) -> slice:
            start, stop = np.searchsorted(axis, (a, b))
            return slice(int(start), int(stop))

        return span(self.z, low[2], high[2]), span(self.y, low[1], high[1]), span(self.x, low[0], high[0])

    def grid(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """World coordinates `x (1, 1, X)`, `y (1, Y, 1)`, `z (Z, 1, 1)` of a box, ready to broadcast."""
        return self.x[None, None, box[2]], self.y[None, box[1], None], self.z[box[0], None, None]

    def around(self, center: Point, radii: Point) -> Box:
        """The box that holds an ellipsoid."""
        return self.box(
            (center[0] - radii[0], center[1] - radii[1], center[2] - radii[2]),
            (center[0] + radii[0] + 1, center[1] + radii[1] + 1, center[2] + radii[2] + SLICE_MM),
        )

    def ellipsoid(self, shape: Ellipsoid, grow: float = 0.0) -> tuple[Box, np.ndarray]:
        """The box of an ellipsoid (grown by `grow` mm) and which of its voxels lie inside."""
        radii = (shape.radii[0] + grow, shape.radii[1] + grow, shape.radii[2] + grow)
        box = self.around(shape.center, radii)
        return box, self.quadric(box, shape.center, radii) < 1

    def quadric(self, box: Box, center: Point, radii: Point) -> np.ndarray:
        """Normalised squared distance from an ellipsoid's centre: 1 on its surface."""
        x, y, z = self.grid(box)
        return ((x - center[0]) / radii[0]) ** 2 + (
            ((y - center[1]) / radii[1]) ** 2 + ((z - center[2]) / radii[2]) ** 2
        )

    def capsule(self, start: Point, end: Point, r0: float, r1: float, flat: float = 1.0) -> tuple[Box, np.ndarray]:
        """The box of a tapering capsule and which of its voxels lie inside.

        `flat` < 1 shrinks distances along z, so that thin tubes are not lost between slices 3 mm apart.
        """
        reach, zreach = max(r0, r1), max(r0, r1) / flat
        low = (min(start[0], end[0]) - reach, min(start[1], end[1]) - reach, min(start[2], end[2]) - zreach)
        high = (max(start[0], end[0]) + reach, max(start[1], end[1]) + reach, max(start[2], end[2]) + zreach)
        box = self.box(low, high)
        x, y, z = self.grid(box)
        dx, dy, dz = end[0] - start[0], end[1] - start[1], (end[2] - start[2]) * flat
        x, y, z = x - start[0], y - start[1], (z - start[2]) * flat
        t = np.clip((x * dx + (y * dy + z * dz)) / max(dx * dx + dy * dy + dz * dz, 1e-6), 0, 1)
        distance = (x - t * dx) ** 2 + (y - t * dy) ** 2 + (z - t * dz) ** 2
        return box, distance < (r0 + (r1 - r0) * t) ** 2

    def paint(
        self, box: Box, inside: np.ndarray, tissue: int, region: str | None = None, only: tuple[int, ...] = ()
    ) -> None:
        """Give `inside` a tissue and, with `region`, add it to that mask; `only` limits it to those tissues."""
        here = self.tissue[box]
        if only:
            inside = inside & among(here, only)
        here[inside] = tissue
        if region:
            self.masks[region][box][inside] = 1

    def tube(
        self,
        tube: Tube,
        tissue: int,
        region: str | None = None,
        grow: float = 0.0,
        flat: float = 1.0,
        only: tuple[int, ...] = (),
    ) -> None:
        """Paint every capsule of a tube, radii grown by `grow` mm."""
        for start, end, r0, r1 in tube.pieces():
            box, inside = self.capsule(start, end, r0 + grow, r1 + grow, flat)
            self.paint(box, inside, tissue, region, only)


@cache
def _members(tissues: tuple[int, ...]) -> bytes:
    return bytes(number in tissues for number in range(256))


def among(tissue: np.ndarray, tissues: tuple[int, ...]) -> np.ndarray:
    """Which voxels of a uint8 tissue map are of one of `tissues` (bool); `np.isin` takes ten times as long."""
    return np.frombuffer(tissue.tobytes().translate(_members(tissues)), bool).reshape(tissue.shape)


def waves(
    rng: np.random.Generator, grid: tuple[np.ndarray, np.ndarray, np.ndarray], wavelength: float, terms: int = 5
) -> np.ndarray:
    """A smooth random field of about unit variance: plane waves, cheap because each is a product of 1D phases."""
    x, y, z = (axis.astype(np.float32) for axis in grid)
    field = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape), np.float32)
    for _ in range(terms):
        direction = rng.standard_normal(3)
        k = (direction / np.linalg.norm(direction) * 2 * np.pi / (wavelength * rng.uniform(0.7, 1.4))).astype(
            np.float32
        )
        plane = np.exp(1j * (k[0] * x + k[1] * y + np.float32(rng.uniform(0, 2 * np.pi)))).astype(np.complex64)
        along = np.exp(1j * (k[2] * z)).astype(np.complex64)
        field += plane.real * along.real - plane.imag * along.imag
    return field * np.float32(np.sqrt(2 / terms))
