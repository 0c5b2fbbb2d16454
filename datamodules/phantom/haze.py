"""Findings that change the density of lung tissue and have no outline of their own; run once the tissues have HU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from datamodules.phantom.anatomy import Anatomy
from datamodules.phantom.organs import TISSUE as T
from datamodules.phantom.organs import lung_targets
from datamodules.phantom.patient import Finding
from datamodules.phantom.shapes import Canvas, Ellipsoid, among, waves

LUNG = (T["lung"], T["fissure"])


def haze(hu: np.ndarray, canvas: Canvas, a: Anatomy, finding: Finding) -> None:
    """Change the HU of lung tissue, in place (`hu` int16 `(z, y, x)`), for findings that are a haze."""
    painter = HAZES.get(finding.label)
    if painter:
        painter(hu, canvas, a, finding, np.random.default_rng(finding.seed))


def _opacity(hu: np.ndarray, canvas: Canvas, a: Anatomy, f: Finding, rng: np.random.Generator) -> None:
    for point, size in zip(f.points, f.sizes, strict=True):
        box = canvas.around(point, (size * 0.8,) * 3)
        grid = canvas.grid(box)
        q = canvas.quadric(box, point, (size / 2,) * 3) + 0.35 * waves(rng, grid, 20)
        rise = 340 * np.clip((1.25 - q) * 2.5, 0, 1) + 30 * waves(rng, grid, 7, 3)
        here = hu[box]
        lung = among(canvas.tissue[box], LUNG) & (q < 1.25)
        here[lung] += rise[lung].astype(np.int16)


def _lung_box(canvas: Canvas, a: Anatomy, low: float, high: float) -> tuple[slice, slice, slice]:
    sx, sy, sz = a.scale
    return canvas.box((-135 * sx, -92 * sy, low * sz), (135 * sx, 95 * sy, high * sz))


def _coarse(canvas: Canvas, box: tuple[slice, slice, slice], rng: np.random.Generator, wavelength: float) -> np.ndarray:
    """A wave field computed on every second column and row, then repeated: a quarter of the work, and none sees it."""
    x, y, z = canvas.grid(box)
    field = waves(rng, (x[..., ::2], y[:, ::2], z), wavelength, 6)
    return np.repeat(np.repeat(field, 2, axis=1), 2, axis=2)[:, : y.shape[1], : x.shape[2]]


def _mosaic(hu: np.ndarray, canvas: Canvas, a: Anatomy, f: Finding, rng: np.random.Generator) -> None:
    box = _lung_box(canvas, a, -160, 115)
    step = np.clip(_coarse(canvas, box, rng, 42) * 6, -1, 1)
    here = hu[box]
    np.add(here, (25 + 85 * step).astype(np.int16), out=here, where=canvas.tissue[box] == T["lung"])


def _emphysema(hu: np.ndarray, canvas: Canvas, a: Anatomy, f: Finding, rng: np.random.Generator) -> None:
    box = _lung_box(canvas, a, -160 if f.place == "both lungs" else -10, 115)
    here = hu[box]
    np.subtract(here, 36, out=here, where=canvas.tissue[box] == T["lung"])
    lobes = range(5) if f.place == "both lungs" else (0, 3)
    for lobe in lobes:
        for k, center in enumerate(lung_targets(a, rng, lobe, 70)):
            radius = rng.uniform(9, 15) if k < 5 else rng.uniform(3, 7.5)
            sub, inside = canvas.ellipsoid(Ellipsoid(tuple(center), (radius, radius, radius * 1.1)))
            hu[sub][inside & among(canvas.tissue[sub], LUNG)] = -972


def _septal(hu: np.ndarray, canvas: Canvas, a: Anatomy, f: Finding, rng: np.random.Generator) -> None:
    """Walls of polygonal lobules: voxels about as far from the nearest of many seeds as from the second nearest."""
    for side in (-1, 1):
        low, high = (24 * a.scale[0], 132 * a.scale[0]) if side > 0 else (-132 * a.scale[0], -24 * a.scale[0])
        top = 90 if f.place == "both lungs" else -30
        box = canvas.box((low, -60 * a.scale[1], -150 * a.scale[2]), (high, 92 * a.scale[1], top * a.scale[2]))
        x, y, z = canvas.grid(box)
        near = np.full(canvas.tissue[box].shape, 1e4, np.float32)
        second = near.copy()
        steps = (np.arange(axis.min(), axis.max(), pitch) for axis, pitch in ((x, 17), (y, 17), (z, 19)))
        lattice = np.stack(np.meshgrid(*steps), -1).reshape(-1, 3)
        for seed in lattice + rng.uniform(-6.5, 6.5, lattice.shape):
            sub = canvas.around(tuple(seed), (21, 21, 23))
            sub = tuple(
                slice(max(s.start, b.start), max(min(s.stop, b.stop), max(s.start, b.start)))
                for s, b in zip(sub, box, strict=True)
            )  # type: ignore[assignment]
            local = tuple(slice(s.start - b.start, s.stop - b.start) for s, b in zip(sub, box, strict=True))
            sx, sy, sz = canvas.grid(sub)
            distance = np.sqrt((sx - seed[0]) ** 2 + ((sy - seed[1]) ** 2 + (sz - seed[2]) ** 2)).astype(np.float32)
            second[local] = np.minimum(second[local], np.maximum(near[local], distance))
            near[local] = np.minimum(near[local], distance)
        wall = (second - near < 1.9) & (canvas.tissue[box] == T["lung"])
        wall &= _coarse(canvas, box, rng, 60) + (y + 20) / 60 > -0.2  # patchy, and thinning out towards the front
        hu[box][wall] = -430


HAZES: dict[str, Callable[[np.ndarray, Canvas, Anatomy, Finding, np.random.Generator], None]] = {
    "Lung opacity": _opacity,
    "Mosaic attenuation pattern": _mosaic,
    "Emphysema": _emphysema,
    "Interlobular septal thickening": _septal,
}
