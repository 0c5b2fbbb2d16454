"""Projects a phantom patient to a frontal chest radiograph (PA, standing, deep breath) with organ masks and boxes.

The patient is the one of the CT, painted on a lattice that is fine where the detector is (1 x 1.5 mm) and coarse along
the beam (2 mm). HU become linear attenuation, their line integrals are taken in slabs, each magnified by its distance
from the detector (source 1.8 m away), and Beer-Lambert's law, scatter, quantum noise and the detector's blur give the
exposure. Its logarithm, sharpened and windowed as in a reading room, is the image: MONOCHROME2, lungs dark, bone
bright, the patient's right on the left.

What a finding adds is projected by itself. It is *seen* where the grey that it changes stands out from the structure
around it (see `Film.stands_out`); only then has it boxes and a sentence. What hides behind the heart or in the liver is
thus neither boxed nor told, and of several lesions those that are seen are boxed. Cardiomegaly is read from the
silhouette (CARDIOTHORACIC). Fluid lies as in a standing patient: at the bottom, with a meniscus.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from datamodules.masks import REGIONS
from datamodules.phantom.anatomy import CAVITY, Anatomy
from datamodules.phantom.haze import haze
from datamodules.phantom.lesions import paint_finding
from datamodules.phantom.organs import BONES, TISSUE, paint_anatomy
from datamodules.phantom.patient import Finding, Patient
from datamodules.phantom.radiograph_wording import DIFFUSE, LABELS, SILHOUETTE, Bounds, Sight, finding_sentences
from datamodules.phantom.render import densities, tissue_densities
from datamodules.phantom.shapes import SLICE_MM, Box, Canvas, among
from datamodules.study import Study

STEP = (1.5, 2.0, 1.0)  # mm of the lattice along z, y, x
WATER = 0.0195  # 1/mm, at about 65 keV
SOURCE, DETECTOR, LEVEL = 1800.0, -150.0, -12.0  # mm: source to detector, the detector's y, the central ray's z
SLAB = 12  # lattice rows that share one magnification
PHOTONS = 26_000.0  # per pixel in air
SCATTER = 0.05  # of the primary radiation of a wide neighbourhood
CARDIOTHORACIC = 0.5  # a silhouette of at least this share of the chest's inner width is called enlarged
CONTRAST, CLUTTER = 0.016, 0.75  # least change of grey (share of the full range), and in units of what is around it
SHOULDER = 2.0  # how much more contrast the lungs get than what is dense
DIFFUSE_CONTRAST = 0.05
MASKS = ("right lung", "left lung", "heart", "mediastinum", "trachea and bronchie", "bone")


class Lattice(Canvas):
    """A canvas for projection, with a little more of neck, shoulders and abdomen than the CT shows."""

    def __init__(self, a: Anatomy):
        top = a.bottom + SLICE_MM * a.slices + 8
        self.z = np.arange(a.bottom - 14, top, STEP[0], dtype=np.float32)
        self.y = np.arange(-180, 146, STEP[1], dtype=np.float32)
        self.x = np.arange(-195, 196, STEP[2], dtype=np.float32)
        self.shape = (len(self.z), len(self.y), len(self.x))
        self.tissue = np.zeros(self.shape, np.uint8)
        self.masks = {region: np.zeros(self.shape, np.uint8) for region in REGIONS}


@dataclass(frozen=True)
class Detector:
    """The detector's frame: `height` x `width` pixels of `pitch` mm from the corner `(left, top)` in mm (x, z)."""

    height: int
    width: int
    pitch: float
    left: float
    top: float

    def place(self, x: float, y: float, z: float) -> tuple[float, float]:
        """`(column, row)` in pixels where a world point (mm) is projected."""
        m = magnification(y)
        return (x * m - self.left) / self.pitch, (self.top - LEVEL - (z - LEVEL) * m) / self.pitch

    def project(self, canvas: Canvas, values: np.ndarray, box: Box | None = None) -> np.ndarray:
        """Integrate a field `(z, y, x)` per mm, zero outside `box`, along the beam: `(row, column)` float32."""
        total = np.zeros((self.height, self.width), np.float32)
        box = box or (slice(0, canvas.shape[0]), slice(0, canvas.shape[1]), slice(0, canvas.shape[2]))
        page = np.zeros((canvas.shape[0], canvas.shape[2]), np.float32)
        for start in range(0, canvas.shape[1], SLAB):
            low, high = max(start, box[1].start), min(start + SLAB, box[1].stop)
            if low >= high:
                continue
            part = values[:, low - box[1].start : high - box[1].start]
            page[box[0], box[2]] = part.sum(axis=1, dtype=np.float32) * STEP[1]
            m = magnification(float(canvas.y[start : start + SLAB].mean()))
            total += np.asarray(
                Image.fromarray(page).transform(
                    (self.width, self.height), Image.Transform.AFFINE, self._inverse(canvas, m),
                    Image.Resampling.BILINEAR,
                )
            )  # fmt: skip
        return total

    def _inverse(self, canvas: Canvas, m: float) -> tuple[float, ...]:
        """Affine map from pixels to a slab's lattice points, as Pillow wants it."""
        x, z = float(canvas.x[0]), float(canvas.z[0])
        return (
            self.pitch / m / STEP[2], 0.0, (self.left / m - x) / STEP[2] + 0.5,
            0.0, -self.pitch / m / STEP[0], (LEVEL + (self.top - LEVEL) / m - z) / STEP[0] + 0.5,
        )  # fmt: skip


def magnification(y: float) -> float:
    """How much larger things at depth `y` (mm) appear on the detector."""
    return SOURCE / (SOURCE - (y - DETECTOR))


@cache
def _attenuation() -> np.ndarray:
    """HU + 1024 → linear attenuation (1/mm): linear below water, steeper above, where calcium weighs in."""
    hu = np.arange(-1024, 3072, dtype=np.float32)
    return (WATER * np.clip(1 + np.where(hu > 100, 100 + 2.0 * (hu - 100), hu) / 1000, 0, None)).astype(np.float32)


def attenuation(hu: np.ndarray) -> np.ndarray:
    """Linear attenuation (1/mm) of HU."""
    return _attenuation()[np.clip(hu, -1024, 3071) + np.int16(1024)]


class Film:
    """How line integrals become grey: scatter, logarithm, sharpening and a window set by this patient's chest.

    Args:
        path: Line integrals of the finished patient, `(row, column)`.
        lungs: Where the lungs are projected.
    """

    def __init__(self, path: np.ndarray, lungs: np.ndarray):
        self.path, self.lungs = path, lungs
        log = self._sharpen(-np.log(self._arriving(path)))
        self.low = float(np.percentile(log[lungs], 3)) - 0.3
        self.high = float(np.percentile(log, 97)) + 0.3
        self.finished = self._curve(log)

    def grey(self, path: np.ndarray) -> np.ndarray:
        """Grey in [0, 1] of line integrals, without noise."""
        return self._curve(self._sharpen(-np.log(self._arriving(path))))

    def expose(self, rng: np.random.Generator) -> np.ndarray:
        """Grey in [0, 1] of the finished patient, with quantum noise and the detector's blur."""
        from scipy import ndimage

        mean = np.float32(PHOTONS) * self._arriving(self.path)
        photons = mean + np.sqrt(mean) * rng.standard_normal(mean.shape, np.float32)  # Poisson's, at such counts
        photons = np.maximum(ndimage.gaussian_filter(photons, 0.55), 1)
        return self._curve(self._sharpen(-np.log(photons / np.float32(PHOTONS))))

    def _arriving(self, path: np.ndarray) -> np.ndarray:
        primary = np.exp(-path)
        return primary + np.float32(SCATTER) * _wide(np.minimum(primary, 0.4))

    def _sharpen(self, log: np.ndarray) -> np.ndarray:
        return log + np.float32(0.5) * (log - _wide(log))

    def _curve(self, log: np.ndarray) -> np.ndarray:
        t = np.clip((log - self.low) / (self.high - self.low), 0, 1)
        return (1 - np.exp(-SHOULDER * t)) / np.float32(1 - np.exp(-SHOULDER))

    def stands_out(self, change: np.ndarray, part: np.ndarray, without: np.ndarray, diffuse: bool = False) -> bool:
        """Whether a change of grey is seen: by itself, and against what is around it at its own scale.

        The mean change over the part's stronger half must reach CONTRAST, and CLUTTER times the spread of the grey in a
        frame twice as wide, taken without the finding, and without what is much finer or coarser than the part. For a
        part that lies over the lungs, only the lungs count. A `diffuse` change must reach DIFFUSE_CONTRAST and no more.
        """
        from scipy import ndimage

        strong = part & (change > 0.5 * change[part].max())
        contrast = float(change[strong].mean())
        if contrast < CONTRAST or diffuse:
            return contrast >= (DIFFUSE_CONTRAST if diffuse else CONTRAST)
        (top, bottom), (left, right) = _extent(part)
        high, wide = bottom - top, right - left
        rows = slice(max(top - high // 2, 0), bottom + high // 2 + 1)
        frame = (rows, slice(max(left - wide // 2, 0), right + wide // 2 + 1))
        scale = 0.5 * min(high, wide)
        band = ndimage.gaussian_filter(without, scale / 3, truncate=2.0)
        band -= ndimage.gaussian_filter(without, max(2.0, scale), truncate=2.0)
        around = band[frame]
        if (strong & self.lungs).sum() > 0.7 * strong.sum():
            around = around[self.lungs[frame]]
        return contrast > CLUTTER * float(around.std())


def _wide(field: np.ndarray) -> np.ndarray:
    """A field blurred over about 4 cm; on every fourth pixel, which nobody can tell."""
    from scipy import ndimage

    coarse = Image.fromarray(np.ascontiguousarray(field, np.float32)).reduce(4)
    blurred = ndimage.gaussian_filter(np.asarray(coarse), 8, mode="nearest")
    return np.asarray(Image.fromarray(blurred).resize(field.shape[::-1], Image.Resampling.BILINEAR))


def _extent(part: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and one past the last row, then column, of a filled mask."""
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    return (int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1)


def render_radiograph(patient: Patient) -> Study:
    """Draw the patient's frontal radiograph.

    Returns:
        A study with `image` uint16 `(row, column)`, `masks` uint8 of MASKS (projections, so they overlap), `boxes` of
        every finding that is seen (none where it is diffuse), `findings`: the labels that are seen, and the report.
    """
    return radiograph(patient)[0]


def radiograph(patient: Patient) -> tuple[Study, list[Sight]]:
    """The study of `render_radiograph` and what is seen of each finding, which its sentences are made from."""
    a, frame = patient.anatomy, random.Random(f"phantom detector {patient.seed}")
    rng = np.random.default_rng(patient.seed)
    canvas = Lattice(a)
    detector = _detector(canvas, frame)
    paint_anatomy(canvas, a, rng)
    added = _paint_findings(canvas, detector, patient)
    hu = densities(canvas, patient)
    for finding in patient.findings:
        before = hu.copy()
        haze(hu, canvas, a, finding)
        box = _changed(before != hu)
        if box:
            added[finding.label] = detector.project(canvas, attenuation(hu[box]) - attenuation(before[box]), box)
    masks = _project_masks(canvas, detector)
    film = Film(detector.project(canvas, attenuation(hu)), (masks["right lung"] | masks["left lung"]) > 0)
    sights = [sight for f in patient.findings if f.label in added and f.label in LABELS
              and (sight := _look(f, added[f.label], film, detector, masks))]  # fmt: skip
    sights += _look_at_the_heart(masks)
    black, white = frame.uniform(0, 120), frame.uniform(3300, 4095)
    image = np.round(black + (white - black) * film.expose(rng)).astype(np.uint16)
    study = Study(
        id=f"phantom_{patient.seed}", image=image, spacing=(detector.pitch, detector.pitch), masks=masks,
        boxes={sight.label: sight.boxes for sight in sights}, findings=tuple(sight.label for sight in sights),
        report=" ".join(said.english for said in finding_sentences(patient, sights)),
    )  # fmt: skip
    return study, sights


def _detector(canvas: Lattice, rng: random.Random) -> Detector:
    """A frame around the chest: wider than high or higher than wide, with its own pitch, a little off the middle."""
    landscape = rng.random() < 0.45
    width = rng.uniform(352, 372) if landscape else rng.uniform(300, 312)
    height = min(rng.uniform(296, 314) if landscape else rng.uniform(330, 345), float(canvas.z[-1] - canvas.z[0]) - 3)
    pitch = rng.uniform(0.85, 0.98)
    top = float(canvas.z[-1]) - 1.5 - rng.uniform(0, 1) * max(0.0, float(canvas.z[-1] - canvas.z[0]) - 3 - height) * 0.6
    return Detector(int(height / pitch), int(width / pitch), pitch, rng.uniform(-6, 6) - width / 2, top)


def _paint_findings(canvas: Lattice, detector: Detector, patient: Patient) -> dict[str, np.ndarray]:
    """Paint what has a shape; label → the line integrals that it adds (or takes)."""
    values, added = attenuation(tissue_densities(patient)), {}
    for finding in patient.findings:
        before = canvas.tissue.copy()
        if finding.label == "Pleural effusion":
            _pool(canvas, patient.anatomy, finding)
        else:
            paint_finding(canvas, patient.anatomy, finding)
        box = _changed(before != canvas.tissue)
        if box:
            added[finding.label] = detector.project(canvas, values[canvas.tissue[box]] - values[before[box]], box)
    return added


def _changed(where: np.ndarray) -> Box | None:
    spans = []
    for axis in range(3):
        filled = np.flatnonzero(where.any(axis=tuple(k for k in range(3) if k != axis)))
        if not filled.size:
            return None
        spans.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return spans[0], spans[1], spans[2]


def _pool(canvas: Canvas, a: Anatomy, f: Finding) -> None:
    """Pleural fluid of a standing patient: a pool in the angles, a meniscus up the wall, a film on the diaphragm."""
    sx, sy, sz = a.scale
    for side, named in ((-1, "right"), (1, "left")):
        if f.side not in (named, "both"):
            continue
        low, high = (0.0, 135 * sx) if side > 0 else (-135 * sx, 0.0)
        box = canvas.box((low, -92 * sy, -1000), (high, 95 * sy, 60 * sz))
        x, y, z = canvas.grid(box)
        angle = a.domes[0 if side < 0 else 1] - 47 * sz
        to_wall = (1 - np.sqrt(a.rho(CAVITY, x, y, z))) * a.profile(CAVITY, z)[1]
        surface = angle + 14 + 1.6 * (f.size - 12) + 42 * np.exp(-np.maximum(to_wall, 0) / 10)
        fluid = ((z < surface) | (z - a.diaphragm(x, y) < 0.1 * f.size)) & (canvas.masks["lung"][box] == 1)
        canvas.paint(box, fluid, TISSUE["fluid"], "pleura")
        canvas.masks["lung"][box][fluid] = 0


def _project_masks(canvas: Lattice, detector: Detector) -> dict[str, np.ndarray]:
    """Where at least 2 mm of an organ lie in the beam."""
    middle = int(np.searchsorted(canvas.x, 0.0))
    bone = among(canvas.tissue, tuple(TISSUE[name] for name in BONES))
    parts = {"bone": bone, **{name: canvas.masks[name] for name in ("heart", "mediastinum", "trachea and bronchie")}}
    whole = slice(None)
    parts["right lung"], parts["left lung"] = np.zeros_like(canvas.masks["lung"]), np.zeros_like(canvas.masks["lung"])
    for name, half in (("right lung", slice(None, middle)), ("left lung", slice(middle, None))):
        parts[name][whole, whole, half] = canvas.masks["lung"][whole, whole, half]
    masks = {}
    for name in MASKS:
        box = _changed(parts[name] > 0)
        assert box is not None, f"no {name}: the anatomy's proportions are off"
        masks[name] = (detector.project(canvas, parts[name][box], box) > 2).astype(np.uint8)
    return masks


def _look(f: Finding, added: np.ndarray, film: Film, detector: Detector, masks: dict[str, np.ndarray]) -> Sight | None:
    """What is seen of a finding; None where nothing is."""
    strength = np.maximum(added, 0) if f.label == "Lung nodule" else np.abs(added)  # not the vessels that it displaces
    if strength.max() <= 0:
        return None
    without = film.grey(film.path - added)
    change = np.abs(film.finished - without)
    bounds: list[Bounds] = []
    for index, part in enumerate(_parts(f, detector, added.shape)):
        most = strength[part].max(initial=0)  # a lesion that lies inside another's has no pixel nearest to it
        inside = part & (strength > 0.22 * most) if most > 0 else part & False
        if inside.sum() >= 4 and film.stands_out(change, inside, without, f.label in DIFFUSE):
            bounds.append(_bounds(inside, masks, index if f.points else 0))
    return Sight(f, tuple(bounds)) if bounds else None


def _parts(f: Finding, detector: Detector, shape: tuple[int, ...]) -> list[np.ndarray]:
    """The image divided among a finding's lesions (each pixel to the nearest) or, where it has sides, halved."""
    row, column = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    if f.label not in DIFFUSE and len(f.points) > 1:
        places = np.array([detector.place(*point) for point in f.points])
        distance = [(np.hypot(column - x, row - y) - 0.5 * size / detector.pitch)
                    for (x, y), size in zip(places, f.sizes, strict=True)]  # fmt: skip
        nearest = np.argmin(distance, axis=0)
        return [nearest == k for k in range(len(places))]
    if f.label in DIFFUSE or f.side == "both" or "both" in f.place:
        middle = detector.place(0, 0, 0)[0]
        return [column < middle, column >= middle]
    return [np.ones(shape, bool)]


def _bounds(inside: np.ndarray, masks: dict[str, np.ndarray], index: int = 0) -> Bounds:
    """The tight box of a lesion, and the side and third of the lung that its middle lies in."""
    (top, bottom), (left, right) = _extent(inside)
    height, width = inside.shape
    lungs = {side: _extent(masks[f"{side} lung"] > 0) for side in ("right", "left")}
    midline = (lungs["right"][1][1] + lungs["left"][1][0]) / 2
    side = "right" if (left + right) / 2 < midline else "left"
    start, end = lungs[side][0]
    third = ((top + bottom) / 2 - start) / (end - start) * 3
    zone = "upper" if third < 1 else "middle" if third < 2 else "lower"
    if bottom - top > 0.6 * (end - start):
        zone = ""
    box = (left / width, top / height, right / width, bottom / height)
    return Bounds(box, side, zone, index, inside[top:bottom, left:right])


def _look_at_the_heart(masks: dict[str, np.ndarray]) -> list[Sight]:
    """The silhouette, pericardial fluid included, where it is too wide for the chest."""
    ratio = cardiothoracic_ratio(masks)
    if ratio < CARDIOTHORACIC:
        return []
    return [Sight(SILHOUETTE, (_bounds(masks["heart"] > 0, masks),))]


def cardiothoracic_ratio(masks: dict[str, np.ndarray]) -> float:
    """Width of the heart's silhouette over the width of both lungs together."""
    lungs = _extent((masks["right lung"] | masks["left lung"]) > 0)[1]
    heart = _extent(masks["heart"] > 0)[1]
    return (heart[1] - heart[0]) / (lungs[1] - lungs[0])
