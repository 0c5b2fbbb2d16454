"""The phantom's radiograph side: projected, boxed, worded and written as it says."""

import csv
import hashlib
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.phantom.anatomy import Anatomy, draw_anatomy
from datamodules.phantom.padchest_layout import COLUMNS, write_padchest_gr
from datamodules.phantom.patient import Finding, Patient, draw_patient
from datamodules.phantom.radiograph import MASKS, attenuation, cardiothoracic_ratio, radiograph, render_radiograph
from datamodules.phantom.radiograph_wording import (
    DENIED,
    TOLD,
    Bounds,
    Sight,
    finding_sentences,
    findings_in,
    vocabulary,
)
from datamodules.study import DataFault, Study

SPOT = (-88.0, -30.0, 5.0)  # in the right lung, mm


def _anatomy(heart_size: float = 1.0) -> Anatomy:
    seed = next(n for n in range(99) if draw_anatomy(random.Random(n)).sex == "male")
    return draw_anatomy(random.Random(seed), heart_size)


def _nodule(size: float, point: tuple[float, float, float] = SPOT) -> Finding:
    return Finding("Lung nodule", "lung", "solid", "", "right upper lobe", int(size), (point,), (size,), 3)


@pytest.fixture(scope="module")
def healthy() -> Study:
    return render_radiograph(Patient(7, _anatomy(), ()))


@pytest.fixture(scope="module")
def ill() -> Study:
    effusion = Finding("Pleural effusion", "pleura", side="left", size=24, seed=5)
    wires = Finding("Medical material", "bone", "pacemaker", seed=4)
    return render_radiograph(Patient(7, _anatomy(), (_nodule(7), effusion, wires)))


def _inside(study: Study, box: tuple[float, ...]) -> tuple[slice, slice]:
    height, width = study.image.shape
    x0, y0, x1, y1 = (round(edge * side) for edge, side in zip(box, (width, height, width, height), strict=True))
    return slice(y0, y1), slice(x0, x1)


# ---- the picture ----------------------------------------------------------------------------------------------------


def test_attenuation_of_air_water_and_bone():
    air, water, bone = attenuation(np.array([-1000, 0, 1000], np.int16))
    assert air == 0 and water == pytest.approx(0.0195) and bone > 2 * water
    assert attenuation(np.array([-1024], np.int16))[0] == 0


def test_a_frontal_radiograph(healthy: Study):
    image, masks = healthy.image, healthy.masks
    assert (
        image.dtype == np.uint16
        and image.shape[0] != image.shape[1]
        and 290 <= min(image.shape) <= max(image.shape) < 450
    )
    assert tuple(masks) == MASKS
    assert all(mask.shape == image.shape and mask.dtype == np.uint8 and mask.max() == 1 for mask in masks.values())
    lungs = (masks["right lung"] | masks["left lung"]) & (1 - masks["heart"])
    assert np.median(image[lungs > 0]) < 0.6 * np.median(
        image[masks["mediastinum"] > 0]
    )  # lungs dark, the middle bright
    assert image[:40, :25].mean() < np.median(image[lungs > 0])  # air beside the neck darker still
    column = {name: np.nonzero(mask)[1].mean() / image.shape[1] for name, mask in masks.items()}
    assert column["right lung"] < 0.45 < column["heart"] < column["left lung"]  # the patient's right on the left
    row = {name: np.nonzero(mask)[0].mean() for name, mask in masks.items()}
    assert row["trachea and bronchie"] < row["heart"]
    assert healthy.findings == () and not healthy.boxes


def test_sizes_differ_from_patient_to_patient():
    from datamodules.phantom.radiograph import Lattice, _detector

    frames = [_detector(Lattice(_anatomy()), random.Random(n)) for n in range(12)]
    assert len({(frame.height, frame.width) for frame in frames}) == 12
    assert {frame.height > frame.width for frame in frames} == {True, False}


def test_boxes_hold_the_change_that_their_finding_makes(healthy: Study, ill: Study):
    """Against the same patient without findings: tight boxes, nothing of note outside all of them."""
    change = np.abs(ill.image.astype(float) - healthy.image) / 4095
    assert set(ill.boxes) == {"Lung nodule", "Pleural effusion", "Medical material"} == set(ill.findings)
    outside = np.ones(change.shape, bool)
    for boxes in ill.boxes.values():
        for box in boxes:
            assert 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1
            outside[_inside(ill, box)] = False
    for label, boxes in ill.boxes.items():
        assert change[_inside(ill, boxes[0])].mean() > 2 * change[outside].mean(), label
    (nodule,), (effusion,) = ill.boxes["Lung nodule"], ill.boxes["Pleural effusion"]
    assert nodule[2] < 0.5 < effusion[2] and effusion[1] > 0.5  # nodule on the patient's right, fluid low on the left
    wide = (nodule[2] - nodule[0]) * ill.image.shape[1] * ill.spacing[1]
    assert 6 <= wide <= 11  # 7 mm, magnified, in whole pixels


def test_what_hides_is_neither_boxed_nor_told():
    lesions = (_nodule(5, (6.0, 60.0, -120.0)), Finding("liver cyst", "abdomen", size=20))
    coronary = Finding("Coronary artery wall calcification", "heart", place="left main", seed=2)
    study, sights = radiograph(Patient(7, _anatomy(), (*lesions, coronary)))
    assert sights == [] and study.findings == () and not findings_in(study.report)


def test_a_large_heart_is_read_from_the_silhouette(healthy: Study):
    large = render_radiograph(Patient(7, _anatomy(1.3), (Finding("Cardiomegaly", "heart"),)))
    assert cardiothoracic_ratio(healthy.masks) < 0.5 < cardiothoracic_ratio(large.masks)
    assert large.findings == ("Cardiomegaly",)
    heart = np.flatnonzero(large.masks["heart"].any(axis=0))
    (box,) = large.boxes["Cardiomegaly"]
    assert (box[0], box[2]) == (heart[0] / large.image.shape[1], (heart[-1] + 1) / large.image.shape[1])


def test_small_nodules_show_at_full_size_and_vanish_when_shrunk(healthy: Study):
    """Why boxes pay: the change in units of what varies in the lungs, at full size and at 32 pixels."""
    study = render_radiograph(Patient(7, _anatomy(), (_nodule(5),)))
    (box,) = study.boxes["Lung nodule"]
    bare, shown = (one.image.astype(np.float32) for one in (healthy, study))
    full = (shown - bare)[_inside(study, box)].mean()
    lungs = (healthy.masks["right lung"] | healthy.masks["left lung"]) & (1 - healthy.masks["heart"])
    small = [np.asarray(Image.fromarray(p).resize((32, 32), Image.Resampling.BOX)) for p in (bare, shown, lungs * 1.0)]
    spread = small[0][small[2] > 0.9].std()
    grain = np.diff(bare, axis=1)[lungs[:, 1:] > 0].std() / 2**0.5  # noise and the finest structure
    left = abs(small[1] - small[0]).max()
    assert full > 1.5 * grain
    assert left < 0.3 * full and left < 0.04 * spread


# ---- sentences ------------------------------------------------------------------------------------------------------


def _said(finding: Finding, *parts: Bounds) -> str:
    return finding_sentences(Patient(3, _anatomy(), (finding,)), [Sight(finding, parts)])[0].english


def test_sentences_say_side_third_and_size():
    corner = (0.1, 0.1, 0.2, 0.2)
    text = _said(_nodule(5), Bounds(corner, "right", "upper"))
    assert text.startswith("Small ") and text.endswith(" in the right upper lung field.")
    assert "Large" in _said(_nodule(20), Bounds(corner, "left", "lower"))
    effusion = Finding("Pleural effusion", "pleura", side="both", size=30)
    both = _said(effusion, Bounds(corner, "right", "lower"), Bounds(corner, "left", "lower"))
    assert "bilateral" in both or "both sides" in both
    only_left = _said(effusion, Bounds(corner, "left", "lower"))  # what is seen decides, not what was drawn
    assert "left" in only_left and "right" not in only_left


def test_every_phrase_is_read_back_and_in_the_vocabulary():
    words, boxes = set(vocabulary()), (0.1, 0.1, 0.2, 0.2)
    for key in TOLD:
        label, _, kind = key.partition("/")
        points = ((50.0, 0.0, 0.0),) * (2 if kind == "several" else 1)
        finding = Finding(label, "lung", kind, size=12, points=points, sizes=(12.0,) * len(points))
        parts = tuple(Bounds(boxes, "left", "middle", k) for k in range(len(points)))
        for seed in range(8):
            said = finding_sentences(Patient(seed, _anatomy(), (finding,)), [Sight(finding, parts)])
            assert said[0].label == label and findings_in(said[0].english) == {label}
            assert said[0].name == TOLD[key][0] or kind == ""
            assert ("left" in said[0].locations) <= ("left" in said[0].english.lower())
            assert ("middle lung field" in said[0].locations) == ("middle lung field" in said[0].english)
            for sentence in said:
                assert set(re.findall(r"[^\W\d_]+|[^\w\s]", sentence.english)) <= words
                assert sentence.spanish.endswith(".") and "{" not in sentence.english + sentence.spanish
                assert sentence.abnormal == bool(findings_in(sentence.english)), sentence
            denied = {text for labels, texts in DENIED.items() if label in labels for text, _ in texts}
            assert all(not s.boxes and s.english[:-1].lower() not in denied for s in said[1:])


def test_about_a_third_are_denials():
    said = []
    for seed in range(150):
        patient = draw_patient(seed)
        found = [f for f in patient.findings if f.label in TOLD]
        sights = [Sight(f, (Bounds((0, 0, 1, 1), "right", "lower"),)) for f in found]
        said += finding_sentences(patient, sights)
    assert 0.25 < np.mean([not sentence.abnormal for sentence in said]) < 0.42


# ---- the layout -----------------------------------------------------------------------------------------------------


def _digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def padchest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantom") / "padchest"
    write_padchest_gr(root, train=1, validation=1, test=1, seed=0)
    return root


def test_padchest_reports_are_as_published(padchest: Path):
    reports = json.loads((padchest / "grounded_reports_20240819.json").read_text())
    assert len(reports) == 3 == len({r["StudyID"] for r in reports})
    for report in reports:
        assert set(report) == {"StudyID", "ImageID", "PreviousStudyID", "PreviousImageID", "findings"}
        assert re.fullmatch(r"\d{39}", report["StudyID"]) and report["findings"]
        for finding in report["findings"]:
            keys = {"sentence_en", "sentence_es", "abnormal"}
            if finding["abnormal"]:
                keys |= {"boxes", "extra_boxes", "labels", "locations", "progression"}
                for x0, y0, x1, y1 in finding["boxes"] + finding["extra_boxes"]:
                    assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
                assert finding["labels"] and finding["progression"] is None
            assert set(finding) == keys
    assert {f["abnormal"] for r in reports for f in r["findings"]} == {True, False}


def test_padchest_images_are_what_was_drawn(padchest: Path):
    marker = json.loads((padchest / "PHANTOM.json").read_text())
    reports = {r["StudyID"]: r for r in json.loads((padchest / "grounded_reports_20240819.json").read_text())}
    assert marker["complete"] and set(marker["studies"]) == set(reports)
    assert {path.name for path in (padchest / "PadChest_GR").iterdir()} == {r["ImageID"] for r in reports.values()}
    name, drawn = next(iter(marker["studies"].items()))
    study = render_radiograph(draw_patient(drawn["seed"]))
    with Image.open(padchest / "PadChest_GR" / reports[name]["ImageID"]) as picture:
        assert picture.mode == "I;16" and np.array_equal(np.asarray(picture), study.image)
    assert tuple(drawn["findings"]) == study.findings
    assert study.report == " ".join(finding["sentence_en"] for finding in reports[name]["findings"])


def test_the_master_table_agrees_with_the_reports(padchest: Path):
    with (padchest / "master_table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and len(COLUMNS) == 23
    reports = json.loads((padchest / "grounded_reports_20240819.json").read_text())
    for report in reports:
        told = [row for row in rows if row["StudyID"] == report["StudyID"]]
        positive = [finding for finding in report["findings"] if finding["abnormal"]]
        if positive:
            assert [row["sentence_en"] for row in told] == [finding["sentence_en"] for finding in positive]
            assert [int(row["boxes_count"]) for row in told] == [len(finding["boxes"]) for finding in positive]
        else:
            assert [row["label"] for row in told] == ["Normal"] and told[0]["sentence_en"] == ""
        assert {row["ImageID"] for row in told} == {report["ImageID"]}
    split = {row["StudyID"]: row["split"] for row in rows}
    assert sorted(split.values()) == ["test", "train", "validation"]


def test_a_cut_short_phantom_is_completed_to_the_same_bytes(padchest: Path, tmp_path: Path):
    before = _digests(padchest)
    image = next((padchest / "PadChest_GR").iterdir())
    image.unlink()
    write_padchest_gr(padchest, train=1, validation=1, test=1, seed=0)
    assert _digests(padchest) == before
    write_padchest_gr(tmp_path / "other", train=1, validation=0, test=0, seed=0)
    images = {name: digest for name, digest in _digests(tmp_path / "other").items() if name.endswith(".png")}
    assert len(images) == 1 and images.items() <= before.items()
    with pytest.raises(DataFault, match="seed"):
        write_padchest_gr(padchest, train=1, validation=1, test=1, seed=1)


def test_a_lesion_inside_another_ones_outline_is_passed_over() -> None:
    """This patient has a lesion that no pixel is nearest to: it is told by the others, and nothing fails."""
    study, sights = radiograph(draw_patient(504127971))
    assert study.image is not None and all(sight.parts for sight in sights)
