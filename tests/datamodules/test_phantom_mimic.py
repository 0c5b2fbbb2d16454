"""The phantom in MIMIC-CXR's layout: written as published, and read like the dataset."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.mimic_cxr import MimicCXR
from datamodules.mimic_cxr_tables import FINDINGS
from datamodules.phantom.mimic_layout import CHESTX_DET, CHEXPERT, METADATA, write_mimic_cxr
from datamodules.phantom.patient import draw_patient
from datamodules.phantom.radiograph import render_radiograph
from datamodules.phantom.radiograph_wording import LABELS, findings_in
from datamodules.study import DataFault, Study

COUNTS = {"train": 4, "validation": 1, "test": 1}
THIRDS = ("upper zone lung", "mid zone lung", "lung base")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantom") / "mimic"
    write_mimic_cxr(root, **COUNTS)
    return root


@pytest.fixture(scope="module")
def marker(root: Path) -> dict:
    return json.loads((root / "PHANTOM.json").read_text())


def table(root: Path, name: str) -> list[dict[str, str]]:
    with gzip.open(root / f"mimic-cxr-2.0.0-{name}.csv.gz", "rt", newline="") as file:
        return list(csv.DictReader(file))


def masks(root: Path, dicom: str) -> dict[str, np.ndarray]:
    found = {}
    for path in (root / "masks" / dicom).iterdir():
        with Image.open(path) as picture:
            assert picture.mode == "1"
            found[path.stem] = np.asarray(picture)
    return found


@pytest.fixture(scope="module")
def drawn(root: Path, marker: dict) -> dict[str, Study]:
    """The first studies as they were drawn, by their image's name."""
    rows = table(root, "split")[:3]
    return {
        row["dicom_id"]: render_radiograph(draw_patient(marker["studies"][f"s{row['study_id']}"]["seed"]))
        for row in rows
    }


def test_tables_are_as_published(root: Path, marker: dict):
    split, metadata, labels = (table(root, name) for name in ("split", "metadata", "chexpert"))
    assert [row["split"] for row in split] == ["train"] * 4 + ["validate", "test"]
    assert list(split[0]) == ["dicom_id", "study_id", "subject_id", "split"] and tuple(metadata[0]) == METADATA
    assert list(labels[0]) == ["subject_id", "study_id", *FINDINGS, "No Finding"]
    for key in ("study_id", "subject_id"):
        assert [row[key] for row in split] == [row[key] for row in metadata] == [row[key] for row in labels]
        assert all(len(row[key]) == 8 and row[key].isdigit() for row in split)
    assert len({row["study_id"] for row in split}) == 6 == len(marker["studies"])
    patients = [row["subject_id"] for row in split]
    assert patients[2] == patients[3] and len(set(patients)) == 5  # one patient with two studies, of one split
    for row in metadata:
        (path,) = root.glob(f"files/p{row['subject_id'][:2]}/p{row['subject_id']}/s{row['study_id']}/*.jpg")
        with Image.open(path) as picture:
            assert (picture.format, picture.mode, path.stem) == ("JPEG", "L", row["dicom_id"])
            assert (picture.height, picture.width) == (int(row["Rows"]), int(row["Columns"]))
        assert row["ViewPosition"] == "PA"


def test_reports_are_set_as_the_datasets(root: Path):
    reports = sorted(root.glob("files/p??/p????????/s????????.txt"))
    assert len(reports) == 6
    for path in reports:
        lines = path.read_text().splitlines()
        assert all(line.startswith(" ") and len(line) <= 80 for line in lines)
        headers = ["EXAMINATION", "INDICATION", "COMPARISON", "FINDINGS", "IMPRESSION"]
        assert [line.split(":")[0].strip() for line in lines if ":" in line] == headers
        assert lines[0].strip() == "FINAL REPORT" and "___" in path.read_text()


def test_it_is_read_like_the_dataset(root: Path, marker: dict):
    data = MimicCXR(str(root), masks=str(root / "masks"))
    assert data.is_phantom() and {split: len(data.studies(split)) for split in data.splits} == COUNTS
    label = data.label_findings()
    for split in data.splits:
        for study in map(data.read, data.studies(split)):
            seen = marker["studies"][study.id]["findings"]
            assert label is not None and label(study.report or "") == set(seen)
            assert study.image is not None and study.image.dtype == np.uint8 and study.image.min() < 9
            assert study.masks is not None and study.masks["heart"].shape == study.image.shape
            named = {CHEXPERT[name] for name in seen if name in CHEXPERT} - {"Support Devices"}
            assert set(study.findings or ()) - {"Support Devices"} == named
    impression = MimicCXR(str(root), section="impression").studies("train")
    for study, whole in zip(impression, data.studies("train"), strict=True):
        assert findings_in(study.report or "") == findings_in(whole.report or "")
        assert (study.report or "") in (whole.report or "") and study.report


def test_no_finding_means_nothing_but_devices(root: Path, marker: dict):
    for row in table(root, "chexpert"):
        seen = set(marker["studies"][f"s{row['study_id']}"]["findings"])
        assert (row["No Finding"] == "1.0") == (seen <= {"Medical material"})
        assert set(row.values()) <= {"1.0", "", row["study_id"], row["subject_id"]}
    assert set(CHEXPERT.values()) <= set(FINDINGS) and set(CHEXPERT) | set(CHESTX_DET) <= set(LABELS)


def test_the_image_is_the_drawn_one_equalised(root: Path, drawn: dict[str, Study]):
    dicom, study = next(iter(drawn.items()))
    (path,) = root.glob(f"files/*/*/*/{dicom}.jpg")
    with Image.open(path) as picture:
        grey = np.asarray(picture).astype(float)
    order = np.argsort(np.argsort(study.image, axis=None)).reshape(grey.shape)
    assert np.corrcoef(grey.ravel(), order.ravel())[0, 1] > 0.98  # each value's rank, which equalising keeps
    counts = np.histogram(grey, 8, (0, 256))[0] / grey.size
    assert counts.min() > 0.05 and counts.max() < 0.3


def test_masks_are_what_cxas_would_write(root: Path, drawn: dict[str, Study]):
    seen = set()
    for dicom, study in drawn.items():
        found = masks(root, dicom)
        thirds = {f"{side} {third}" for side in ("right", "left") for third in THIRDS}
        organs = {"heart", "trachea", "cardiomediastinum", "lung", "right lung", "left lung", *THIRDS, *thirds}
        assert organs <= set(found)
        for side in ("right", "left"):
            lung = found[f"{side} lung"]
            assert (lung == (study.masks[f"{side} lung"] > 0)).all()
            assert (sum(found[f"{side} {third}"].astype(int) for third in THIRDS) == lung).all()
            heights = [np.nonzero(found[f"{side} {third}"])[0].mean() for third in THIRDS]
            assert heights == sorted(heights)
        assert np.nonzero(found["right lung"])[1].mean() < np.nonzero(found["left lung"])[1].mean()
        assert (found["lung"] == found["right lung"] | found["left lung"]).all() and found["cardiomediastinum"].any()
        expected = {CHESTX_DET[label] for label in study.findings if label in CHESTX_DET}
        assert set(found) - organs == expected
        seen |= expected
        for label, boxes in study.boxes.items():
            if label in CHESTX_DET and boxes and list(map(CHESTX_DET.get, study.boxes)).count(CHESTX_DET[label]) == 1:
                assert extent(found[CHESTX_DET[label]]) == pytest.approx(hull(boxes))
    assert len(seen) >= 2


def extent(mask: np.ndarray) -> list[float]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    return [columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height]


def hull(boxes) -> list[float]:
    edges = np.array(boxes)
    return [*edges[:, :2].min(axis=0), *edges[:, 2:].max(axis=0)]


def digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_cut_short_phantom_is_completed_to_the_same_bytes(root: Path, tmp_path: Path):
    before = digests(root)
    next(root.glob("files/*/*/*/*.jpg")).unlink()
    next(root.glob("files/*/*/*.txt")).unlink()
    write_mimic_cxr(root, **COUNTS)
    assert digests(root) == before
    write_mimic_cxr(tmp_path / "other", train=0, validation=1, test=0)
    images = {name: digest for name, digest in digests(tmp_path / "other").items() if name.endswith((".jpg", ".txt"))}
    assert len(images) == 2 and images.items() <= before.items()
    with pytest.raises(DataFault, match="seed"):
        write_mimic_cxr(root, **COUNTS, seed=1)
