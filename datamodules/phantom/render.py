"""Renders a phantom patient as a chest CT with the masks of the ten regions.

The volume has RadGenome-ChestCT's spacing (1 x 1 x 3 mm), int16 HU, array axes `(x, y, z)` that point to the patient's
left, back and head (`("L", "P", "S")`; NIfTI affine `diag(-1, -1, 3)`). One patient takes half a second on one core.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from datamodules.masks import REGIONS
from datamodules.phantom.haze import haze
from datamodules.phantom.lesions import paint_finding
from datamodules.phantom.montage import montage
from datamodules.phantom.organs import BONES, HU, TISSUE, paint_anatomy
from datamodules.phantom.patient import Patient
from datamodules.phantom.shapes import SLICE_MM, Box, Canvas, among
from datamodules.phantom.wording import word_report
from datamodules.study import Study

SPACING = (1.0, 1.0, SLICE_MM)
ORIENTATION = ("L", "P", "S")


def affine(volume: np.ndarray) -> np.ndarray:
    """Voxel index to RAS+ mm of a rendered volume `(x, y, z)`, the middle voxel at the origin."""
    step = np.diag((-1.0, -1.0, SLICE_MM, 1.0))
    step[:3, 3] = -step[:3, :3] @ (np.array(volume.shape) - 1) / 2
    return step


def render_ct(patient: Patient) -> Study:
    """Draw the patient's CT.

    Returns:
        A study with `volume` int16 HU `(x, y, z)`, `masks` uint8 of the ten REGIONS, report and findings. Arrays are
        Fortran-ordered views, as NIfTI stores them.
    """
    a = patient.anatomy
    rng = np.random.default_rng(patient.seed)
    canvas = Canvas(a.fov, a.bottom, a.slices, REGIONS)
    paint_anatomy(canvas, a, rng)
    for finding in patient.findings:
        paint_finding(canvas, a, finding)
    hu = densities(canvas, patient)
    for finding in patient.findings:
        haze(hu, canvas, a, finding)
    _finish_masks(canvas)
    _scan(hu, canvas, rng)
    regions = word_report(patient)
    return Study(
        id=f"phantom_{patient.seed}", volume=hu.T, spacing=SPACING, orientation=ORIENTATION,
        masks={region: canvas.masks[region].T for region in REGIONS}, report=" ".join(regions.values()),
        regions=regions, findings=patient.labels,
    )  # fmt: skip


def tissue_densities(patient: Patient) -> np.ndarray:
    """HU of every tissue number in this patient, int16."""
    a = patient.anatomy
    table = {**HU, "blood": a.blood, "heart": a.blood + 2, "marrow": a.density["bone"], "thyroid": a.density["thyroid"],
             "lung": a.density["lung"], "liver": a.density["liver"]}  # fmt: skip
    if any(f.label == "hepatic steatosis" for f in patient.findings):
        table["liver"] = 8
    return np.array([table[name] for name in TISSUE], np.int16)


def densities(canvas: Canvas, patient: Patient) -> np.ndarray:
    """HU of the painted tissues, int16 `(z, y, x)`; lung grows denser towards the back."""
    values = tissue_densities(patient)
    hu = np.empty(canvas.shape, np.int16)
    for k, page in enumerate(canvas.tissue):  # slice by slice: it stays in the processor's cache
        np.take(values, page, out=hu[k], mode="clip")
    box = _bounds(canvas.masks["lung"])
    gradient = (0.35 * canvas.y[None, box[1], None]).astype(
        np.int16
    )  # blood settles at the back of a lying patient's lungs
    np.add(hu[box], gradient, out=hu[box], where=canvas.tissue[box] == TISSUE["lung"])
    return hu


def _bounds(mask: np.ndarray) -> Box:
    spans = []
    for axis in range(3):
        filled = np.flatnonzero(mask.any(axis=tuple(k for k in range(3) if k != axis)))
        spans.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return spans[0], spans[1], spans[2]


def _finish_masks(canvas: Canvas) -> None:
    """Derive bone and pleura, and see to it that neighbours do not share voxels."""
    masks = canvas.masks
    masks["bone"] |= among(canvas.tissue, tuple(TISSUE[name] for name in BONES))
    inner = ("trachea and bronchie", "esophagus", "heart")
    for k, name in enumerate(inner):
        for other in (*inner[k + 1 :], "lung", "mediastinum"):
            _remove(masks[other], masks[name])
    _remove(masks["lung"], masks["bone"])
    _remove(masks["mediastinum"], masks["lung"])
    box = _bounds(masks["lung"])
    grown = tuple(slice(max(s.start - pad, 0), s.stop + pad) for s, pad in zip(box, (1, 4, 4), strict=True))
    lung = masks["lung"][grown]
    shell = lung.copy()
    shell[1:] |= lung[:-1]
    shell[:-1] |= lung[1:]
    for axis in (1, 2):  # three steps in the slice: a shell of 3 mm
        for step in (1, 2):
            view = np.moveaxis(shell, axis, 0)
            before = view.copy()
            view[step:] |= before[:-step]
            view[:-step] |= before[step:]
    masks["pleura"][grown] |= shell
    for name in (*inner, "lung"):
        _remove(masks["pleura"], masks[name])


def _remove(mask: np.ndarray, other: np.ndarray) -> None:
    np.copyto(mask, 0, where=other.view(bool))


@cache
def _noise(size: int = 448, count: int = 12) -> np.ndarray:
    """Slices of scanner noise `(count, size, size)`, int16, about 14 HU, slightly blotchy as a reconstruction's."""
    grain = np.random.default_rng(0).standard_normal((count, size + 1, size + 1)).astype(np.float32)
    soft = grain[:, 1:, 1:] + grain[:, :-1, 1:] + grain[:, 1:, :-1] + grain[:, :-1, :-1]
    return (soft * 7).astype(np.int16)


def _scan(hu: np.ndarray, canvas: Canvas, rng: np.random.Generator) -> None:
    """What the scanner adds, in place: partial volume, noise, the table, and a round field of view."""
    noise, columns = _noise(), hu.shape[1]
    radius = (columns / 2) ** 2
    away = (np.arange(columns, dtype=np.float32) - (columns - 1) / 2) ** 2
    corner = away[:, None] + away[None] > radius
    body = (canvas.tissue != 0).any(axis=(0, 2))
    back = min(int(np.flatnonzero(body)[-1]) + 4, columns - 8)
    bend = (away / 900).astype(int)
    rows = np.clip(back - bend // 2, 0, columns - 1)
    for k in range(len(hu)):
        page = hu[k]
        for t in (0, 1, 2):
            lying = canvas.tissue[k][rows + t, np.arange(columns)] == 0
            page[(rows + t)[lying], np.flatnonzero(lying)] = HU["table"]
        for view in (page, page.T):  # 1-2-1 in the plane
            view[1:-1] = (view[:-2] + 2 * view[1:-1] + view[2:]) >> 2
        j, i, n = rng.integers(0, 60), rng.integers(0, 60), rng.integers(0, len(noise))
        grain = noise[n, j : j + columns, i : i + columns]
        page += np.where(canvas.tissue[k] != 0, grain, grain >> 2)
        page &= -4  # steps of 4 HU: a third of the noise's bits, unseen in any window
        page[corner] = -1000
    np.clip(hu, -1024, 3071, out=hu)


__all__ = ["ORIENTATION", "SPACING", "affine", "densities", "montage", "render_ct", "tissue_densities"]
