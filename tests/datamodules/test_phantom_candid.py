"""The phantom's pneumothorax: drawn where its mask is, told as its mask shows, and written as CANDID-PTX is."""

from __future__ import annotations

import csv
import json
import random
import re
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from scipy import ndimage

from datamodules.phantom.candid_layout import COLUMNS, dicom_bytes, write_candid_ptx
from datamodules.phantom.layouts import patient_seed
from datamodules.phantom.pneumothorax import SIZE, Exposure, Thorax, draw_course, expose, pleural_air, project_thorax
from datamodules.phantom.pneumothorax_wording import (
    LABELS,
    PLACES,
    SIDES,
    Chest,
    Lesion,
    findings_in,
    labels_of,
    vocabulary,
    word_pneumothorax,
)
from datamodules.radiograph import read_grey
from datamodules.report_cleaning import clean
from datamodules.siim_rle import decode
from datamodules.study import DataFault

# ---- words ----------------------------------------------------------------------------------------------------------


def chests(count: int) -> Iterator[tuple[int, Chest, Chest | None]]:
    rng = random.Random(0)

    def chest() -> Chest:
        sides = [side for side in SIDES if rng.random() < 0.5]
        shares = rng.choices((0.05, 0.2, 0.5), k=2)
        lesions = tuple(Lesion(side, rng.choice(list(PLACES)), s) for side, s in zip(sides, shares, strict=False))
        return Chest(lesions, rng.choice(("", *SIDES)), rng.choice(("", *SIDES)))

    return ((seed, chest(), rng.choice((None, chest()))) for seed in range(count))


def test_what_is_told_is_read_again_cleaned_or_not():
    told, words, seen = set(), set(), set()
    for seed, chest, before in chests(400):
        report = word_pneumothorax(chest, seed, before)
        cleaned, removed = clean(report)
        assert findings_in(report) == findings_in(cleaned) == labels_of(chest), report
        assert not re.search(r"previous|recommended|Dr|Findings:|CHEST", cleaned)
        told |= {rule for rule, _ in removed}
        words |= set(re.findall(r"[^\W\d_]+|[^\w\s]", report))
        seen |= labels_of(chest)
    assert {"comparison", "previous examination", "follow-up", "title", "clinical details"} <= told
    assert seen == set(LABELS)
    assert words <= set(vocabulary()) and len(set(vocabulary()) - words) < 10


def test_labels_of_other_texts():
    assert findings_in("No left pneumothorax. ??? \n left lung clear; ¶") == frozenset()
    assert findings_in("Small pneumothorax at the LEFT apex.") == {
        "Pneumothorax", "Small pneumothorax", "Left pneumothorax", "Apical pneumothorax"
    }  # fmt: skip
    assert findings_in("The previous right pneumothorax has resolved. Chest drain.") == {"Chest tube"}


# ---- the picture ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thorax() -> Thorax:
    return project_thorax(7)


@pytest.mark.parametrize("side", SIDES)
def test_air_lies_at_the_wall_of_its_place_and_has_its_share(thorax: Thorax, side: str):
    field = thorax.fields[side] > 0.5
    heights = []
    for place in PLACES:
        air = pleural_air(field, side, place, 0.2, np.random.default_rng(1))
        assert air.sum() == round(0.2 * field.sum()) and not (air & ~field).any()
        _, parts = ndimage.label(air, np.ones((3, 3)))
        assert parts <= 3
        outer = np.argmax(field if side == "right" else field[:, ::-1], axis=1)
        flipped = air if side == "right" else air[:, ::-1]
        row = int(np.median(np.nonzero(air)[0]))
        assert flipped[row, outer[row]] and not flipped[row, np.flatnonzero(field[row]).size + outer[row] - 5]
        heights.append(np.nonzero(air)[0].mean())
    assert heights == sorted(heights) and heights[2] - heights[0] > 60  # apical, lateral, basal
    columns = {name: np.nonzero(thorax.fields[name])[1].mean() for name in SIDES}
    assert columns["right"] < SIZE / 2 < columns["left"]


def test_a_film_is_darker_where_the_mask_is_and_nowhere_else(thorax: Thorax):
    healthy = expose(thorax, Chest(), 3)
    ill = expose(thorax, Chest((Lesion("left", "apical", 0.22),), "left", "left"), 3)
    (mask,) = ill.lesions
    assert mask.dtype == np.uint8 and mask.shape == ill.grey.shape == (SIZE, SIZE)
    assert mask.sum() / ill.hemithorax["left"].sum() == pytest.approx(0.22, abs=1e-3)
    change = ndimage.uniform_filter(ill.grey - healthy.grey, 3)
    devices = ndimage.binary_dilation((ill.tube | ill.fracture) > 0, iterations=8)
    core = ndimage.binary_erosion(mask, iterations=4) & ~devices
    assert change[core].mean() < -0.02 and (change[core] < 0).mean() > 0.85
    assert abs(change[ill.hemithorax["right"] > 0].mean()) < 0.005  # the other side is as it was
    wall = ill.tube > 0
    assert wall.any() and change[wall & (ill.hemithorax["left"] > 0) & ~(mask > 0)].mean() > 0.01
    assert 50 < ill.fracture.sum() < 1000 and not healthy.lesions and not healthy.tube.any()


def test_a_patients_films_show_one_course():
    course = draw_course(5, (True, False, True, True))
    assert [bool(chest.lesions) for chest in course] == [True, False, True, True]
    places = {lesion.side: {film.lesions[0].place for film in course if film.lesions} for lesion in course[0].lesions}
    assert all(len(found) == 1 for found in places.values())
    drawn = [draw_course(seed, (True,))[0] for seed in range(300)]
    assert {len(chest.lesions) for chest in drawn} == {1, 2}
    assert set().union(*map(labels_of, drawn)) == set(LABELS)


# ---- the layout -----------------------------------------------------------------------------------------------------

COUNTS = {"train": 3, "validation": 1, "test": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantom") / "candid"
    write_candid_ptx(root, **COUNTS, seed=2)
    return root


def table(root: Path, name: str) -> list[dict[str, str]]:
    with (root / name).open(newline="") as file:
        return list(csv.DictReader(file))


def films(root: Path) -> Iterator[tuple[int, Exposure, Chest, str]]:
    """Every film as it was drawn: its place in the patient's course, the film, what it shows, its image."""
    marker = json.loads((root / "PHANTOM.json").read_text())
    for name, patient in marker["studies"].items():
        told = json.loads((root / f".films/{name}.json").read_text())
        thorax = project_thorax(patient["seed"])
        for number, chest in enumerate(draw_course(patient["seed"], [film["lesions"] != ["-1"] for film in told])):
            film = expose(thorax, chest, patient_seed(patient["seed"], "film", number))
            yield number, film, chest, told[number]["image"]


def test_table_and_images_are_as_published(root: Path):
    rows = table(root, "Pneumothorax_reports.csv")
    assert tuple(rows[0]) == COLUMNS
    images = {row["SOPInstanceUID"] for row in rows}
    assert {path.name for path in (root / "dataset").iterdir()} == images and len(images) == 7  # two more without
    positive = {row["SOPInstanceUID"] for row in rows if row["EncodedPixels"] != "-1"}
    assert len(positive) == sum(COUNTS.values())
    assert all(re.fullmatch(r"P\d{4}_\d{8}", row["filename"]) for row in rows)
    for row in rows:
        data = dcmread(root / "dataset" / row["SOPInstanceUID"])
        assert data.SOPInstanceUID == row["SOPInstanceUID"] and data.StudyInstanceUID == row["StudyInstanceUID"]
        assert (data.Rows, data.Columns, data.BitsStored) == (SIZE, SIZE, 12)
        assert ("Pneumothorax" in findings_in(row["Report"])) == (row["SOPInstanceUID"] in positive)
    marker = json.loads((root / "PHANTOM.json").read_text())
    assert marker["complete"] and marker["counts"] == COUNTS and marker["layout"] == "CANDID-PTX"


def test_rows_hold_the_masks_that_were_drawn_and_reports_tell_of_them(root: Path):
    rows = table(root, "Pneumothorax_reports.csv")
    tubes = {row["anon_SOPUID"]: row["mask_rle"] for row in table(root, "chest_tube.csv")}
    checked = 0
    for _, film, chest, image in islice(films(root), 3):
        mine = [row for row in rows if row["SOPInstanceUID"] == image]
        given = np.zeros((SIZE, SIZE), np.uint8)
        for row in mine:
            given |= decode(row["EncodedPixels"], SIZE, SIZE)
        drawn = np.bitwise_or.reduce([np.zeros_like(given), *film.lesions])
        assert np.array_equal(given, drawn)
        assert np.array_equal(decode(tubes.get(image, "-1"), SIZE, SIZE), film.tube)
        assert findings_in(mine[0]["Report"]) == labels_of(chest)
        seen = read_grey(root / "dataset" / image)
        assert np.abs(seen / 4095 - film.grey).max() < 1e-3  # through window and MONOCHROME1
        checked += bool(film.lesions)
    assert checked


def test_inverted_and_windowed_films_are_seen_alike(tmp_path: Path):
    grey = np.linspace(0, 1, SIZE * 2, dtype=np.float32).reshape(2, SIZE)
    kinds = set()
    for seed in range(20):
        path = tmp_path / f"{seed}"
        path.write_bytes(
            dicom_bytes(grey, {"image": "2.25.1", "study": "2.25.2"}, "P1", "20110101", random.Random(seed))
        )
        kinds.add((dcmread(path).PhotometricInterpretation, "WindowCenter" in dcmread(path)))
        assert np.abs(read_grey(path) / 4095 - grey).max() < 1e-3
    assert len(kinds) == 4


def test_a_phantom_goes_on_where_it_was_cut_short_and_is_the_same_again(root: Path, tmp_path: Path):
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    marker = json.loads((copy / "PHANTOM.json").read_text())
    (copy / "PHANTOM.json").write_text(json.dumps({**marker, "complete": False}))
    first = json.loads((copy / f".films/{next(iter(marker['studies']))}.json").read_text())
    (copy / "dataset" / first[-1]["image"]).unlink()
    (copy / "Pneumothorax_reports.csv").unlink()
    write_candid_ptx(copy, **COUNTS, seed=2)
    names = {path.relative_to(root) for path in root.rglob("*") if path.is_file()}
    assert names == {path.relative_to(copy) for path in copy.rglob("*") if path.is_file()}
    assert all((root / name).read_bytes() == (copy / name).read_bytes() for name in names)
    with pytest.raises(DataFault, match="holds a phantom with seed 2, not 3"):
        write_candid_ptx(root, **COUNTS, seed=3)
