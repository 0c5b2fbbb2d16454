"""The healthy thorax of one phantom patient: sizes and positions in mm, and where its lungs and lobes lie.

Proportions are plain textbook ones (a chest about 26 cm wide inside, a trachea of 17 mm, a heart of 45 % of the chest's
width); every patient stretches them along three axes and shifts organs a little. The carina is the origin.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np

from datamodules.phantom.shapes import Ellipsoid, Point, Tube

LOBES = ("right upper lobe", "right middle lobe", "right lower lobe", "left upper lobe", "left lower lobe")
ROUND = 2.2  # exponent of the superellipses that the body and the rib cage are cut from

# Level (mm above the carina) → half-width, half-depth, middle's y: inside of the rib cage, then the muscle around it.
CAVITY = np.array([
    (-175, 126, 82, 2), (-100, 132, 86, 2), (-40, 128, 84, 0), (0, 119, 78, 2), (40, 103, 67, 8),
    (70, 84, 53, 14), (88, 66, 40, 19), (102, 50, 27, 24), (110, 34, 14, 27), (114, 8, 3, 28), (180, 8, 3, 28),
])  # fmt: skip
WALL = np.array([
    (-175, 142, 98, 6), (-100, 147, 103, 5), (-40, 148, 103, 4), (0, 149, 102, 5), (40, 156, 96, 8),
    (72, 168, 88, 12), (92, 160, 80, 14), (112, 112, 70, 16), (128, 76, 62, 16), (145, 62, 58, 14), (180, 60, 57, 14),
])  # fmt: skip
# Level → half-width, half-depth, middle's y of what lies between the lungs.
BETWEEN = np.array([
    (-175, 30, 70, 14), (-80, 27, 72, 14), (-30, 28, 76, 8), (0, 33, 76, 4), (30, 36, 72, 2), (60, 31, 62, 2),
    (112, 29, 48, 14), (180, 29, 48, 14),
])  # fmt: skip


@dataclass(frozen=True)
class Heart:
    """A prolate ellipsoid whose long axis points left, forward and down; mm."""

    center: Point
    long: float
    short: float
    axis: Point = (0.72, -0.45, -0.53)


@dataclass(frozen=True)
class Anatomy:
    """One patient's healthy anatomy, in world mm.

    Attributes:
        sex: `female` or `male`.
        scale: Stretch of the template along x, y, z.
        fat: Thickness of the fat below the skin.
        fov: Width of the square field of view in voxels of 1 mm.
        bottom: z of the lowest slice; `slices` of 3 mm follow upwards.
        domes: Height of the right and the left dome of the diaphragm.
        blood: HU of unenhanced blood, `liver` of the liver's tissue.
    """

    sex: str
    scale: Point
    fat: float
    fov: int
    bottom: float
    slices: int
    domes: tuple[float, float]
    heart: Heart
    trachea: Tube
    bronchi: tuple[Tube, ...]
    esophagus: Tube
    aorta: Tube
    vessels: tuple[Tube, ...]
    thyroid: tuple[Ellipsoid, Ellipsoid]
    breasts: tuple[Ellipsoid, Ellipsoid]
    liver: tuple[Ellipsoid, ...]
    spleen: Ellipsoid
    stomach: Ellipsoid
    kidneys: tuple[Ellipsoid, Ellipsoid]
    gallbladder: Ellipsoid
    blood: float
    density: dict[str, float]

    def profile(self, table: np.ndarray, z: np.ndarray | float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Half-width, half-depth and middle y (mm) of a template at levels `z`."""
        level = np.asarray(z, np.float32) / self.scale[2]
        a, b, c = (np.interp(level, table[:, 0], table[:, k]).astype(np.float32) for k in (1, 2, 3))
        return a * self.scale[0], b * self.scale[1], c * self.scale[1]

    def rho(self, table: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray, grow: float = 0.0) -> np.ndarray:
        """Superellipse value (1 on the surface) of a template grown by `grow` mm; x, y, z broadcast."""
        a, b, c = self.profile(table, z)
        a, b = np.maximum(a + grow, 1), np.maximum(b + grow, 1)
        return np.abs(x / a) ** np.float32(ROUND) + np.abs((y - c) / b) ** np.float32(ROUND)

    def diaphragm(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Height (mm) of the diaphragm above the points `(x, y)`: two domes that fall to the sides and to the back."""
        sx, sy, sz = self.scale
        dx = np.abs(x) / sx - 68
        dx = dx / np.where(dx > 0, 62, 120)
        dy = (y / sy + 6) / 76
        return np.interp(x, (-45, 45), self.domes) - 56 * sz * (dx * dx + dy * dy)

    def beside_heart(self, x: np.ndarray, y: np.ndarray, z: np.ndarray, grow: float = 0.0) -> np.ndarray:
        """Normalised squared distance from the heart's middle; 1 on its surface grown by `grow` mm."""
        (cx, cy, cz), (ax, ay, az) = self.heart.center, self.heart.axis
        x, y, z = x - cx, y - cy, z - cz
        along = x * ax + (y * ay + z * az)
        square = x * x + (y * y + z * z)
        return along**2 / (self.heart.long + grow) ** 2 + (square - along**2) / (self.heart.short + grow) ** 2

    def spine_y(self, z: np.ndarray | float) -> np.ndarray:
        """y of the vertebral bodies' middle at level z: a gentle kyphosis."""
        level = np.asarray(z, np.float32) / self.scale[2]
        return (
            np.interp(level, (-175, -80, 0, 60, 110, 150), (52, 60, 64, 58, 46, 38)).astype(np.float32) * self.scale[1]
        )

    def lungs(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Whether points lie in a lung: within the ribs, off the mediastinum, above the diaphragm."""
        inside = self.rho(CAVITY, x, y, z) < 1
        a, b, c = self.profile(BETWEEN, z)
        inside &= (x / a) ** 2 + ((y - c) / b) ** 2 > 1
        inside &= z > self.diaphragm(x, y)
        inside &= (x / (27 * self.scale[0])) ** 2 + ((y - self.spine_y(z) - 6) / (30 * self.scale[1])) ** 2 > 1
        inside &= self.beside_heart(x, y, z, 5) > 1
        aorta_x = np.interp(z, (-175, 0, 25), (8, 22, 22)) * self.scale[0]
        return inside & (((x - aorta_x) ** 2 + (y - self.spine_y(z) + 22 * self.scale[1]) ** 2 > 18**2) | (z > 45))

    def fissures(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Height of the oblique fissure at `y`, and of the horizontal one (mm)."""
        return (-34 + 1.1 * y / self.scale[1]) * self.scale[2], (-12 + 0.3 * y / self.scale[1]) * self.scale[2]

    def lobe(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Number of the lobe (index into LOBES) that points inside the lungs belong to."""
        oblique, horizontal = self.fissures(y)
        right = np.where(z < oblique, 2, np.where(z < horizontal, 1, 0))
        return np.where(x < 0, right, np.where(z < oblique, 4, 3))


def chest_front(scale: Point, x: float, z: float) -> Point:
    """The point on the front of the chest muscle at a place of the template (mm before scaling)."""
    wide, deep, middle = (float(np.interp(z, WALL[:, 0], WALL[:, k])) for k in (1, 2, 3))
    y = middle - deep * (1 - abs(x / wide) ** ROUND) ** (1 / ROUND)
    return x * scale[0], y * scale[1], z * scale[2]


def draw_anatomy(rng: random.Random, heart_size: float = 1.0, thyroid_size: float = 1.0) -> Anatomy:
    """Draw one patient's anatomy; `heart_size` and `thyroid_size` stretch those organs (cardiomegaly, goitre)."""
    sex = rng.choice(("female", "male"))
    body = 0.95 if sex == "female" else 1.02
    scale = (body * rng.uniform(0.94, 1.05), body * rng.uniform(0.92, 1.08), body * rng.uniform(0.95, 1.05))

    def at(x: float, y: float, z: float, jitter: float = 0.0) -> Point:
        a, b, c = (rng.uniform(-jitter, jitter) for _ in range(3))
        return x * scale[0] + a, y * scale[1] + b, z * scale[2] + c

    def organ(x: float, y: float, z: float, radii: Point, jitter: float = 3.0) -> Ellipsoid:
        size = rng.uniform(0.93, 1.07)
        a, b, c = radii
        return Ellipsoid(at(x, y, z, jitter), (a * scale[0] * size, b * scale[1] * size, c * scale[2] * size))

    size = heart_size * rng.uniform(0.95, 1.04)
    heart = Heart(
        at(11 + 14 * (heart_size - 1), -20, -52 - 20 * (heart_size - 1), 3), 63 * size * body, 46 * size * body
    )
    bore = rng.uniform(0.92, 1.1) * body
    carina, right_main, left_main, middle = at(1, 16, 0), at(-32, 17, -21, 2), at(38, 20, -26, 2), at(-41, 22, -45, 2)
    bronchi = (
        Tube((carina, right_main, middle), (7.2 * bore, 6.3 * bore, 5.2 * bore)),
        Tube((carina, left_main), (6.6 * bore, 5.8 * bore)),
        Tube((right_main, at(-56, 10, 10, 3)), (4.8 * bore, 3.6 * bore)),
        Tube((middle, at(-66, -14, -62, 3)), (3.8 * bore, 2.8 * bore)),
        Tube((middle, at(-60, 40, -84, 3)), (4.8 * bore, 3.2 * bore)),
        Tube((left_main, at(60, 2, -2, 3)), (4.8 * bore, 3.4 * bore)),
        Tube((left_main, at(64, 40, -80, 3)), (4.8 * bore, 3.2 * bore)),
    )
    wide = rng.uniform(0.9, 1.12) * body
    aorta = Tube(
        (at(-4, -22, -22), at(-16, -22, 0, 2), at(-14, -14, 24, 2), at(4, 4, 36, 2), at(20, 26, 28, 2),
         at(23, 40, 2, 1), at(20, 38, -90), at(8, 28, -185)),
        tuple(r * wide for r in (15.5, 16, 15, 13.5, 12.5, 12, 11.5, 10.5)),
    )  # fmt: skip
    vessels = (
        Tube((at(14, -34, -22), at(14, -22, -4), at(18, -4, -2)), (14 * wide, 13 * wide, 11 * wide)),  # pulmonary trunk
        Tube((at(14, -10, -4), at(-12, -3, -8), at(-38, 6, -12)), (10.5 * wide, 10 * wide, 8 * wide)),
        Tube((at(18, -4, -2), at(44, 12, -6)), (10.5 * wide, 8.5 * wide)),
        Tube((at(-26, -14, 60), at(-26, -12, 10), at(-24, -14, -30)), (7, 8.5, 9)),  # superior caval vein
        Tube((at(34, -18, 84), at(8, -28, 58), at(-26, -14, 52)), (6, 6.5, 6.5)),
        Tube((at(-10, -10, 34), at(-20, -4, 80), at(-26, 0, 140)), (6, 5.5, 4)),
        Tube((at(2, 0, 40), at(12, 2, 80), at(22, 2, 140)), (4.5, 4, 3.8)),
        Tube((at(12, 10, 40), at(24, 12, 88), at(52, 8, 108)), (5, 4.5, 4.5)),
        Tube((at(-16, 20, -185), at(-20, 8, -110), at(-22, -4, -80)), (11, 11, 11)),  # inferior caval vein
        Tube((at(-30, 14, -32), at(-4, 18, -34), at(30, 16, -32)), (6, 10, 6)),  # pulmonary veins
    )
    woman = sex == "female"
    fat = rng.uniform(7, 20) * (1.15 if woman else 1)
    wide_breast, deep_breast = rng.uniform(46, 60), rng.uniform(14, 34)
    breast = (wide_breast, fat + deep_breast, wide_breast) if woman else (34.0, fat * 0.5 + 3, 32.0)

    def breast_at(side: int) -> Ellipsoid:
        x, y, z = chest_front(scale, side * 76, -20 if woman else 2)
        return Ellipsoid((x, y + (3 if woman else -fat * 0.5), z), breast)

    domes = (-78 * scale[2] + rng.uniform(-7, 7), -92 * scale[2] + rng.uniform(-7, 7))
    bottom = -165 + rng.uniform(-6, 6)

    def thyroid_lobe(side: int) -> Ellipsoid:
        size = thyroid_size * rng.uniform(0.9, 1.08)
        return Ellipsoid(at(side * 17, -2, 126), (9 * size, 11 * size, 19 * size))

    return Anatomy(
        sex=sex,
        scale=scale,
        fat=fat,
        fov=rng.randrange(344, 365, 4),
        bottom=bottom,
        slices=math.ceil((rng.uniform(134, 146) - bottom) / 3),
        domes=domes,
        heart=heart,
        trachea=Tube((at(0, 0, 175), at(0, 4, 90, 1), at(1, 14, 20, 1), carina), (8.3 * bore,) * 3 + (9 * bore,)),
        bronchi=bronchi,
        esophagus=Tube(
            (at(2, 20, 175), at(5, 26, 70, 2), at(3, 33, 0, 2), at(6, 33, -60, 2), at(14, 22, -100), at(34, 6, -118)),
            (7.5,) * 6,
        ),
        aorta=aorta,
        vessels=vessels,
        thyroid=(thyroid_lobe(-1), thyroid_lobe(1)),
        breasts=(breast_at(-1), breast_at(1)),
        liver=(organ(-56, -8, -142, (84, 80, 78)), organ(6, -44, -132, (56, 32, 30))),
        spleen=organ(94, 36, -136, (27, 42, 38)),
        stomach=organ(58, -22, -136, (40, 44, 34)),
        kidneys=(organ(-58, 44, -190, (27, 25, 48)), organ(60, 44, -182, (27, 25, 48))),
        gallbladder=organ(-36, -52, -160, (14, 17, 24)),
        blood=rng.uniform(36, 52),
        density={
            "lung": rng.uniform(-885, -845),
            "liver": rng.uniform(52, 64),
            "bone": rng.uniform(130, 240),
            "thyroid": rng.uniform(85, 120),
        },
    )
