"""The phantom: drawn, rendered, worded and written as it says."""

import csv
import hashlib
import json
import random
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn.functional import adaptive_avg_pool3d

from datamodules.masks import REGIONS
from datamodules.phantom.anatomy import Anatomy, draw_anatomy
from datamodules.phantom.layouts import write_ctrg, write_radgenome
from datamodules.phantom.patient import DRAW, FINDINGS, LOBES, Finding, Patient, draw_patient
from datamodules.phantom.render import montage, render_ct
from datamodules.phantom.wording import findings_in, vocabulary, word_report
from datamodules.study import DataFault, Study

SEEDS = range(300)
EXTRAS = (
    Finding("thyroid nodule", "thyroid", side="left", size=12),
    Finding("breast nodule", "breast", side="right", size=14),
    Finding("breast prosthesis", "breast", side="both"),
    Finding("gynaecomastia", "breast", side="left", size=24),
    Finding("osteophytes", "bone"),
    Finding("vertebral fracture", "bone", place="middle"),
    Finding("rib fracture", "bone", side="right"),
    Finding("lytic lesion", "bone", place="upper", size=14),
    Finding("liver cyst", "abdomen", size=25),
    Finding("splenic cyst", "abdomen", size=20),
    Finding("gallstone", "abdomen", size=12),
    Finding("hepatic steatosis", "abdomen"),
)


def _anatomy(sex: str, heart_size: float = 1.0, thyroid_size: float = 1.0) -> Anatomy:
    seed = next(n for n in range(99) if draw_anatomy(random.Random(n)).sex == sex)
    return draw_anatomy(random.Random(seed), heart_size, thyroid_size)


def _render(anatomy: Anatomy, *findings: Finding) -> Study:
    return render_ct(Patient(7, anatomy, findings))


@pytest.fixture(scope="module")
def healthy() -> dict[str, Study]:
    return {sex: _render(_anatomy(sex)) for sex in ("female", "male")}


@pytest.fixture(scope="module")
def patients() -> list[Study]:
    return [render_ct(draw_patient(seed)) for seed in (0, 5, 7)]


# ---- drawing and wording --------------------------------------------------------------------------------------------


def test_a_seed_is_a_patient():
    assert draw_patient(11) == draw_patient(11)
    assert draw_patient(11) != draw_patient(12)
    assert word_report(draw_patient(11)) == word_report(draw_patient(11))


def test_findings_are_as_common_as_promised():
    patients = [draw_patient(seed) for seed in range(600)]
    share = {label: np.mean([label in patient.labels for patient in patients]) for label in FINDINGS}
    assert 0.15 < np.mean([not patient.labels for patient in patients]) < 0.3
    assert all(0.05 < value < 0.38 for value in share.values()), share
    assert sum(value > 0.2 for value in share.values()) >= 4
    assert 2 <= np.median([len(patient.labels) for patient in patients if patient.labels]) <= 4


def test_reports_say_exactly_what_was_drawn():
    words = set(vocabulary())
    for seed in SEEDS:
        patient = draw_patient(seed)
        report = word_report(patient)
        assert set(report) <= set(REGIONS)
        assert frozenset().union(*map(findings_in, report.values())) == set(patient.labels), report
        assert findings_in(" ".join(report.values())) == set(patient.labels), report
        for finding in patient.findings:
            assert not finding.size or str(finding.size) in report[finding.region]
        assert set(re.findall(r"\d+|[^\W\d_]+|[^\w\s]", " ".join(report.values()))) <= words


def test_each_finding_is_told_in_its_region_only():
    for seed in SEEDS:
        patient = draw_patient(seed)
        report = word_report(patient)
        for region, text in report.items():
            assert findings_in(text) == {f.label for f in patient.of(region) if f.label in FINDINGS}


def test_regions_are_left_out_as_often_as_in_real_reports():
    reports = [word_report(draw_patient(seed)) for seed in range(600)]
    told = {region: np.mean([region in report for report in reports]) for region in REGIONS}
    assert told.pop("breast") >= 0.4 and told.pop("thyroid") >= 0.4
    assert all(0.85 <= value < 1 for value in told.values()), told


def test_the_labeller_heeds_denial_and_survives_nonsense():
    assert findings_in("No pleural effusion is seen. The heart is enlarged.") == {"Cardiomegaly"}
    assert (
        findings_in("There is a 9 mm breast nodule on the right. A hypodense thyroid nodule of 9 mm is seen.") == set()
    )
    assert findings_in("Several lung nodules. there is emphysema in in") == {"Lung nodule", "Emphysema"}
    noise = random.Random(1)
    pieces = [*vocabulary(), "�", "\n", "<s>", "({[", "effusion effusion"]
    for _ in range(200):
        assert findings_in(" ".join(noise.choices(pieces, k=40))) <= set(FINDINGS)
    assert findings_in("") == frozenset()


def test_the_vocabulary_covers_the_reference_prompts(golden: Path):
    texts = json.dumps(json.loads((golden / "prompt_texts.json").read_text()), ensure_ascii=False)
    pieces = set(re.findall(r"\d+|[^\W\d_]+", re.sub(r"</?(image|region)\d*>|\\n|prompt_\d+|answer_\w+", " ", texts)))
    assert pieces <= set(vocabulary())
    assert 250 <= sum(word.isalpha() for word in vocabulary()) <= 400


# ---- rendering ------------------------------------------------------------------------------------------------------


def test_volume_and_masks_are_as_radgenomes(patients: list[Study]):
    for study in patients:
        assert study.volume.dtype == np.int16 and study.volume.flags.f_contiguous
        assert study.spacing == (1.0, 1.0, 3.0) and study.orientation == ("L", "P", "S")
        assert 270 <= study.volume.shape[2] * 3 <= 340
        assert tuple(study.masks) == REGIONS
        for region, mask in study.masks.items():
            assert mask.shape == study.volume.shape and mask.dtype == np.uint8
            assert mask.max() == 1 and mask.sum() > 300, region
        assert study.report == " ".join(study.regions.values())


def test_neighbours_do_not_share_voxels(patients: list[Study]):
    apart = [
        ("lung", other) for other in ("heart", "pleura", "mediastinum", "esophagus", "bone", "trachea and bronchie")
    ]
    apart += [
        ("heart", "mediastinum"),
        ("heart", "esophagus"),
        ("esophagus", "trachea and bronchie"),
        ("pleura", "heart"),
    ]
    for study in patients:
        for one, other in apart:
            assert not (study.masks[one] & study.masks[other]).any(), (study.id, one, other)


def test_density_and_place_of_the_regions(healthy: dict[str, Study]):
    for study in healthy.values():
        typical = {region: np.median(study.volume[mask > 0]) for region, mask in study.masks.items()}
        assert -930 < typical["lung"] < -780
        assert np.percentile(study.volume[study.masks["trachea and bronchie"] > 0], 60) > -900
        assert np.percentile(study.volume[study.masks["trachea and bronchie"] > 0], 20) < -900
        assert 20 < typical["heart"] < 70 and 20 < typical["abdomen"] < 80 and 0 < typical["esophagus"] < 60
        assert 70 < typical["thyroid"] < 130 and 90 < typical["bone"] < 500 and -130 < typical["mediastinum"] < 60
        place = {region: [axis.mean() for axis in np.nonzero(mask)] for region, mask in study.masks.items()}
        assert place["heart"][0] > study.volume.shape[0] / 2  # towards the patient's left
        assert place["bone"][1] > place["breast"][1]  # behind
        assert place["thyroid"][2] > place["heart"][2] > place["abdomen"][2]  # above
        inside = np.median(study.volume[study.masks["pleura"] > 0])
        assert inside > -250  # a shell around the air, not the air


def test_a_crop_to_the_foreground_keeps_the_field_of_view(healthy: dict[str, Study]):
    volume = healthy["male"].volume
    for axis in range(3):
        filled = np.flatnonzero((volume > -1000).any(axis=tuple(k for k in range(3) if k != axis)))
        assert filled[-1] - filled[0] + 1 >= volume.shape[axis] - 2


def _changed(study: Study, base: Study, region: str) -> np.ndarray:
    """Absolute change of HU of the voxels of a region (in either study) that changed by more than noise."""
    where = (study.masks[region] | base.masks[region]) > 0
    change = np.abs(study.volume[where].astype(int) - base.volume[where])
    return change[change > 30]


@pytest.mark.parametrize("label", [label for label in FINDINGS if label != "Cardiomegaly"])
def test_a_finding_shows_in_its_region(label: str, healthy: dict[str, Study]):
    anatomy = _anatomy("male")
    finding = DRAW[label](label, anatomy, random.Random(3), [])
    change = _changed(_render(anatomy, finding), healthy["male"], finding.region)
    assert finding.label == label
    assert change.size > 60 and change.mean() > 35


@pytest.mark.parametrize("finding", EXTRAS, ids=lambda finding: finding.label)
def test_an_extra_shows_in_its_region(finding: Finding, healthy: dict[str, Study]):
    sex = "male" if finding.label == "gynaecomastia" else "female"
    change = _changed(_render(_anatomy(sex), finding), healthy[sex], finding.region)
    assert change.size > 60 and change.mean() > 35


def test_large_hearts_and_goitres_are_large(healthy: dict[str, Study]):
    large = _render(_anatomy("male", heart_size=1.25, thyroid_size=1.6))
    assert large.masks["heart"].sum() > 1.5 * healthy["male"].masks["heart"].sum()
    assert large.masks["thyroid"].sum() > 2 * healthy["male"].masks["thyroid"].sum()


@pytest.mark.parametrize("kind", ["pacemaker", "port", "wires", "feeding tube", "tracheal tube"])
def test_every_medical_material_is_dense(kind: str, healthy: dict[str, Study]):
    region = {
        "pacemaker": "heart",
        "port": "mediastinum",
        "wires": "bone",
        "feeding tube": "esophagus",
        "tracheal tube": "trachea and bronchie",
    }[kind]
    study = _render(_anatomy("male"), Finding("Medical material", region, kind, side="right"))
    change = _changed(study, healthy["male"], region)
    assert change.size > 60 and change.max() > 250


def test_effusion_leaves_the_lung_and_joins_the_pleura(healthy: dict[str, Study]):
    base = healthy["male"]
    study = _render(_anatomy("male"), Finding("Pleural effusion", "pleura", side="right", size=25))
    moved = (base.masks["lung"] > 0) & (study.masks["pleura"] > 0)
    assert moved.sum() > 20_000
    assert np.median(study.volume[moved]) == pytest.approx(9, abs=8)
    assert np.nonzero(moved)[0].mean() < study.volume.shape[0] / 2  # the patient's right


def _shrunk(study: Study, region: str | None, size: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As the reference shrinks a region's crop or, without a region, the scan: values, lung, corner and extent."""
    volume = study.volume if region is None else np.where(study.masks[region] > 0, study.volume, -1024)
    spans = []
    for axis in range(3):
        filled = np.flatnonzero((volume > -1000).any(axis=tuple(k for k in range(3) if k != axis)))
        spans.append(slice(filled[0], filled[-1] + 1))
    cut = [np.ascontiguousarray(array[tuple(spans)], dtype=np.float32) for array in (volume, study.masks["lung"])]
    small, lung = (adaptive_avg_pool3d(torch.from_numpy(array)[None], size)[0].numpy() for array in cut)
    frame = np.array([(span.start, span.stop - span.start) for span in spans], dtype=float)
    return (np.clip(small, -1000, 200) + 400) / 600, lung > 0.9, frame


def test_small_nodules_show_in_the_lung_crop_and_not_in_the_shrunken_scan(healthy: dict[str, Study]):
    anatomy, size, rng = _anatomy("male"), (48, 48, 16), random.Random(5)
    nodules: list[Finding] = []
    for lobe, diameter in zip(LOBES, (5, 6, 5, 6, 5), strict=True):
        candidates = (DRAW["Lung nodule"]("Lung nodule", anatomy, rng, nodules) for _ in range(999))
        found = next(c for c in candidates if c.place == lobe and c.size == diameter and len(c.points) == 1)
        nodules.append(found)
    study, base = _render(anatomy, *nodules), healthy["male"]
    spots, count = ndimage.label(np.abs(study.volume.astype(int) - base.volume) > 250)
    centers = [
        c
        for k, c in enumerate(ndimage.center_of_mass(spots > 0, spots, range(1, count + 1)), 1)
        if (spots == k).sum() > 9
    ]
    assert len(centers) == 5
    contrast = {}
    for region in ("lung", None):
        (with_them, lung, frame), (without, _, _) = _shrunk(study, region, size), _shrunk(base, region, size)
        change, spread = np.abs(with_them - without), without[lung].std()
        at = [tuple(((np.array(c) - frame[:, 0]) / frame[:, 1] * size).astype(int)) for c in centers]
        contrast[region] = np.array(
            [change[tuple(slice(max(k - 1, 0), k + 2) for k in spot)].max() / spread for spot in at]
        )
    assert (contrast["lung"] > 1).sum() >= 4, contrast
    assert (contrast[None] < 1).sum() >= 4, contrast
    assert contrast["lung"].mean() > 2 * contrast[None].mean()


def test_montage_shows_something(healthy: dict[str, Study]):
    picture = montage(healthy["female"])
    assert picture.mode == "RGB" and min(picture.size) > 900
    assert np.asarray(picture).std() > 30


# ---- layouts --------------------------------------------------------------------------------------------------------


def _digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def radgenome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantom") / "radgenome"
    write_radgenome(root, train=2, validation=1, seed=3, workers=2)
    return root


def test_radgenome_layout_is_complete(radgenome: Path):
    expected = {"PHANTOM.json"} | {f"radgenome_files/{split}_region_report.csv" for split in ("train", "validation")}
    for prefix, count in (("train", 2), ("valid", 1)):
        for n in range(1, count + 1):
            expected.add(f"{prefix}_preprocessed/{prefix}_{n}/{prefix}_{n}a/{prefix}_{n}_a_1.nii.gz")
            expected |= {f"{prefix}_region_mask/seg_{prefix}_{n}_a_1/{region}.nii.gz" for region in REGIONS}
    assert set(_digests(radgenome)) == expected


def test_radgenome_files_hold_what_was_drawn(radgenome: Path):
    marker = json.loads((radgenome / "PHANTOM.json").read_text())
    assert marker["complete"] and "nothing clinical" in marker["notice"]
    drawn = marker["studies"]["train_2_a_1"]
    study = render_ct(draw_patient(drawn["seed"]))
    assert tuple(drawn["findings"]) == study.findings
    image = nibabel.load(radgenome / "train_preprocessed/train_2/train_2a/train_2_a_1.nii.gz")
    assert image.header.get_zooms() == (1.0, 1.0, 3.0) and nibabel.aff2axcodes(image.affine) == study.orientation
    assert np.array_equal(np.asarray(image.dataobj), study.volume)
    for region in REGIONS:
        mask = nibabel.load(radgenome / f"train_region_mask/seg_train_2_a_1/{region}.nii.gz")
        assert np.array_equal(mask.affine, image.affine)
        assert np.array_equal(np.asarray(mask.dataobj), study.masks[region])
    with (radgenome / "radgenome_files/train_region_report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["Volumename", "Anatomy", "Sentence"]
    assert {r["Anatomy"]: r["Sentence"] for r in rows if r["Volumename"] == "train_2_a_1.nii.gz"} == study.regions


def test_the_same_seed_gives_the_same_bytes(radgenome: Path, tmp_path: Path):
    write_radgenome(tmp_path / "again", train=2, validation=1, seed=3, workers=1)
    assert _digests(tmp_path / "again") == _digests(radgenome)


def test_a_cut_short_phantom_is_completed(radgenome: Path):
    before = _digests(radgenome)
    lost = radgenome / "valid_preprocessed/valid_1/valid_1a/valid_1_a_1.nii.gz"
    kept = radgenome / "train_preprocessed/train_1/train_1a/train_1_a_1.nii.gz"
    stamp = kept.stat().st_mtime_ns
    lost.unlink()
    write_radgenome(radgenome, train=2, validation=1, seed=3)
    assert _digests(radgenome) == before
    assert kept.stat().st_mtime_ns == stamp


def test_other_phantoms_and_other_data_are_not_overwritten(radgenome: Path, tmp_path: Path):
    with pytest.raises(DataFault, match="seed"):
        write_radgenome(radgenome, train=2, validation=1, seed=4)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataFault, match="empty folder"):
        write_radgenome(tmp_path, train=2, validation=1, seed=3)


def test_ctrg_layout(tmp_path: Path):
    write_ctrg(tmp_path, train=1, test=1, seed=2)
    annotation = json.loads((tmp_path / "annotation.json").read_text())
    assert [row["id"] for row in annotation["train"]] == [1] and [row["id"] for row in annotation["test"]] == [2]
    with (tmp_path / "region_report.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["Volumename"] == "2.nii.gz"]
    assert annotation["test"][0]["finding"] == " ".join(row["Sentence"] for row in rows)
    assert {path.name for path in (tmp_path / "region_mask/seg_1").iterdir()} == {
        f"{region}.nii.gz" for region in REGIONS
    }
    assert nibabel.load(tmp_path / "CTRG-Chest-548K_volume/2.nii.gz").get_data_dtype() == np.int16
