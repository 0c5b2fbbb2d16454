"""A real chest CT goes the whole way: a dataset in RadGenome's layout, a fit that learns, a report page."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from datamodules.masks import regions_from_labels
from zoo.fit import main as fit
from zoo.predict import main as predict

STUDIES = {"train": 4, "valid": 4}  # the same patient each time, with other patients' sentences


@pytest.fixture(scope="module")
def dataset(shared: Path, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("real")
    volume = nib.load(shared / "real/ct/chest_ct_3mm.nii.gz")
    labels = nib.load(shared / "real/ct/chest_ct_3mm_totalsegmentator.nii.gz")
    masks = regions_from_labels(np.asarray(labels.dataobj).astype(np.int64))
    rows: dict[str, list[tuple[str, str, str]]] = {split: [] for split in STUDIES}
    names = [(split, f"{split}_{n}_a_1") for split, count in STUDIES.items() for n in range(1, count + 1)]
    for split, name in names:
        number = name.split("_")[1]
        path = root / f"{split}_preprocessed/{split}_{number}/{split}_{number}a/{name}.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(volume, path)
    for region, mask in masks.items():
        file = shared / f"real/reg2rg_released/radgenome/{region.replace(' ', '_')}_reports.csv"
        with file.open(newline="") as released:
            sentences = [row["GT_combined_report"] for _, row in zip(names, csv.DictReader(released), strict=False)]
        for (split, name), sentence in zip(names, sentences, strict=True):
            folder = root / f"{split}_region_mask/seg_{name}"
            folder.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(mask.astype(np.uint8), volume.affine), folder / f"{region}.nii.gz")
            rows[split].append((f"{name}.nii.gz", region, sentence))
    (root / "radgenome_files").mkdir()
    for split, long in (("train", "train"), ("valid", "validation")):
        with (root / f"radgenome_files/{long}_region_report.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("Volumename", "Anatomy", "Sentence"), *rows[split]])
    return root


@pytest.fixture(scope="module")
def run(dataset: Path) -> Path:
    arguments = [f"data.root={dataset}", "data.phantom=null", "trainer.max_epochs=20", f"run.folder={dataset}/runs"]
    arguments += ["model.llm_tuning=full", "model.warmup_steps=2"]  # real words are new to the phantom's language model
    assert fit(["--method", "reg2rg", *arguments]) == 0
    (folder,) = (dataset / "runs").iterdir()
    return folder


def test_the_loss_falls(run: Path) -> None:
    with (run / "metrics.csv").open(newline="") as file:
        losses = [float(row["value"]) for row in csv.DictReader(file) if row["metric"] == "train/loss"]
    assert len(losses) == 20
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])


def test_real_data_is_not_called_phantom(run: Path) -> None:
    assert json.loads((run / "metrics.json").read_text())["phantom"] is False
    assert "do not share" in (run / "gallery.html").read_text().lower()


def test_one_examination_gets_its_page(run: Path, shared: Path, tmp_path: Path) -> None:
    arguments = [
        "--checkpoint", str(run), "--mask-scheme", "totalsegmentator", "--output", str(tmp_path),
        "--volume", str(shared / "real/ct/chest_ct_3mm.nii.gz"),
        "--masks", str(shared / "real/ct/chest_ct_3mm_totalsegmentator.nii.gz"),
    ]  # fmt: skip
    code = predict(arguments)
    report = json.loads((tmp_path / "report.json").read_text())
    silent = [row["region"] for row in report["regions"] if not row["text"]]
    assert code == (1 if silent else 0)  # a region without a sentence is an error, and is named
    assert {row["region"] for row in report["regions"]} >= {"lung", "bone", "abdomen"}
    assert any(row["text"] for row in report["regions"])
    page = (tmp_path / "report.html").read_text()
    assert "data:image" in page and "http" not in page.replace("http-equiv", "")
