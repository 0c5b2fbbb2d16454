"""Paints a patient's findings: shapes on the tissue map, then haze on the HU of the lungs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from datamodules.phantom.anatomy import CAVITY, Anatomy, chest_front
from datamodules.phantom.organs import TISSUE as T
from datamodules.phantom.organs import lung_targets
from datamodules.phantom.patient import LOBES, Finding
from datamodules.phantom.shapes import Canvas, Ellipsoid, Point, Tube, among, waves

LUNG = (T["lung"], T["fissure"])
AIRY = (*LUNG, T["vessel"], T["wall"], T["airway"])


def paint_finding(canvas: Canvas, a: Anatomy, finding: Finding) -> None:
    """Paint a finding that has a shape of its own (nothing for a pure haze)."""
    painter = SHAPES.get(finding.label)
    if painter:
        painter(canvas, a, finding, np.random.default_rng(finding.seed))


def _at(a: Anatomy, p: Point) -> Point:
    return p[0] * a.scale[0], p[1] * a.scale[1], p[2] * a.scale[2]


def _sides(side: str) -> tuple[int, ...]:
    return {"right": (-1,), "left": (1,)}.get(side, (-1, 1))


def _under_skin(a: Anatomy, x: float, z: float) -> Point:
    x, y, z = chest_front(a.scale, x, z)
    return x, y - 3, z


def _ball(
    canvas: Canvas, center: Point, diameter: float, tissue: str, region: str | None = None, only: tuple[int, ...] = ()
) -> None:
    canvas.paint(
        *canvas.ellipsoid(Ellipsoid(center, (diameter / 2, diameter / 2, max(diameter / 2, 3.1)))),
        T[tissue],
        region,
        only,
    )


# ---- lungs and pleura -----------------------------------------------------------------------------------------------


def _nodule(canvas: Canvas, a: Anatomy, f: Finding, rng: np.random.Generator) -> None:
    for point, size in zip(f.points, f.sizes, strict=True):
        _ball(canvas, point, size + 6, "lung", only=(T["vessel"], T["wall"], T["airway"]))  # not lost among the vessels
        _ball(canvas, point, size, "granuloma" if f.kind == "calcified" else "nodule", only=AIRY)


def _effusion(canvas: Canvas, a: Anatomy, f: Finding, rng: np.random.Generator) -> None:
    """Fluid behind and below the lung, thickest at the back, thinning upwards; the pleura's, no longer the lung's."""
    sx, sy, sz = a.scale
    for side in _sides(f.side):
        low, high = (0.0, 135 * sx) if side > 0 else (-135 * sx, 0.0)
        box = canvas.box((low, -60 * sy, -1000), (high, 95 * sy, 60 * sz))
        x, y, z = canvas.grid(box)
        _, b, c = a.profile(CAVITY, z)
        depth = (1 - np.sqrt(a.rho(CAVITY, x, y, z))) * b
        thick = f.size * np.clip((y - c + 25) / (b + 10), 0, 1) * np.clip((45 - z) / 70, 0, 1)
        recess = (z - a.diaphragm(x, y)) < thick * 0.45
        fluid = ((depth < thick) | (recess & (y > c - 20))) & (canvas.masks["lung"][box] == 1)
        canvas.paint(box, fluid, T["fluid"], "pleura")
        canvas.masks["lung"][box][fluid] = 0


def _consolidation(canvas: Canvas, a: Anatomy, f: Finding, rng: np.random.Generator) -> None:
    for point, size in zip(f.points, f.sizes, strict=True):
        radii = (size / 2, size / 2, size / 2)
        box = canvas.around(point, (size * 0.75,) * 3)
        x, y, z = canvas.grid(box)
        inside = canvas.quadric(box, point, radii) + 0.3 * waves(rng, (x, y, z), 22) < 1
        inside &= a.lobe(x, y, z) == LOBES.index(f.place)
        canvas.paint(box, inside & (canvas.masks["lung"][box] == 1), T["consolidation"], only=(*LUNG, T["vessel"]))
        hilum = np.array(_at(a, (-40 if point[0] < 0 else 44, 14, -16)))
        for _ in range(4):  # air bronchograms
            tip = np.array(point) + rng.normal(0, size / 5, 3)
            start = tip + (hilum - tip) * min(1.0, 0.7 * size / float(np.linalg.norm(hilum - tip)))
            canvas.paint(
                *canvas.capsule(tuple(start), tuple(tip), 1.8, 1.0, 0.6), T["airway"], only=(T["consolidation"],)
            )


def _atelectasis(canvas: Canvas, a: Anatomy, f: Finding, rng: np.random.Generator) -> None:
    """Plate-like bands that cross the base of a lobe."""
    for point in f.points:
        for shift in (0.0, 16.0):
            radii = (30.0, 26.0, 3.2 - shift / 20)
            center = (point[0], point[1] + shift / 2, point[2] + shift)
            box = canvas.around(center, (32, 30, 14))
            x, y, z = canvas.grid(box)
            tilt = (z - center[2] - 0.6 * (y - center[1])) * 0.85 + 0.12 * (x - center[0]) * np.sign(point[0])
            band = ((x - center[0]) / radii[0]) ** 2 + ((y - center[1]) / radii[1]) ** 2 + (tilt / radii[2]) ** 2 < 1
            canvas.paint(box, band & (canvas.masks["lung"][box] == 1), T["scar"], only=AIRY)


def _fibrotic(canvas: Canvas, a: Anatomy, f: Finding, rng: np.random.Generator) -> None:
    """A cap of scar at the lung's apex with strands that run down from it."""
    for side in _sides(f.side):
        apex = _at(a, (side * 40, 24, 98))
        box = canvas.around(apex, (44, 44, 34))
        x, y, z = canvas.grid(box)
        cap = (a.rho(CAVITY, x, y, z) + 0.16 * waves(rng, (x, y, z), 18) > 0.66) & (z > 72 * a.scale[2])
        canvas.paint(box, cap & (canvas.masks["lung"][box] == 1), T["scar"], only=AIRY)
        for _ in range(9):
            start = np.array(apex) + rng.normal(0, 8, 3)
            end = start + np.array((side * rng.uniform(-14, 22), rng.uniform(-26, 22), rng.uniform(-46, -22)))
            canvas.paint(*canvas.capsule(tuple(start), tuple(end), 2.4, 1.0, 0.6), T["scar"], only=AIRY)


def _bronchiectasis(canvas: Canvas, a: Anatomy, f: Finding, rng: np.random.Generator) -> None:
    """A cluster of wide, thick-walled airways in one lobe."""
    point = np.array(f.points[0])
    hilum = np.array(_at(a, (-40 if point[0] < 0 else 44, 14, -16)))
    toward = (hilum - point) / np.linalg.norm(hilum - point)
    for _ in range(9):
        tip = point + rng.normal(0, 10, 3)
        start, radius = tip + toward * rng.uniform(14, 30), rng.uniform(3.4, 5.2)
        for grow, tissue, only in ((1.8, "wall", AIRY), (0.0, "airway", (T["wall"], *LUNG))):
            canvas.paint(
                *canvas.capsule(tuple(start), tuple(tip), radius * 0.8 + grow, radius + grow), T[tissue], only=only
            )


def _thick_bronchi(canvas: Canvas, a: Anatomy, f: Finding, rng: np.random.Generator) -> None:
    """Cuffs around the lobar and segmental bronchi of both lungs."""
    soft = (*LUNG, T["vessel"], T["wall"], T["fat"], T["blood"])
    for tube in a.bronchi:
        canvas.tube(tube, T["wall"], "trachea and bronchie", grow=4.4, only=soft)
    for lobe, tube in enumerate(a.bronchi[2:]):
        for target in lung_targets(a, rng, lobe, 3):
            root = np.array(tube.points[-1])
            bend = root + (target - root) * 0.5
            for grow, tissue in ((3.4, "wall"), (0.0, "airway")):
                only = soft[:4] if tissue == "wall" else (T["wall"],)
                canvas.paint(
                    *canvas.capsule(tuple(root), tuple(bend), 2.6 + grow, 1.5 + grow, 0.7), T[tissue], only=only
                )


# ---- heart, mediastinum ---------------------------------------------------------------------------------------------


def _pericardial(canvas: Canvas, a: Anatomy, f: Finding, rng: np.random.Generator) -> None:
    """Fluid around the heart, deepest behind and below; it pushes the lungs aside."""
    reach = (a.heart.long + f.size + 4,) * 3
    box = canvas.around(a.heart.center, reach)
    x, y, z = canvas.grid(box)
    sac = (a.beside_heart(x, y, z, f.size) < 1) & (canvas.masks["heart"][box] == 0) & (a.rho(CAVITY, x, y, z, -3) < 1)
    sac &= z > a.diaphragm(x, y) - 3
    sac &= z < a.heart.center[2] + 34
    keep = (*AIRY, T["fat"], T["pericardium"], T["diaphragm"], T["liver"], T["consolidation"], T["scar"])
    sac &= among(canvas.tissue[box], keep)
    canvas.paint(box, sac, T["fluid"], "heart")  # the fat on the heart stays between muscle and fluid
    canvas.masks["lung"][box][sac] = 0


def _coronary(canvas: Canvas, a: Anatomy, f: Finding, rng: np.random.Generator) -> None:
    """Dense beads along a coronary artery's course on the heart's surface."""
    h = a.heart
    way = {"left main": ((0.25, -0.4, 0.9), (0.7, -0.6, 0.55)), "right": ((-0.6, -0.75, 0.3), (-0.75, -0.5, -0.5))}.get(
        f.place, ((0.45, -0.75, 0.6), (0.6, -0.95, -0.45))
    )
    for t in np.linspace(0, 1, 4):
        direction = np.array(way[0]) * (1 - t) + np.array(way[1]) * t
        direction /= np.linalg.norm(direction)
        along = float(direction @ np.array(h.axis))
        radius = 1 / np.sqrt(along**2 / h.long**2 + (1 - along**2) / h.short**2) + 0.5
        p, q = np.array(h.center) + direction * radius, np.array(h.center) + direction * radius + rng.normal(0, 3, 3)
        canvas.paint(
            *canvas.capsule(tuple(p), tuple(q), 2.6, 2.0, 0.7),
            T["calcium"],
            "heart",
            only=(T["heart"], T["fat"], T["pericardium"], T["fluid"], T["blood"]),
        )


def _aortic_plaques(canvas: Canvas, a: Anatomy, f: Finding, rng: np.random.Generator) -> None:
    """Dense crescents in the wall of a stretch of the aorta."""
    points = np.array(a.aorta.points)
    stretch = {"ascending aorta": (0, 2), "aortic arch": (2, 4), "descending aorta": (5, 6)}[f.place]
    for _ in range(9):
        k = int(rng.integers(stretch[0], stretch[1]))
        t = rng.uniform(0, 1)
        middle = points[k] * (1 - t) + points[k + 1] * t
        radius = a.aorta.radii[k] * (1 - t) + a.aorta.radii[k + 1] * t
        across = np.cross(points[k + 1] - points[k], rng.normal(0, 1, 3))
        spot = middle + across / np.linalg.norm(across) * (radius - 1.2)
        box, inside = canvas.ellipsoid(Ellipsoid(tuple(spot), (5.5, 5.5, 6.0)))
        x, y, z = canvas.grid(box)
        axis = (points[k + 1] - points[k]) / np.linalg.norm(points[k + 1] - points[k])
        along = (x - middle[0]) * axis[0] + (y - middle[1]) * axis[1] + (z - middle[2]) * axis[2]
        out = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 + (z - middle[2]) ** 2 - along**2
        canvas.paint(
            box,
            inside & (out > (radius - 3.4) ** 2) & (out < (radius + 0.8) ** 2),
            T["calcium"],
            "mediastinum",
            only=(T["blood"], T["fat"]),
        )


def _nodes(canvas: Canvas, a: Anatomy, f: Finding, rng: np.random.Generator) -> None:
    for point, size in zip(f.points, f.sizes, strict=True):
        shape = Ellipsoid(point, (size / 2, size / 2 * 1.1, size / 2 * 1.4))
        box, inside = canvas.ellipsoid(shape)
        inside &= ~among(
            canvas.tissue[box], (T["airway"], T["esophagus"], T["gas"], T["heart"], T["marrow"], T["cortex"])
        )
        canvas.paint(box, inside, T["node"], "mediastinum")
        canvas.masks["lung"][box][inside] = 0


def _hernia(canvas: Canvas, a: Anatomy, f: Finding, rng: np.random.Generator) -> None:
    """A pouch of stomach with gas and fluid behind the heart, above the diaphragm."""
    radius = f.size / 2
    center = _at(a, (12, 24, -86))
    center = (center[0], center[1] + (radius - 15) * 0.2, center[2])
    for grow, tissue in ((0.0, "stomach"), (-3.5, "food"), (-3.5, "gas")):
        box, inside = canvas.ellipsoid(Ellipsoid(center, (radius, radius * 0.85, radius * 1.05)), grow)
        x, y, z = canvas.grid(box)
        if tissue == "gas":
            inside &= y < center[1] - radius * 0.15
        inside &= ~among(canvas.tissue[box], (T["cortex"], T["marrow"], T["disc"], T["cord"]))
        if tissue == "stomach":
            inside &= (x - a.aorta.points[6][0]) ** 2 + (y - a.aorta.points[6][1]) ** 2 > 14**2
            for region in ("lung", "mediastinum", "heart", "pleura"):
                canvas.masks[region][box][inside] = 0
            canvas.paint(box, inside, T[tissue], "esophagus")
        else:
            canvas.paint(box, inside, T[tissue], only=(T["stomach"], T["food"]))


def _material(canvas: Canvas, a: Anatomy, f: Finding, rng: np.random.Generator) -> None:
    if f.kind == "pacemaker":
        can = Ellipsoid(_under_skin(a, 86, 50), (19, 5, 21))
        canvas.paint(*canvas.ellipsoid(can), T["metal"])
        lead = (
            (84, -70, 64),
            (52, -30, 92),
            (-10, -24, 62),
            (-26, -12, 40),
            (-24, -14, -30),
            (2, -24, -62),
            (30, -36, -78),
        )
        canvas.tube(Tube(tuple(_at(a, p) for p in lead), (1.5,) * 7), T["metal"], flat=0.6)
        tip = Tube(tuple(_at(a, p) for p in lead[4:]), (2.0, 2.0, 2.4))
        canvas.tube(tip, T["metal"], "heart", flat=0.6)
    elif f.kind == "port":
        side = -1 if f.side == "right" else 1
        canvas.paint(*canvas.ellipsoid(Ellipsoid(_under_skin(a, side * 80, 54), (11, 6, 11))), T["metal"])
        start = ((side * 76, -72, 64), (side * 40, -30, 94), (-20 * (1 if side < 0 else 0), -22, 64))
        line = Tube(tuple(_at(a, p) for p in (*start, (-26, -13, 40), (-25, -13, -16))), (1.6, 1.6, 2.0, 2.2, 2.2))
        canvas.tube(line, T["plastic"], flat=0.6)
        canvas.tube(Tube(line.points[2:], line.radii[2:]), T["plastic"], "mediastinum", flat=0.6)
    elif f.kind == "wires":
        for level in np.linspace(66, -62, 6):
            _, b, c = (float(v) for v in a.profile(CAVITY, level * a.scale[2]))
            for end in (-9, 9):
                spot = (end * a.scale[0], c - b - 13, level * a.scale[2])
                canvas.paint(
                    *canvas.capsule(spot, (0.0, c - b - 15, level * a.scale[2]), 1.5, 1.5, 0.5), T["metal"], "bone"
                )
    else:
        tube = a.esophagus if f.kind == "feeding tube" else Tube(a.trachea.points[:3], a.trachea.radii[:3])
        region = f.region
        radius = 2.4 if f.kind == "feeding tube" else 5.2
        canvas.tube(Tube(tube.points, (radius,) * len(tube.points)), T["plastic"], region)
        canvas.tube(Tube(tube.points, (radius - 1.6,) * len(tube.points)), T["airway"], region)


# ---- the rarer regions ----------------------------------------------------------------------------------------------


def _thyroid_nodule(canvas: Canvas, a: Anatomy, f: Finding, rng: np.random.Generator) -> None:
    lobe = a.thyroid[0 if f.side == "right" else 1]
    point = (lobe.center[0] * 1.15, lobe.center[1], lobe.center[2] - 2)
    box, inside = canvas.ellipsoid(Ellipsoid(point, (f.size / 2,) * 3))
    canvas.paint(box, inside & (canvas.masks["trachea and bronchie"][box] == 0), T["fluid"], "thyroid")


def _breast(canvas: Canvas, a: Anatomy, f: Finding, rng: np.random.Generator) -> None:
    for side in _sides(f.side):
        breast = a.breasts[0 if side < 0 else 1]
        x, y, z = breast.center
        if f.label == "breast prosthesis":
            shape = Ellipsoid((x, y - 8, z), (breast.radii[0] * 0.78, breast.radii[1] * 0.6, breast.radii[2] * 0.78))
            canvas.paint(*canvas.ellipsoid(shape), T["silicone"], only=(T["fat"], T["gland"]))
        elif f.label == "gynaecomastia":
            shape = Ellipsoid((x, y - 2, z), (f.size / 2, 8, f.size / 2))
            canvas.paint(*canvas.ellipsoid(shape), T["gland"], "breast", only=(T["fat"], T["skin"]))
        else:
            spot = (x + side * 8, y - breast.radii[1] * 0.45, z + 6)
            _ball(canvas, spot, f.size + 7, "fat", only=(T["gland"],))
            _ball(canvas, spot, f.size, "node", "breast", only=(T["fat"],))


def _bone(canvas: Canvas, a: Anatomy, f: Finding, rng: np.random.Generator) -> None:
    sx, sy, sz = a.scale
    if f.label == "rib fracture":
        side = -1 if f.side == "right" else 1
        width, _, c = (float(v) for v in a.profile(CAVITY, -30 * sz))
        for dy in (0.0, 7.0):  # callus on both ends of the break
            center = (side * (width + 6), c + dy, (12.5 - 25 + 0.3 * (c + dy) / sz) * sz)
            box, inside = canvas.ellipsoid(Ellipsoid(center, (7.5, 5, 9)))
            canvas.paint(box, inside & (canvas.masks["lung"][box] == 0), T["sclerosis"], "bone")
        return
    level = {"upper": 37.5, "middle": -12.5, "lower": -87.5}.get(f.place, 0.0)
    middle = float(a.spine_y(level * sz))
    if f.label == "lytic lesion":
        _ball(canvas, (4 * sx, middle - 1, level * sz), f.size, "lysis", only=(T["marrow"], T["cortex"], T["disc"]))
    elif f.label == "vertebral fracture":  # a wedge: the front of the body sinks and grows dense
        box = canvas.box(
            (-22 * sx, middle - 18 * sy, (level - 12.5) * sz), (22 * sx, middle + 12 * sy, (level + 12.5) * sz)
        )
        x, y, z = canvas.grid(box)
        bone = among(canvas.tissue[box], (T["marrow"], T["cortex"]))
        height = (3.5 + 7.5 * np.clip((y - middle + 14 * sy) / (28 * sy), 0, 1)) * sz
        canvas.paint(box, bone & (np.abs(z - level * sz) > height), T["disc"])
        canvas.paint(box, bone & (np.abs(z - level * sz) <= height), T["sclerosis"])
    else:
        for level in (25, 0, -25, -50, -75, -100):
            front = float(a.spine_y(level * sz)) - 13 * sy
            for side in (-1, 1):
                spur = Ellipsoid((side * 11 * sx, front, level * sz), (7, 6, 6))
                box, inside = canvas.ellipsoid(spur)
                inside &= (canvas.masks["esophagus"][box] == 0) & (canvas.masks["lung"][box] == 0)
                canvas.paint(box, inside & (canvas.tissue[box] != T["blood"]), T["sclerosis"], "bone")


def _abdomen(canvas: Canvas, a: Anatomy, f: Finding, rng: np.random.Generator) -> None:
    if f.label == "gallstone":
        c = a.gallbladder.center
        _ball(canvas, (c[0], c[1] + 4, max(c[2], a.bottom + 9)), f.size, "granuloma", "abdomen")
    else:
        organ = a.liver[0] if f.label == "liver cyst" else a.spleen
        c = organ.center
        shift = (-18.0, 8.0, 12.0) if f.label == "liver cyst" else (-4.0, 0.0, -4.0)
        _ball(
            canvas, (c[0] + shift[0], c[1] + shift[1], c[2] + shift[2]), f.size, "fluid", only=(T["liver"], T["spleen"])
        )


SHAPES: dict[str, Callable[[Canvas, Anatomy, Finding, np.random.Generator], None]] = {
    "Lung nodule": _nodule,
    "Pleural effusion": _effusion,
    "Consolidation": _consolidation,
    "Atelectasis": _atelectasis,
    "Pulmonary fibrotic sequela": _fibrotic,
    "Bronchiectasis": _bronchiectasis,
    "Peribronchial thickening": _thick_bronchi,
    "Pericardial effusion": _pericardial,
    "Coronary artery wall calcification": _coronary,
    "Arterial wall calcification": _aortic_plaques,
    "Lymphadenopathy": _nodes,
    "Hiatal hernia": _hernia,
    "Medical material": _material,
    "thyroid nodule": _thyroid_nodule,
    "breast nodule": _breast,
    "breast prosthesis": _breast,
    "gynaecomastia": _breast,
    "rib fracture": _bone,
    "vertebral fracture": _bone,
    "lytic lesion": _bone,
    "osteophytes": _bone,
    "liver cyst": _abdomen,
    "splenic cyst": _abdomen,
    "gallstone": _abdomen,
}
