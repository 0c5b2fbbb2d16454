"""The door between a dataset and a method: one examination, as any dataset yields it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class Study:
    """One examination. What a dataset lacks is `None`, never invented.

    A DataModule lists studies without pixels (`volume`, `image` and `masks` are `None`) and fills them in on `read`.

    Attributes:
        id: The dataset's own name of the examination, unique within the dataset.
        split: `train`, `validation` or `test`; `None` for loose files.
        volume: CT, `(height, width, depth)` in the file's axis order, HU.
        image: Radiograph, `(row, column)`, the file's own grey values.
        spacing: Millimetres between voxels along each array axis.
        orientation: Where each array axis points, a letter an axis (`L`/`R`, `A`/`P`, `S`/`I`): `("L", "P", "S")`.
        masks: Region name → `{0, 1}` array of the volume's (or image's) shape, uint8.
        boxes: Finding or region name → boxes `(x0, y0, x1, y1)` as fractions of the image's width and height.
        report: The whole report's text.
        regions: Region name → its sentences. A region without text is absent.
        findings: The labels known to be present; an empty tuple means "none", `None` means "not known".
        files: What was read for it (`volume`, `masks/<region>`, …), for error messages and fingerprints.
    """

    id: str
    split: str | None = None
    volume: np.ndarray | None = None
    image: np.ndarray | None = None
    spacing: tuple[float, ...] | None = None
    orientation: tuple[str, ...] | None = None
    masks: Mapping[str, np.ndarray] | None = None
    boxes: Mapping[str, tuple[tuple[float, float, float, float], ...]] | None = None
    report: str | None = None
    regions: Mapping[str, str] | None = None
    findings: tuple[str, ...] | None = None
    files: Mapping[str, Path] = field(default_factory=dict)


class DataFault(Exception):
    """Something wrong in the data; the message names the file and what to do. Commands end with exit code 3."""


class SettingsFault(ValueError):
    """Settings that cannot work together; the message says what to set instead. Commands end with exit code 2."""
