"""A picture of a phantom study: slices in lung and soft-tissue windows, region outlines drawn over some."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from datamodules.study import Study

WINDOWS = {"lung": (-600, 1500), "soft": (40, 400)}  # centre, width in HU
COLORS = {
    "abdomen": (255, 170, 60),
    "bone": (240, 240, 140),
    "breast": (255, 140, 200),
    "esophagus": (190, 120, 255),
    "heart": (255, 70, 70),
    "lung": (80, 170, 255),
    "mediastinum": (120, 230, 120),
    "pleura": (0, 230, 220),
    "thyroid": (255, 210, 0),
    "trachea and bronchie": (255, 255, 255),
}


def montage(study: Study) -> Image.Image:
    """Eight axial levels (lung window above, soft-tissue window with outlines below), then coronal and sagittal cuts.

    Args:
        study: A rendered study, axes `(L, P, S)`.

    Returns:
        An RGB picture about 2000 pixels wide.
    """
    assert study.volume is not None and study.masks is not None
    volume, masks = study.volume, study.masks
    x, y, z = volume.shape
    tile = (248, 248)
    levels = [round(z * share) for share in (0.1, 0.2, 0.31, 0.42, 0.52, 0.62, 0.75, 0.88)]
    rows: list[list[Image.Image]] = [[], [], [], []]
    for level in levels:
        cut = (slice(None), slice(None), level)
        rows[0].append(_tile(volume[cut].T, "lung").resize(tile))
        rows[1].append(_tile(volume[cut].T, "soft", {r: m[cut].T for r, m in masks.items()}).resize(tile))
    for share in (0.38, 0.46, 0.55, 0.63):
        cut_y = (slice(None), round(y * share), slice(None, None, -1))
        outlined = {r: m[cut_y].T for r, m in masks.items()}
        rows[2] += [_tile(volume[cut_y].T, "lung").resize(tile), _tile(volume[cut_y].T, "soft", outlined).resize(tile)]
    for share in (0.28, 0.48, 0.55, 0.72):
        cut_x = (round(x * share), slice(None), slice(None, None, -1))
        outlined = {r: m[cut_x].T for r, m in masks.items()}
        rows[3] += [_tile(volume[cut_x].T, "lung").resize(tile), _tile(volume[cut_x].T, "soft", outlined).resize(tile)]
    page = Image.new("RGB", (tile[0] * 8, tile[1] * 4 + 22))
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            page.paste(picture, (c * tile[0], r * tile[1]))
    pen = ImageDraw.Draw(page)
    for k, (name, color) in enumerate(COLORS.items()):
        pen.text((8 + k * 120, tile[1] * 4 + 5), name, fill=color)
    pen.text(
        (8 + 10 * 125, tile[1] * 4 + 5),
        f"{study.id}: {', '.join(study.findings or ()) or 'normal'}",
        fill=(255, 255, 255),
    )
    return page


def _tile(page: np.ndarray, window: str, outlines: dict[str, np.ndarray] | None = None) -> Image.Image:
    center, width = WINDOWS[window]
    grey = np.clip((page.astype(np.float32) - center + width / 2) * (255 / width), 0, 255).astype(np.uint8)
    picture = np.repeat(grey[..., None], 3, axis=2)
    for region, mask in (outlines or {}).items():
        edge = mask.astype(bool)
        inner = edge.copy()
        inner[1:] &= edge[:-1]
        inner[:-1] &= edge[1:]
        inner[:, 1:] &= edge[:, :-1]
        inner[:, :-1] &= edge[:, 1:]
        picture[edge & ~inner] = COLORS[region]
    return Image.fromarray(picture)
