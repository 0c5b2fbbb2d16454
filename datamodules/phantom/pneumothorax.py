"""Draws a pneumothorax, a chest tube and a rib fracture onto a phantom patient's frontal radiograph.

The healthy chest is projected once (`project_thorax`); several films are then exposed of it, each a little differently
placed. A pneumothorax is drawn into the projections: the part of the lung next to the chest wall gives way to air that
has no vessels, bounded by the thin line of the visceral pleura; what is left of the lung is denser. As air lies before
or behind what is left, only some of the lung's shadow goes, so the film shows it faintly. The mask is exact: the
pixels whose shadow was taken away.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from datamodules.phantom.anatomy import Anatomy
from datamodules.phantom.organs import paint_anatomy
from datamodules.phantom.patient import Patient, draw_patient
from datamodules.phantom.pneumothorax_wording import PLACES, SIDES, SIZES, Chest, Lesion
from datamodules.phantom.radiograph import LEVEL, WATER, Detector, Film, Lattice, attenuation, magnification
from datamodules.phantom.render import tissue_densities
from datamodules.phantom.shapes import Box

SIZE = 512  # pixels of a side; CANDID-PTX has 1024
RANGES = ((0.035, 0.10), (0.15, 0.26), (0.36, 0.55))  # shares of the hemithorax that are drawn, by size
BILATERAL, TUBED, BROKEN = 0.12, 0.35, 0.2  # of the patients, of the films with pneumothorax, of the patients
REACH = {"apical": (0.0, 0.22), "lateral": (0.5, 0.20), "basal": (1.0, 0.22)}  # middle and spread, apex 0, base 1
LINE = 2.4  # mm of water that the visceral pleura, seen edge-on, is worth
TUBE = 9.0  # likewise the wall of a chest tube
CLEFT = 12.0  # mm of water that are missing in a rib's fracture


@dataclass(frozen=True)
class Thorax:
    """A healthy chest, projected.

    Attributes:
        path: Line integrals of everything, float32 `(row, column)`.
        lungs: The part of them that is the lung's, by side.
        fields: Where a lung is seen, neither behind the heart nor behind the dome of the diaphragm: 1, else 0.
        pitch: Millimetres between pixels.
    """

    path: np.ndarray
    lungs: dict[str, np.ndarray]
    fields: dict[str, np.ndarray]
    pitch: float


@dataclass(frozen=True)
class Exposure:
    """One film.

    Attributes:
        grey: Float32 `(row, column)` in [0, 1], higher is brighter.
        lesions: Masks of `Chest.lesions` in their order, uint8 `{0, 1}` `(row, column)`.
        tube: Mask of the chest tube, empty where there is none.
        fracture: Mask of the rib fracture, likewise.
        hemithorax: Mask of each side's lung field, the pneumothorax included.
    """

    grey: np.ndarray
    lesions: tuple[np.ndarray, ...]
    tube: np.ndarray
    fracture: np.ndarray
    hemithorax: dict[str, np.ndarray]


def draw_course(seed: int, positive: Sequence[bool]) -> list[Chest]:
    """What a patient's films show, one after the other; where a pneumothorax is, is the patient's own.

    Args:
        seed: The patient's.
        positive: Whether each film shows a pneumothorax.
    """
    rng = random.Random(f"phantom pneumothorax {seed}")
    sides = rng.sample(SIDES, 2 if rng.random() < BILATERAL else 1)
    places = {side: rng.choice(tuple(PLACES)) for side in sides}
    fracture = sides[0] if rng.random() < BROKEN else ""
    size, course = {side: rng.choice((0, 0, 1, 1, 2)) for side in sides}, []
    for shows in positive:
        lesions = tuple(
            Lesion(side, places[side], rng.uniform(*RANGES[size[side]])) for side in SIDES if shows and side in places
        )
        tube = sides[0] if shows and rng.random() < TUBED else ""
        course.append(Chest(lesions, tube, fracture))
        size = {side: min(max(size[side] + rng.choice((-1, 0, 0, 1)), 0), len(SIZES) - 1) for side in sides}
    return course


def project_thorax(seed: int) -> Thorax:
    """The healthy chest of the patient of a seed, `SIZE` x `SIZE` pixels."""
    anatomy = draw_patient(seed).anatomy
    frame, canvas = random.Random(f"phantom detector {seed}"), Lattice(anatomy)
    paint_anatomy(canvas, anatomy, np.random.default_rng(seed))
    shadow = np.take(attenuation(tissue_densities(Patient(seed, anatomy, ()))), canvas.tissue)  # per mm
    side, top = frame.uniform(326, 336), LEVEL + (float(canvas.z[-1]) - LEVEL) * magnification(-100)
    detector = Detector(SIZE, SIZE, side / SIZE, -side / 2, top)
    heart, lung = canvas.masks["heart"], canvas.masks["lung"]
    box = _depths(heart)
    seen = (detector.project(canvas, heart[box], box) <= 2) & _above_the_domes(anatomy, detector)
    rows, depths, columns = _depths(lung)
    middle, lungs = int(np.searchsorted(canvas.x, 0.0)), {}
    for name, half in (("right", slice(0, middle)), ("left", slice(middle, columns.stop))):
        box = (rows, depths, half)
        lungs[name] = detector.project(canvas, shadow[box] * lung[box], box)
    fields = {name: ((lung > 0.01) & seen).astype(np.float32) for name, lung in lungs.items()}
    return Thorax(detector.project(canvas, shadow), lungs, fields, detector.pitch)


def _depths(organ: np.ndarray) -> Box:
    """A box that holds an organ `(z, y, x)`, tight along the beam only."""
    filled = np.flatnonzero(organ.any(axis=(0, 2)))
    return slice(0, organ.shape[0]), slice(int(filled[0]), int(filled[-1]) + 1), slice(0, organ.shape[2])


def _above_the_domes(a: Anatomy, detector: Detector) -> np.ndarray:
    """Pixels above the silhouette of the diaphragm, bool `(row, column)`."""
    x = (detector.left + detector.pitch * np.arange(SIZE)) / magnification(0)
    y = -6 * a.scale[1]  # where the domes are highest
    heights = a.diaphragm(x, np.full_like(x, y)).tolist()
    rows = [detector.place(at, y, height)[1] for at, height in zip(x, heights, strict=True)]
    return np.arange(SIZE)[:, None] < np.array(rows)


def expose(thorax: Thorax, chest: Chest, seed: int) -> Exposure:
    """Take one film; the seed decides its noise, how the patient stands, and the details of what is drawn."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    thorax = _placed(thorax, rng)
    path, pitch = thorax.path.copy(), thorax.pitch
    hemithorax = {side: (field > 0.5).astype(np.uint8) for side, field in thorax.fields.items()}
    masks = []
    for lesion in chest.lesions:
        lung, field = thorax.lungs[lesion.side], hemithorax[lesion.side] > 0
        mask = pleural_air(field, lesion.side, lesion.place, lesion.share, rng)
        masks.append(mask.astype(np.uint8))
        left = (lung > 0.01) & ~mask
        gone = rng.uniform(0.45, 0.6)
        smooth = np.minimum(lung, ndimage.gaussian_filter(lung, 4 / pitch, truncate=2.0))  # without its vessels
        path += np.where(mask, (1 - gone) * smooth - lung, np.where(left, 0.3 * lesion.share * lung, 0))
        edge = ndimage.binary_dilation(mask, iterations=2) & left
        path += WATER * LINE * ndimage.gaussian_filter(edge.astype(np.float32), 0.6)
    both = (thorax.lungs["right"] + thorax.lungs["left"]) > 0.01
    tube, fracture = (np.zeros((SIZE, SIZE), np.uint8) for _ in range(2))
    if chest.tube:
        tube = _draw_tube(path, hemithorax[chest.tube], chest.tube, pitch, rng)
    if chest.fracture:
        fracture = _draw_fracture(path, hemithorax[chest.fracture], chest.fracture, pitch)
    return Exposure(Film(path, both).expose(rng), tuple(masks), tube, fracture, hemithorax)


def _placed(thorax: Thorax, rng: np.random.Generator) -> Thorax:
    """Turned by up to 2 degrees, shifted by up to 4 mm and scaled by up to 3 %; outside is collimated: air."""
    turn, scale = math.radians(rng.uniform(-2, 2)), rng.uniform(0.97, 1.03)
    dx, dy = rng.uniform(-4, 4, 2) / thorax.pitch
    a, b = math.cos(turn) / scale, math.sin(turn) / scale
    middle = SIZE / 2
    affine = (
        a,
        b,
        middle - a * (middle + dx) - b * (middle + dy),
        -b,
        a,
        middle + b * (middle + dx) - a * (middle + dy),
    )

    def moved(plane: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(plane)
        return np.asarray(picture.transform(picture.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR))

    lungs, fields = ({side: moved(plane) for side, plane in of.items()} for of in (thorax.lungs, thorax.fields))
    return Thorax(moved(thorax.path), lungs, fields, thorax.pitch / scale)


def pleural_air(field: np.ndarray, side: str, place: str, share: float, rng: np.random.Generator) -> np.ndarray:
    """The pixels between chest wall and collapsed lung: those nearest to the wall, as seen from the place.

    Args:
        field: One lung, bool `(row, column)`.
        side: `right` or `left`: where its chest wall is.
        place: One of PLACES.
        share: Of the field's pixels; what is returned has it to a pixel.
        rng: Makes the lung's edge uneven.

    Returns:
        bool `(row, column)`.
    """
    from scipy import ndimage

    rows, columns = (np.flatnonzero(field.any(axis=axis)) for axis in (1, 0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    whole, field = np.zeros(field.shape, bool), field[box]
    height = np.linspace(0, 1, len(field))
    distance = ndimage.distance_transform_edt(_inside_the_wall(field, side == "right"))[1:]
    distance = distance[:, 1:] if side == "right" else distance[:, :-1]
    middle, spread = REACH[place]
    weight = 0.03 + np.exp(-0.5 * ((height - middle) / spread) ** 2)
    uneven = ndimage.gaussian_filter(rng.standard_normal(field.shape, np.float32)[::8, ::8], 3)
    uneven = np.asarray(Image.fromarray(uneven / uneven.std()).resize(field.shape[::-1], Image.Resampling.BICUBIC))
    depth = np.where(field, distance / weight[:, None] * (1 + 0.08 * uneven), np.inf)
    count = round(share * int(field.sum()))
    chosen = np.zeros(field.size, bool)
    chosen[np.argpartition(depth.ravel(), count)[:count]] = True
    whole[box] = chosen.reshape(field.shape)
    return whole


def _inside_the_wall(field: np.ndarray, right: bool) -> np.ndarray:
    """A cut out lung field with all that lies medial to it or below it: what is outside is the chest wall.

    Args:
        field: bool `(row, column)`.
        right: Whether it is the right lung's, whose wall is on the picture's left.

    Returns:
        bool, a row above and a column lateral to the field more than it.
    """
    inside = np.maximum.accumulate(field if right else field[:, ::-1], axis=1)
    inside = np.pad(inside, ((1, 0), (1, 0)))
    return inside if right else inside[:, ::-1]


def _draw_tube(path: np.ndarray, field: np.ndarray, side: str, pitch: float, rng: np.random.Generator) -> np.ndarray:
    """A chest tube from the flank towards the apex, added to the path; its mask."""
    from scipy import ndimage

    rows, columns = np.nonzero(field)
    top, bottom = rows.min(), rows.max()
    outer, inner = (columns.min(), columns.max()) if side == "right" else (columns.max(), columns.min())
    way = 1 if side == "right" else -1
    start = np.array([outer - way * 30 / pitch, top + rng.uniform(0.6, 0.75) * (bottom - top)])
    bend = np.array([outer + way * rng.uniform(10, 30) / pitch, top + rng.uniform(0.45, 0.6) * (bottom - top)])
    end = np.array([outer + rng.uniform(0.45, 0.65) * (inner - outer), top + rng.uniform(0.12, 0.25) * (bottom - top)])
    t = np.linspace(0, 1, 40)[:, None]
    line = [tuple(point) for point in ((1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end).tolist()]

    def drawn(width: float) -> np.ndarray:
        picture = Image.new("L", path.shape[::-1])
        ImageDraw.Draw(picture).line(line, fill=1, width=max(1, round(width / pitch)), joint="curve")
        return np.asarray(picture)

    mask = drawn(6)
    wall = mask - 0.6 * drawn(3)
    path += WATER * TUBE * ndimage.gaussian_filter(wall.astype(np.float32), 0.7)
    return mask.copy()


def _draw_fracture(path: np.ndarray, field: np.ndarray, side: str, pitch: float) -> np.ndarray:
    """A cleft through a rib at the flank, with a step; changes the path; the mask is what a reader would outline."""
    from scipy import ndimage

    rows = np.flatnonzero(field.any(axis=1))
    level = int(rows[0] + 0.6 * (rows[-1] - rows[0]))
    columns = np.flatnonzero(field[level])
    column = int(columns[0] + 16 / pitch) if side == "right" else int(columns[-1] - 16 / pitch)
    reach = int(14 / pitch)
    strip = path[level - reach : level + reach, column - 2 : column + 3].mean(axis=1)
    ribs = ndimage.gaussian_filter1d(strip, 2 / pitch) - ndimage.gaussian_filter1d(strip, 10 / pitch)
    row = level - reach + int(np.argmax(ribs))
    y, x = np.ogrid[row - reach : row + reach, column - reach : column + reach]
    slant = 0.6 if side == "right" else -0.6
    along, across = (x - column + slant * (y - row)) * pitch, (y - row) * pitch
    step, cleft = np.exp(-(((along - 2.5) / 1.5) ** 2)), np.exp(-((along / 1.2) ** 2))
    spot = (slice(row - reach, row + reach), slice(column - reach, column + reach))
    path[spot] += WATER * CLEFT * np.exp(-((across / 5) ** 4)) * (step - cleft)
    mask = np.zeros(path.shape, np.uint8)
    mask[spot] = ((along / 9) ** 2 + (across / 7) ** 2) < 1
    return mask
