"""A phantom patient: an anatomy and the findings drawn into it, all from one seed.

Nothing here comes from a person. Every finding carries what its wording needs (side, lobe or place, size in mm) and
what its rendering needs (world points in mm and a seed for its texture).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from datamodules.phantom.anatomy import LOBES, Anatomy, draw_anatomy
from datamodules.phantom.shapes import Point

# CT-RATE's 18 labels in the order of its classifier (Hamamci et al. 2024); the phantom draws every one of them.
FINDINGS = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)
# Share of the patients with any finding who have this one; about four in five patients have any.
PREVALENCE = {
    "Medical material": 0.13,
    "Arterial wall calcification": 0.33,
    "Cardiomegaly": 0.17,
    "Pericardial effusion": 0.11,
    "Coronary artery wall calcification": 0.20,
    "Hiatal hernia": 0.13,
    "Lymphadenopathy": 0.17,
    "Emphysema": 0.17,
    "Atelectasis": 0.28,
    "Lung nodule": 0.38,
    "Lung opacity": 0.30,
    "Pulmonary fibrotic sequela": 0.13,
    "Pleural effusion": 0.35,
    "Mosaic attenuation pattern": 0.10,
    "Peribronchial thickening": 0.12,
    "Consolidation": 0.17,
    "Bronchiectasis": 0.12,
    "Interlobular septal thickening": 0.11,
}
NORMAL = 0.2
# Small things that give the rarer regions something to say; not among the 18 labels.
EXTRAS = {"breast": 0.30, "thyroid": 0.30, "bone": 0.40, "abdomen": 0.40}
MATERIAL = ("pacemaker", "port", "wires", "feeding tube", "tracheal tube")
NODES = {
    "right lower paratracheal": (-23.0, 6.0, 22.0),
    "subcarinal": (4.0, 20.0, -26.0),
    "prevascular": (14.0, -36.0, 30.0),
    "right hilar": (-48.0, 8.0, -22.0),
    "left hilar": (52.0, 8.0, -22.0),
    "left paratracheal": (20.0, 4.0, 12.0),
}


@dataclass(frozen=True)
class Finding:
    """One thing drawn into a patient.

    Attributes:
        label: One of FINDINGS, or an extra's own name in lower case.
        region: The region whose sentences tell of it.
        kind: Variant (`solid`, `pacemaker`, …), empty where there is one only.
        side: `right`, `left`, `both` or empty.
        place: Lobe, nodal station or stretch of a vessel; empty where side and region say it all.
        size: Millimetres as worded; 0 where no size is worded.
        points: World centres, mm; the first is the largest lesion.
        sizes: Diameters (mm) of the lesions at `points`.
        seed: For the texture.
    """

    label: str
    region: str
    kind: str = ""
    side: str = ""
    place: str = ""
    size: int = 0
    points: tuple[Point, ...] = ()
    sizes: tuple[float, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Patient:
    """A drawn patient: the seed, the healthy anatomy and what is wrong with it."""

    seed: int
    anatomy: Anatomy
    findings: tuple[Finding, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Those of FINDINGS that the patient has, in their order."""
        present = {finding.label for finding in self.findings}
        return tuple(label for label in FINDINGS if label in present)

    def of(self, region: str) -> list[Finding]:
        """The findings that a region's sentences tell of."""
        return [finding for finding in self.findings if finding.region == region]


def draw_patient(seed: int) -> Patient:
    """Draw the patient of a seed; the same seed gives the same patient on every machine."""
    rng = random.Random(f"phantom patient {seed}")
    labels, extras = _draw_labels(rng)
    goitre = "thyroid" in extras and rng.random() < 0.5
    anatomy = draw_anatomy(
        rng,
        heart_size=rng.uniform(1.24, 1.36) if "Cardiomegaly" in labels else 1.0,
        thyroid_size=rng.uniform(1.55, 1.8) if goitre else 1.0,
    )
    findings: list[Finding] = []
    for label in DRAW:  # in an order that lets the small ones avoid the large ones
        if label in labels:
            findings.append(DRAW[label](label, anatomy, rng, findings))
    findings += [_extra(region, anatomy, rng, goitre) for region in EXTRAS if region in extras]
    return Patient(seed, anatomy, tuple(findings))


def _draw_labels(rng: random.Random) -> tuple[set[str], set[str]]:
    if rng.random() < NORMAL:
        return set(), set()
    labels = {label for label in FINDINGS if rng.random() < PREVALENCE[label]}
    labels = labels or {rng.choice(("Lung nodule", "Pleural effusion", "Arterial wall calcification"))}
    return labels, {region for region, share in EXTRAS.items() if rng.random() < share}


# ---- where in the lungs --------------------------------------------------------------------------------------------


def _inside_lobe(anatomy: Anatomy, rng: random.Random, lobe: str, margin: float, findings: list[Finding]) -> Point:
    """A random point of a lobe, `margin` mm from its surface and clear of fluid and consolidation."""
    number, scale = LOBES.index(lobe), anatomy.scale
    generator = np.random.default_rng(rng.getrandbits(32))
    sign = -1 if lobe.startswith("right") else 1
    drained = not any(f.label == "Pleural effusion" and f.side in ("both", lobe.split()[0]) for f in findings)
    for shrink in (1.0, 0.8, 0.6, 0.4, 0.2):
        n = 600
        x = sign * generator.uniform(20, 125, n) * scale[0]
        y, z = generator.uniform(-80, 85 if drained else 5, n) * scale[1], generator.uniform(-130, 108, n) * scale[2]
        good = anatomy.lobe(x, y, z) == number
        for dx, dy, dz in ((0, 0, 0), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)):
            step = margin * shrink
            good &= anatomy.lungs(x + dx * step, y + dy * step, z + dz * step)
        for f in findings:
            for point, size in zip(f.points, f.sizes, strict=True):
                good &= (x - point[0]) ** 2 + (y - point[1]) ** 2 + (z - point[2]) ** 2 > (
                    size / 2 + margin * shrink
                ) ** 2
        if good.any():
            k = int(np.argmax(good))
            return float(x[k]), float(y[k]), float(z[k])
    raise AssertionError(f"no room in the {lobe}: the anatomy's proportions are off")


def _lung_blobs(
    label: str,
    anatomy: Anatomy,
    rng: random.Random,
    findings: list[Finding],
    kind: str,
    lobes: list[str],
    place: str,
    sizes: tuple[float, ...],
) -> Finding:
    taken, points = list(findings), []
    for lobe, size in zip(lobes, sizes, strict=True):
        points.append(_inside_lobe(anatomy, rng, lobe, size * 0.45, taken))
        taken.append(Finding(label, "lung", points=(points[-1],), sizes=(size * 0.6,)))
    return Finding(label, "lung", kind, place=place, points=tuple(points), sizes=sizes, seed=rng.getrandbits(32))


def _effusion(label: str, anatomy: Anatomy, rng: random.Random, findings: list[Finding]) -> Finding:
    return Finding(
        label, "pleura", side=rng.choice(("right", "left", "both")), size=rng.randint(12, 34), seed=rng.getrandbits(32)
    )


def _consolidation(label: str, anatomy: Anatomy, rng: random.Random, findings: list[Finding]) -> Finding:
    lobe = rng.choice(LOBES)
    size = rng.uniform(40, 60) * (0.8 if "middle" in lobe else 1)
    return _lung_blobs(label, anatomy, rng, findings, "", [lobe], lobe, (size,))


def _opacity(label: str, anatomy: Anatomy, rng: random.Random, findings: list[Finding]) -> Finding:
    if rng.random() < 0.5:
        lobe = rng.choice(LOBES)
        return _lung_blobs(
            label, anatomy, rng, findings, "", [lobe] * 2, lobe, (rng.uniform(36, 50), rng.uniform(24, 34))
        )
    lobes = [LOBES[0], LOBES[2], LOBES[3], LOBES[4]]
    return _lung_blobs(
        label, anatomy, rng, findings, "", lobes, "both lungs", tuple(rng.uniform(30, 46) for _ in lobes)
    )


def _nodule(label: str, anatomy: Anatomy, rng: random.Random, findings: list[Finding]) -> Finding:
    size = rng.choice((rng.randint(4, 6), rng.randint(4, 6), rng.randint(7, 12), rng.randint(13, 25)))
    lobe, kind = rng.choice(LOBES), rng.choice(("solid", "solid", "solid", "calcified"))
    others = [rng.choice(LOBES) for _ in range(rng.choice((0, 0, 0, 2, 3)))]
    found = _lung_blobs(
        label,
        anatomy,
        rng,
        findings,
        kind,
        [lobe, *others],
        lobe,
        (float(size), *(float(min(4, size)) for _ in others)),
    )
    return Finding(**{**found.__dict__, "size": size})


def _atelectasis(label: str, anatomy: Anatomy, rng: random.Random, findings: list[Finding]) -> Finding:
    lobe = rng.choice(LOBES[1:3] + LOBES[4:])
    return _lung_blobs(label, anatomy, rng, findings, "", [lobe], lobe, (24.0,))


def _bronchiectasis(label: str, anatomy: Anatomy, rng: random.Random, findings: list[Finding]) -> Finding:
    lobe = rng.choice(LOBES)
    return _lung_blobs(label, anatomy, rng, findings, "", [lobe], lobe, (38.0,))


def _placed(region: str, *places: str, size: tuple[int, int] | None = None):
    def draw(label: str, anatomy: Anatomy, rng: random.Random, findings: list[Finding]) -> Finding:
        return Finding(
            label, region, place=rng.choice(places), size=rng.randint(*size) if size else 0, seed=rng.getrandbits(32)
        )

    return draw


def _fibrotic(label: str, anatomy: Anatomy, rng: random.Random, findings: list[Finding]) -> Finding:
    return Finding(label, "lung", side=rng.choice(("right", "left", "both")), seed=rng.getrandbits(32))


def _nodes(label: str, anatomy: Anatomy, rng: random.Random, findings: list[Finding]) -> Finding:
    size, stations = rng.randint(12, 26), rng.sample(sorted(NODES), rng.choice((1, 2)))
    (sx, sy, sz), places = anatomy.scale, [NODES[name] for name in stations]
    points = tuple((x * sx, y * sy, z * sz) for x, y, z in places)
    sizes = tuple(float(size) if k == 0 else 0.8 * size for k in range(len(points)))
    return Finding(
        label,
        "mediastinum",
        "several" if len(points) > 1 else "",
        place=stations[0],
        size=size,
        points=points,
        sizes=sizes,
    )


def _material(label: str, anatomy: Anatomy, rng: random.Random, findings: list[Finding]) -> Finding:
    kind = rng.choice(MATERIAL)
    region = {
        "pacemaker": "heart",
        "port": "mediastinum",
        "wires": "bone",
        "feeding tube": "esophagus",
        "tracheal tube": "trachea and bronchie",
    }[kind]
    return Finding(
        label, region, kind, side=rng.choice(("right", "left")) if kind == "port" else "", seed=rng.getrandbits(32)
    )


DRAW = {
    "Pleural effusion": _effusion,
    "Consolidation": _consolidation,
    "Lung opacity": _opacity,
    "Bronchiectasis": _bronchiectasis,
    "Atelectasis": _atelectasis,
    "Lung nodule": _nodule,
    "Pulmonary fibrotic sequela": _fibrotic,
    "Emphysema": _placed("lung", "both upper lobes", "both lungs"),
    "Mosaic attenuation pattern": _placed("lung", "both lungs"),
    "Interlobular septal thickening": _placed("lung", "both lower lobes", "both lungs"),
    "Peribronchial thickening": _placed("trachea and bronchie", "both lungs"),
    "Cardiomegaly": _placed("heart", ""),
    "Pericardial effusion": _placed("heart", "", size=(7, 18)),
    "Coronary artery wall calcification": _placed("heart", "left anterior descending", "right", "left main"),
    "Arterial wall calcification": _placed("mediastinum", "aortic arch", "ascending aorta", "descending aorta"),
    "Lymphadenopathy": _nodes,
    "Hiatal hernia": _placed("esophagus", "", size=(30, 56)),
    "Medical material": _material,
}


def _extra(region: str, anatomy: Anatomy, rng: random.Random, goitre: bool) -> Finding:
    """A small benign thing of one of the rarer regions."""
    side = rng.choice(("right", "left"))
    if region == "thyroid":
        return (
            Finding("goitre", region)
            if goitre
            else Finding("thyroid nodule", region, side=side, size=rng.randint(8, 18))
        )
    if region == "breast":
        if anatomy.sex == "male":
            return Finding(
                "gynaecomastia", region, side=rng.choice(("right", "left", "both")), size=rng.randint(18, 36)
            )
        label = rng.choice(("breast nodule", "breast prosthesis"))
        return Finding(
            label,
            region,
            side=side if label == "breast nodule" else "both",
            size=rng.randint(9, 22) if label == "breast nodule" else 0,
        )
    if region == "bone":
        label = rng.choice(("osteophytes", "vertebral fracture", "rib fracture", "lytic lesion"))
        place = rng.choice(("upper", "middle", "lower")) if label in ("vertebral fracture", "lytic lesion") else ""
        return Finding(
            label,
            region,
            side=side if label == "rib fracture" else "",
            place=place,
            size=rng.randint(10, 18) if label == "lytic lesion" else 0,
            seed=rng.getrandbits(32),
        )
    label = rng.choice(("liver cyst", "gallstone", "hepatic steatosis", "splenic cyst"))
    return Finding(
        label,
        region,
        size=rng.randint(14, 40) if label.endswith("cyst") else rng.randint(8, 18) if label == "gallstone" else 0,
    )


__all__ = ["EXTRAS", "FINDINGS", "LOBES", "NODES", "Finding", "Patient", "draw_patient"]
