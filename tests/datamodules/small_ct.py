"""Small CT datasets on disk, for tests: a body of water with air around it and blocks as regions."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import nibabel as nib
import numpy as np

AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])
SHAPE = (20, 18, 10)


def volume(seed: int) -> np.ndarray:
    array = np.full(SHAPE, -1024, np.int16)
    array[2:18, 2:16] = np.random.default_rng(seed).integers(-200, 200, (16, 14, 10))
    return array


def mask(place: int) -> np.ndarray:
    array = np.zeros(SHAPE, np.uint8)
    array[3 + place : 7 + place, 4:9, 2:6] = 1
    return array


def save(array: np.ndarray, path: Path, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def write_rows(path: Path, rows: list[tuple[str, str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("Volumename", "Anatomy", "Sentence"), *rows])


def radgenome(root: Path, train: int = 3, validation: int = 2) -> Path:
    """Studies `train_1_a_1`, … with masks of heart, lung and thyroid and reports of heart and lung."""
    for split, short, count in (("train", "train", train), ("validation", "valid", validation)):
        rows = []
        for number in range(1, count + 1):
            name = f"{short}_{number}_a_1"
            save(volume(number), root / f"{short}_preprocessed/{short}_{number}/{short}_{number}a/{name}.nii.gz")
            for place, region in enumerate(("heart", "lung", "thyroid")):
                save(mask(place), root / f"{short}_region_mask/seg_{name}/{region}.nii.gz")
            rows += [(f"{name}.nii.gz", "heart", f"Heart {number}."), (f"{name}.nii.gz", "lung", f"Lungs {number}.")]
        write_rows(root / f"radgenome_files/{split}_region_report.csv", rows)
    return root


def ctrg(root: Path, train: int = 3, test: int = 2, parted: bool = True) -> Path:
    ids = range(1, train + test + 1)
    for number in ids:
        save(volume(number), root / f"CTRG-Chest-548K_volume/{number}.nii.gz")
        for place, region in enumerate(("heart", "lung")):
            save(mask(place), root / f"region_mask/seg_{number}/{region}.nii.gz")
    entries = [{"id": number, "finding": f"Heart {number}. Comparison with the last scan."} for number in ids]
    content = {"train": entries[:train], "test": entries[train:]} if parted else entries
    (root / "annotation.json").write_text(json.dumps(content))
    rows = [(f"{n}.nii.gz", "heart", f"Heart {n}.") for n in ids] + [(f"{n}.nii.gz", "other", "Compare.") for n in ids]
    write_rows(root / "region_report.csv", rows)
    return root


class Means:
    """A preprocessor in a few lines: the mean HU of each region, and, in training, a drawn number."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def settings(self) -> dict:
        return {"scale": self.scale}

    def arrays(self, study) -> dict[str, np.ndarray]:
        return {region: np.float32([self.scale * study.volume[m != 0].mean()]) for region, m in study.masks.items()}

    def __call__(self, study, arrays, rng: random.Random | None) -> dict:
        drawn = None if rng is None else rng.random()
        return {"id": study.id, "drawn": drawn, "arrays": {key: float(a[0]) for key, a in arrays.items()}}

    def collate(self, samples: list[dict]) -> dict:
        return {"ids": [s["id"] for s in samples], **{key: [s[key] for s in samples] for key in ("drawn", "arrays")}}
