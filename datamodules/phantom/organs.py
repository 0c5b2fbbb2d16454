"""Paints one healthy patient on a canvas: what lies where, as tissue numbers and region masks."""

from __future__ import annotations

import numpy as np

from datamodules.phantom.anatomy import CAVITY, LOBES, WALL, Anatomy
from datamodules.phantom.shapes import Canvas, Ellipsoid, Point, Tube, among, waves

# Tissue numbers and their HU; a patient's own densities replace some (see `render`).
HU = {
    "air": -1000,
    "fat": -102,
    "muscle": 52,
    "skin": 20,
    "lung": -865,
    "blood": 44,
    "heart": 46,
    "cortex": 620,
    "marrow": 190,
    "cartilage": 115,
    "disc": 85,
    "cord": 28,
    "diaphragm": 45,
    "liver": 58,
    "spleen": 48,
    "stomach": 42,
    "food": 18,
    "gas": -930,
    "kidney": 32,
    "bile": 8,
    "gland": 38,
    "thyroid": 100,
    "airway": -975,
    "wall": 25,
    "vessel": 25,
    "esophagus": 38,
    "fissure": -740,
    "pericardium": 30,
    "fluid": 9,
    "node": 48,
    "metal": 2800,
    "calcium": 900,
    "plastic": 420,
    "nodule": 75,
    "granuloma": 650,
    "consolidation": 35,
    "scar": 0,
    "silicone": 95,
    "lysis": 35,
    "sclerosis": 760,
    "table": -350,
}
TISSUE = {name: number for number, name in enumerate(HU)}
T = TISSUE
BONES = ("cortex", "marrow", "cartilage", "disc", "sclerosis")


def paint_anatomy(canvas: Canvas, a: Anatomy, rng: np.random.Generator) -> None:
    """Paint body, chest cavity, organs, bones, vessels and airways; outer things first, inner ones over them."""
    _body(canvas, a)
    _breasts(canvas, a, rng)
    _skeleton(canvas, a)
    _cavity(canvas, a)
    _abdomen(canvas, a)
    _spine(canvas, a)
    _mediastinum(canvas, a)
    _lung_trees(canvas, a, rng)
    canvas.masks["lung"] &= among(
        canvas.tissue, tuple(T[name] for name in ("lung", "fissure", "vessel", "wall", "airway", "blood"))
    )


def _body(canvas: Canvas, a: Anatomy) -> None:
    x, y, z = canvas.grid((slice(None), slice(None), slice(None)))
    wall = a.rho(WALL, x, y, z)
    outer = np.float32((1 + a.fat / 118) ** 2.2)  # one field serves skin, fat and muscle: they are nearly parallel
    np.copyto(canvas.tissue, T["skin"], where=wall < outer * np.float32(1.04))
    np.copyto(canvas.tissue, T["fat"], where=wall < outer)
    np.copyto(canvas.tissue, T["muscle"], where=wall < 1)
    for side in (-1, 1):  # fat of the armpits and below the shoulder blades gives the muscle wall its layers
        for center, radii in (
            ((132, -14, 42), (10, 26, 44)),
            ((118, 44, 20), (6, 26, 60)),
            ((88, -74, 40), (36, 3.5, 34)),
            ((60, 84, 0), (40, 3, 80)),
        ):
            shape = Ellipsoid(_at(a, (side * center[0], center[1], center[2])), radii)
            canvas.paint(*canvas.ellipsoid(shape), T["fat"], only=(T["muscle"],))


def _at(a: Anatomy, p: Point) -> Point:
    return p[0] * a.scale[0], p[1] * a.scale[1], p[2] * a.scale[2]


def _breasts(canvas: Canvas, a: Anatomy, rng: np.random.Generator) -> None:
    for breast in a.breasts:
        box, inside = canvas.ellipsoid(breast)
        if a.sex == "female":
            q = canvas.quadric(box, breast.center, breast.radii)
            rim = inside & (q > 0.93) & (canvas.tissue[box] == T["air"])
            canvas.paint(box, inside, T["fat"], "breast", only=(T["air"], T["fat"], T["skin"]))
            canvas.paint(box, rim, T["skin"], only=(T["fat"],))
            x, y, z = canvas.grid(box)
            tissue = waves(rng, (x, y, z), 17) + 0.6 * waves(rng, (x, y, z), 7)
            outside = (y < breast.center[1] + 2) & (q + 0.18 * tissue < 0.52)
            canvas.paint(box, outside, T["gland"], only=(T["fat"],))
        else:
            canvas.paint(box, inside, T["fat"], "breast", only=(T["fat"], T["skin"]))
            nipple = Ellipsoid((breast.center[0], breast.center[1] - 4, breast.center[2]), (6, 4, 6))
            canvas.paint(*canvas.ellipsoid(nipple), T["gland"], "breast", only=(T["fat"],))


def _skeleton(canvas: Canvas, a: Anatomy) -> None:
    """Ribs as slanting bands around the cavity, breastbone, collarbones, shoulder blades and heads of the humeri."""
    sx, sy, sz = a.scale
    box = canvas.box((-150 * sx, -110 * sy, -1000), (150 * sx, 110 * sy, 106 * sz))
    x, y, z = canvas.grid(box)
    rho = a.rho(CAVITY, x, y, z)
    k, j, i = np.nonzero((rho > 1.02) & (rho < 1.42))
    half = np.interp(canvas.z[box[0]] / sz, CAVITY[:, 0], (CAVITY[:, 1] + CAVITY[:, 2]) / 2).astype(np.float32)[k]
    out = (np.sqrt(rho[k, j, i]) - 1) * half * np.float32(0.92) - np.float32(6)  # mm from the ribs' middle line
    yy, zz = canvas.y[box[1]][j], canvas.z[box[0]][k]
    slant = np.where(yy > 0, 0.30, 0.52) * yy
    dz = (zz - slant.astype(np.float32)) % np.float32(25 * sz) - np.float32(12.5 * sz)
    q = (out / 4.2) ** 2 + (dz / 6.5) ** 2
    front = yy < -46 * sy
    tissue = np.where(front, T["cartilage"], np.where(q > 0.42, T["cortex"], T["marrow"])).astype(np.uint8)
    rib = q < 1
    canvas.tissue[box][k[rib], j[rib], i[rib]] = tissue[rib]

    for z0, z1, wide in ((84, 66, 24), (64, -78, 15)):  # manubrium, body of the sternum
        level = np.arange(z1, z0, 3.0)
        for zz0 in level:
            _, b, c = (float(v) for v in a.profile(CAVITY, zz0 * sz))
            center = (0.0, c - b - 7, zz0 * sz)
            for grow, tissue_name in ((0, "cortex"), (-1.8, "marrow")):
                canvas.paint(*canvas.ellipsoid(Ellipsoid(center, (wide * sx + grow, 6 + grow, 3.4))), T[tissue_name])
    for side in (-1, 1):
        collar = tuple(
            _at(a, (side * px, py, pz)) for px, py, pz in ((24, -46, 80), (70, -48, 92), (112, -22, 98), (146, 6, 100))
        )
        for grow, name in ((0, "cortex"), (-2, "marrow")):
            canvas.tube(Tube(collar, (7, 5.5, 6, 6)), T[name], grow=grow)
            canvas.paint(
                *canvas.ellipsoid(Ellipsoid(_at(a, (side * 146, 14, 88)), (21 + grow,) * 3)),
                T[name],
                only=(T["muscle"], T["fat"], T["cortex"]),
            )
        for t in np.linspace(0, 1, 16):  # the blade: a stack of short plates that follow the chest wall
            low, high = np.array((66, 88, -34)), np.array((96, 66, 84))
            p = low + t * (high - low)
            across = 12 + 24 * t
            inner, outer = (
                (side * (p[0] - across * 0.8), p[1] + 7, p[2]),
                (side * (p[0] + across), p[1] - 22 * t - 6, p[2]),
            )
            canvas.paint(
                *canvas.capsule(_at(a, inner), _at(a, outer), 2.2, 3.2, flat=0.5),
                T["cortex"],
                only=(T["muscle"], T["fat"]),
            )


def _cavity(canvas: Canvas, a: Anatomy) -> None:
    """Fat inside the rib cage, the lungs in it, the diaphragm; masks of lung, pleura, mediastinum."""
    sx, sy, sz = a.scale
    box = canvas.box((-135 * sx, -92 * sy, -1000), (135 * sx, 95 * sy, 114 * sz))
    x, y, z = canvas.grid(box)
    here = canvas.tissue[box]
    inside = a.rho(CAVITY, x, y, z) < 1
    np.copyto(here, T["fat"], where=inside)
    below = (a.diaphragm(x, y) - z).astype(np.float32)
    np.copyto(here, T["diaphragm"], where=inside & (below > 0) & (below < 4))
    lungs = a.lungs(x, y, z)
    np.copyto(here, T["lung"], where=lungs)
    oblique, horizontal = a.fissures(y)
    crease = (np.abs(z - oblique) < 1.1) | ((np.abs(z - horizontal) < 1.2) & (x < 0) & (z > oblique))
    np.copyto(here, T["fissure"], where=lungs & crease)
    canvas.masks["lung"][box] = lungs
    between = a.profile(CAVITY, z)
    core = (
        inside
        & ~lungs
        & (below < 0)
        & (np.abs(x) < 62 * sx)
        & (y < a.spine_y(z) - 12 * sy)
        & (np.abs(x) < between[0] * 0.8)
    )
    canvas.masks["mediastinum"][box] = core


def _abdomen(canvas: Canvas, a: Anatomy) -> None:
    """Organs below the diaphragm and inside the ribs."""

    def organ(shape: Ellipsoid, tissue: str, grow: float = 0.0, gas: bool = False) -> None:
        box, inside = canvas.ellipsoid(shape, grow)
        x, y, z = canvas.grid(box)
        inside &= a.rho(CAVITY, x, y, z, -3) < 1
        inside &= z < a.diaphragm(x, y) - 4
        if gas:  # rises to the front of a patient who lies on the back
            inside &= y < shape.center[1] - 8
        canvas.paint(box, inside, T[tissue], None if tissue == "fat" else "abdomen")

    for part in a.liver:
        organ(part, "liver")
    organ(a.spleen, "spleen")
    for grow, tissue in ((0, "stomach"), (-4, "food")):
        organ(a.stomach, tissue, grow)
    organ(a.stomach, "gas", -4, gas=True)
    for kidney in a.kidneys:
        organ(kidney, "fat", 7)
        organ(kidney, "kidney")
    organ(a.gallbladder, "stomach", 1.5)
    organ(a.gallbladder, "bile")


def _spine(canvas: Canvas, a: Anatomy) -> None:
    """Vertebral bodies with discs every 25 mm, canal, arch, transverse and spinous processes."""
    sx, sy, sz = a.scale
    box = canvas.box((-48 * sx, 20, -1000), (48 * sx, 125 * sy, 1000))
    x, y, z = canvas.grid(box)
    here = canvas.tissue[box]
    middle = a.spine_y(z)
    size = np.interp(z / sz, (-175, 0, 150), (1.12, 1.0, 0.72)).astype(np.float32)
    body = (x / (17 * sx * size)) ** 2 + ((y - middle) / (14 * sy * size)) ** 2
    phase = np.abs((z / sz + 12.5) % 25 - 12.5)
    disc = phase < 2.6
    arch_y = middle + 23 * sy
    ring = (x / (14 * sx)) ** 2 + ((y - arch_y) / (12 * sy)) ** 2
    wings = (np.abs(y - arch_y - np.abs(x) * 0.1) < 4.5) & (np.abs(x) < 34 * sx) & (phase > 6)
    spinous = (np.abs(x) < 3.2) & (y > arch_y + 8) & (y < arch_y + 34 * sy) & (phase > 4)
    facet = (((np.abs(x) - 13 * sx) / 7) ** 2 + ((y - arch_y - 2) / 7) ** 2) < 1
    np.copyto(here, T["cortex"], where=wings | spinous | facet | (ring < 1))
    np.copyto(
        here,
        T["marrow"],
        where=(np.abs(y - arch_y - np.abs(x) * 0.1) < 2.6)
        & (np.abs(x) < 32 * sx)
        & (np.abs(x) > 16 * sx)
        & (phase > 7.5),
    )
    np.copyto(here, T["cord"], where=(x / (9.5 * sx)) ** 2 + ((y - arch_y) / (8 * sy)) ** 2 < 1)
    np.copyto(here, T["cortex"], where=(body < 1) & ~disc)
    np.copyto(here, T["marrow"], where=(body < 0.80) & (phase > 4.6))
    np.copyto(here, T["disc"], where=(body < 1) & disc)


def _mediastinum(canvas: Canvas, a: Anatomy) -> None:
    for vessel in (*a.vessels, a.aorta):
        canvas.tube(vessel, T["blood"], only=(T["fat"], T["diaphragm"], T["liver"], T["muscle"]))
    h = a.heart
    reach = (h.long + 6,) * 3
    box = canvas.around(h.center, reach)
    x, y, z = canvas.grid(box)
    above = z > a.diaphragm(x, y) - 3
    q = [(a.beside_heart(x, y, z, grow) < 1) & above for grow in (3.2, 2.0, 0.0)]
    keep = (T["fat"], T["blood"], T["diaphragm"], T["liver"], T["stomach"])
    for inside, tissue in zip(q, ("pericardium", "fat", "heart"), strict=True):
        canvas.paint(box, inside, T[tissue], "heart", only=(*keep, T["pericardium"]))
    canvas.tube(a.aorta, T["blood"], only=(T["fat"], T["pericardium"]))
    canvas.tube(a.esophagus, T["esophagus"], "esophagus")
    gas = Tube(a.esophagus.points[:3], (2.0, 2.2, 1.5))
    canvas.tube(gas, T["gas"])
    for lobe in a.thyroid:
        canvas.paint(*canvas.ellipsoid(lobe), T["thyroid"], "thyroid")
    isthmus = tuple((lobe.center[0] * 0.5, lobe.center[1] - 6, lobe.center[2] - 3) for lobe in a.thyroid)
    canvas.paint(*canvas.capsule(isthmus[0], isthmus[1], 4, 4), T["thyroid"], "thyroid")
    for grow, tissue in ((1.6, "wall"), (0.0, "airway")):
        canvas.tube(a.trachea, T[tissue], "trachea and bronchie", grow)
        for bronchus in a.bronchi:
            canvas.tube(bronchus, T[tissue], "trachea and bronchie", grow)
    for name in ("thyroid", "esophagus", "heart"):
        canvas.masks[name] &= 1 - canvas.masks["trachea and bronchie"]


def lung_targets(a: Anatomy, rng: np.random.Generator, lobe: int, count: int) -> np.ndarray:
    """Points `(count, 3)` spread through a lobe: where its branches lead."""
    sign = -1 if lobe < 3 else 1
    points: list[np.ndarray] = []
    while sum(len(p) for p in points) < count:
        x, y, z = sign * rng.uniform(28, 122, 400), rng.uniform(-78, 80, 400), rng.uniform(-140, 104, 400)
        x, y, z = x * a.scale[0], y * a.scale[1], z * a.scale[2]
        good = a.lungs(x, y, z) & (a.lobe(x, y, z) == lobe)
        points.append(np.stack((x, y, z), 1)[good])
    return np.concatenate(points)[:count]


def _lung_trees(canvas: Canvas, a: Anatomy, rng: np.random.Generator) -> None:
    """Vessels that taper from the hilum to the rim of each lobe, with segmental bronchi beside them."""
    lung = (T["lung"], T["fissure"])
    roots = (
        a.bronchi[2].points[-1],
        a.bronchi[3].points[-1],
        a.bronchi[4].points[-1],
        a.bronchi[5].points[-1],
        a.bronchi[6].points[-1],
    )
    for lobe in range(len(LOBES)):
        root = np.array(roots[lobe]) + np.array((0, 0, 6.0))
        hilum = np.array((-40 if lobe < 3 else 46, 10, -12)) * np.array(a.scale)
        canvas.paint(*canvas.capsule(tuple(hilum), tuple(root), 6.5, 5.0), T["blood"], only=lung)
        for target in lung_targets(a, rng, lobe, 8 if lobe != 1 else 4):
            bend = root + (target - root) * 0.5 + rng.normal(0, 5, 3)
            canvas.paint(*canvas.capsule(tuple(root), tuple(bend), 4.4, 2.9, 0.7), T["vessel"], only=lung)
            canvas.paint(*canvas.capsule(tuple(bend), tuple(target), 2.9, 1.5, 0.6), T["vessel"], only=lung)
            beside = np.array((5.0, -3.0, 0.0)) * (1 if lobe < 3 else -1)
            for grow, tissue in ((1.0, "wall"), (0.0, "airway")):
                canvas.paint(
                    *canvas.capsule(tuple(root), tuple(bend + beside), 2.6 + grow, 1.4 + grow, 0.7),
                    T[tissue],
                    only=(*lung, T["wall"]),
                )
            for _ in range(5):
                tip = target + rng.normal(0, 20, 3)
                canvas.paint(
                    *canvas.capsule(tuple(bend + (target - bend) * rng.uniform(0, 1)), tuple(tip), 1.7, 0.8, 0.5),
                    T["vessel"],
                    only=lung,
                )
                for _ in range(2):
                    canvas.paint(
                        *canvas.capsule(tuple(tip), tuple(tip + rng.normal(0, 11, 3)), 0.9, 0.6, 0.45),
                        T["vessel"],
                        only=lung,
                    )
