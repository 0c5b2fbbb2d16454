"""CANDID-PTX's layout, split, masks and faults, on a handful of images in the true layout."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from datamodules.candid_ptx import CandidPTX
from datamodules.mask_quality import dice_of
from datamodules.siim_rle import decode, encode
from datamodules.study import DataFault, SettingsFault
from zoo.schema import parameters
from zoo.study_options import described_arguments

TABLE = "Pneumothorax_reports.csv"
COLUMNS = ["SOPInstanceUID", "StudyInstanceUID", "EncodedPixels", "Report", "filename"]
SIDE = 1024
FEW = {"size": 10, "validation": 2, "test": 2}  # of 12 with pneumothorax


def disc(row, column, radius=40):
    y, x = np.ogrid[:SIDE, :SIDE]
    return ((y - row) ** 2 + (x - column) ** 2 <= radius**2).astype(np.uint8)


def row(number, rle, report=None, patient=None, study=None):
    patient = f"P{(number + 1) // 2:04d}" if patient is None else patient  # two images a patient
    text = f"Findings: Pneumothorax {number}.\nUnchanged." if report is None else report
    return [f"1.2.{number}", study or f"1.9.{number}", rle, text, f"{patient}_2010010{number % 9 + 1}.dcm"]


LEFT, RIGHT = encode(disc(200, 300)), encode(disc(600, 700))
ROWS = [*(row(number, LEFT) for number in range(1, 13)), row(3, RIGHT), row(5, LEFT)]
ROWS += [row(number, rle, "Clear lungs.") for number, rle in ((13, "-1"), (14, " -1"), (15, ""))]


def write(root, rows=ROWS, columns=COLUMNS):
    with (root / TABLE).open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([columns, *rows])


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.fromarray(np.tile(np.arange(SIDE, dtype=np.uint16) * 16, (SIDE, 1))).save(path)
    return path


@pytest.fixture
def root(tmp_path, picture):
    root = tmp_path / "candid"
    (root / "dataset").mkdir(parents=True)
    for number in range(1, 16):
        shutil.copy(picture, root / "dataset" / f"1.2.{number}")  # DICOM there; what a file is, its content says
    write(root)
    return root


def made(root, **options):
    return CandidPTX(str(root), **{**FEW, **options})


def ids(data, split="train"):
    return [study.id for study in data.studies(split)]


def split_of(data):
    return {split: ids(data, split) for split in data.splits}


# ---- what a study is ------------------------------------------------------------------------------------------------


def test_a_study_is_an_image_its_lesions_and_its_cleaned_report(root):
    data = made(root)
    study = next(study for split in data.splits for study in data.studies(split) if study.id == "1.2.3")
    assert study.report == "Pneumothorax 3."
    assert (data.patient_of(study), data.examination_of(study)) == ("P0002", "1.9.3")
    full = data.read(study)
    assert full.image.shape == (SIDE, SIDE) and full.image[0, 5] == 80
    assert (full.masks["pneumothorax"] == (disc(200, 300) | disc(600, 700))).all()  # its rows are united
    assert list(full.masks) == ["pneumothorax"]
    assert made(root, clean=False).films()["1.2.3"].report.endswith("Unchanged.")
    raw = [study.report for split in data.splits for study in made(root, clean=False).studies(split)]
    assert "Findings: Pneumothorax 3. Unchanged." in raw


def test_images_without_pneumothorax_are_used_where_asked_for(root):
    assert not {"1.2.13", "1.2.14", "1.2.15"} & {name for names in split_of(made(root)).values() for name in names}
    data = made(root, only_positive=False, size=15)
    studies = {study.id: study for split in data.splits for study in data.studies(split)}
    assert len(studies) == 15 and {data.group_of(studies[f"1.2.{n}"]) for n in (13, 14, 15)} == {"no pneumothorax"}
    assert data.group_of(studies["1.2.1"]) == "pneumothorax" and made(root).group_of(studies["1.2.1"]) is None
    mask = data.read(studies["1.2.14"]).masks["pneumothorax"]
    assert mask.shape == (SIDE, SIDE) and not mask.any()


@pytest.mark.parametrize(("folder", "suffix"), [("dataset1/dataset", ".png"), ("chest_radiographs", ".dcm")])
def test_images_lie_in_known_folders_or_where_it_is_said(root, folder, suffix):
    (root / folder).parent.mkdir(exist_ok=True)
    (root / "dataset").rename(root / folder)
    for path in list((root / folder).iterdir()):
        path.rename(path.with_name(path.name + suffix))
    assert made(root).studies("train")[0].files["image"].suffix == suffix
    (root / folder).rename(root.parent / "elsewhere")
    with pytest.raises(DataFault, match="holds no folder dataset, .*; set data.images"):
        made(root).studies("train")
    assert ids(made(root, images=str(root.parent / "elsewhere")))


def test_what_the_published_table_is_known_for_is_counted_and_not_used(root, capsys):
    rows = [*ROWS, row(1, RIGHT, patient="P0099"), row(2, RIGHT, "Another report.")]
    write(root, [*rows[:3], row(4, LEFT, "Unchanged."), *rows[4:]])
    data = made(root, size=10, store=None)
    data.prepare_data()
    told = capsys.readouterr().out
    assert sorted(name for names in split_of(data).values() for name in names) == sorted(
        f"1.2.{number}" for number in (3, *range(5, 13))
    )
    assert "1 stand under two patients, 1 have two different reports, 1 of " in told and "once it is cleaned" in told


# ---- the split ------------------------------------------------------------------------------------------------------


def test_images_are_drawn_by_the_seed_whatever_the_tables_order(root):
    first = split_of(made(root))
    assert {split: len(names) for split, names in first.items()} == {"train": 6, "validation": 2, "test": 2}
    assert len({name for names in first.values() for name in names}) == 10
    write(root, ROWS[::-1])
    assert split_of(made(root)) == first != split_of(made(root, seed=1))
    assert ids(made(root, limit=3)) == first["train"][:3]


def test_more_validation_takes_from_training_alone(root):
    few, more = split_of(made(root)), split_of(made(root, validation=3))
    assert few["test"] == more["test"] and few["train"][:5] == more["train"]


def test_patients_are_shared_unless_whole_patients_are_drawn(root, capsys):
    seeds = range(6)
    for unit, shares in (("image", True), ("patient", False)):
        told = []
        for seed in seeds:
            data = made(root, split_unit=unit, seed=seed, store=None)
            of = {split: {data.patient_of(study) for study in data.studies(split)} for split in data.splits}
            data.prepare_data()
            said = "data.split_unit=patient has none" in capsys.readouterr().out
            assert said == bool(of["test"] & (of["train"] | of["validation"]))
            told.append(said)
            assert unit == "image" or not of["validation"] & of["train"]
        assert any(told) == shares
    assert [len(ids(made(root, split_unit="patient"), split)) for split in ("train", "validation", "test")] == [6, 2, 2]


def test_a_split_is_kept_and_stays_when_the_table_changes(root):
    data = made(root)
    data.prepare_data()
    (kept,) = root.glob("splits/*.json")
    before, time = split_of(data), kept.stat().st_mtime_ns
    write(root, ROWS[:-3] + [row(number, LEFT) for number in (13, 14, 15)])
    again = made(root)
    again.prepare_data()
    assert split_of(again) == before != split_of(made(root, store=None)) and kept.stat().st_mtime_ns == time
    made(root, seed=1).prepare_data()
    assert len(list(root.glob("splits/*.json"))) == 2
    made(root, store=str(root.parent / "store"), seed=2).prepare_data()
    assert len(list(root.parent.glob("store/splits/*.json"))) == 1 and len(list(root.glob("splits/*.json"))) == 2


def test_a_split_may_be_given(root, tmp_path):
    given = {"train": ["1.2.1", "1.2.13"], "validation": ["1.2.2"], "test": ["1.2.3"]}
    path = tmp_path / "split.json"
    path.write_text(json.dumps(given))
    assert split_of(made(root, split=str(path))) == given  # whatever else is set
    path.write_text(json.dumps({**given, "sha256": "0"}))
    with pytest.raises(DataFault, match="its lists were changed since it was made"):
        made(root, split=str(path)).studies("train")
    path.write_text(json.dumps({**given, "test": ["1.2.1"]}))
    with pytest.raises(DataFault, match="1.2.1 stands there twice"):
        made(root, split=str(path)).studies("train")
    path.write_text(json.dumps({**given, "train": ["1.2.1", "1.2.99"]}))
    with pytest.raises(DataFault, match="has no 1.2.99 that can be used, but the split names it"):
        made(root, split=str(path)).studies("train")
    assert ids(made(root, split=str(path), on_error="skip")) == ["1.2.1"]
    for text in ("{", "[]", '{"train": []}'):
        path.write_text(text)
        with pytest.raises(DataFault, match=r"is no split; expected JSON with the lists train, validation, test"):
            made(root, split=str(path)).studies("train")
    with pytest.raises(DataFault, match="b.json: cannot be read"):
        made(root, split=str(tmp_path / "b.json")).studies("train")


def test_a_phantom_is_used_whole(root):
    (root / "PHANTOM.json").write_text(json.dumps({"counts": {"train": 7, "validation": 3, "test": 2}}))
    data = CandidPTX(str(root))
    assert {split: len(names) for split, names in split_of(data).items()} == {"train": 7, "validation": 3, "test": 2}
    assert data.label_findings()("There is a small left apical pneumothorax.") >= {"Pneumothorax"}
    (root / "PHANTOM.json").unlink()
    assert CandidPTX(str(root)).label_findings() is None


# ---- masks of another quality ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("degradation", ["erode", "shift"])
def test_a_test_image_gets_a_worse_mask_and_always_the_same(root, degradation):
    data = made(root, dice=0.7, degradation=degradation)
    study = data.studies("test")[0]
    masks = data.read(study).masks
    assert (masks["annotation"] == made(root).read(study).masks["pneumothorax"]).all()
    assert abs(dice_of(masks["pneumothorax"], masks["annotation"]) - 0.7) < 0.03
    again = made(root, dice=0.7, degradation=degradation).read(study).masks
    assert (again["pneumothorax"] == masks["pneumothorax"]).all()
    other = data.read(data.studies("test")[1]).masks["pneumothorax"]
    assert (other != masks["pneumothorax"]).any() == (degradation == "shift")  # each image has an angle of its own
    assert list(data.read(data.studies("train")[0]).masks) == ["pneumothorax"]  # training keeps the radiologists'


def test_the_same_cases_at_every_level(root):
    options = {"test": 4, "cases": 2}
    first = ids(made(root, dice=0.9, **options), "test")
    assert len(first) == 2 and first == ids(made(root, dice=0.5, **options), "test")
    assert set(first) < set(ids(made(root, test=4), "test"))
    with pytest.raises(SettingsFault, match="data.cases=2: .* data.dice"):
        made(root, cases=2)
    with pytest.raises(SettingsFault, match="data.dice=1.2"):
        made(root, dice=1.2)


def test_predicted_masks_take_the_annotations_place(root, tmp_path, capsys):
    names = ids(made(root, test=4), "test")
    good, bad = disc(200, 300), disc(200, 340)
    lesion = {name: made(root).films()[name].lesions for name in names}
    for name, mask in zip(names, (good, bad, bad, good), strict=True):
        both = mask | (disc(600, 700) if len(lesion[name]) > 1 and name == "1.2.3" else 0)
        Image.fromarray(np.uint8(both * 255)).save(tmp_path / f"{name}.png")
    data = made(root, test=4, masks=str(tmp_path))
    masks = data.read(data.studies("test")[1]).masks
    assert (masks["pneumothorax"] != masks["annotation"]).any() and masks["pneumothorax"].max() == 1
    level = dice_of(bad, good)
    chosen = made(root, test=4, masks=str(tmp_path), dice=round(level, 2), cases=3, store=None)
    chosen.prepare_data()
    assert {names[1], names[2]} - {"1.2.3"} <= set(ids(chosen, "test")) <= {names[1], names[2]}
    assert "images too few with a mask of Dice score" in capsys.readouterr().out
    (tmp_path / f"{names[0]}.png").unlink()
    with pytest.raises(DataFault, match=rf"{names[0]}.png: no such file \(nor .nii.gz\), the predicted mask"):
        made(root, test=4, masks=str(tmp_path)).studies("test")


class Areas:
    """A preprocessor in a few lines: how much is masked."""

    def settings(self):
        return {}

    def arrays(self, study):
        return {"area": np.int64([study.masks["pneumothorax"].sum()])}

    def __call__(self, study, arrays, rng):
        return {"id": study.id, "area": int(arrays["area"][0])}

    def collate(self, samples):
        return {"ids": [sample["id"] for sample in samples], "area": [sample["area"] for sample in samples]}


def test_masks_of_another_quality_are_not_taken_from_the_store(root):
    areas = []
    for dice in (None, 0.7, None):
        data = made(root, dice=dice, degradation="erode")
        data.preprocessor = Areas()
        data.prepare_data()
        areas.append([batch["area"][0] for batch in data.evaluation_dataloader("test")])
    assert areas[0] == areas[2] and all(worse < area for worse, area in zip(areas[1], areas[0], strict=True))
    assert len(list(root.glob(".store/*"))) == 1


# ---- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda root: (root / TABLE).unlink(), f"{TABLE}: no such file"),
        (
            lambda root: write(root, [], ["SOPInstanceUID"]),
            f"{TABLE}: no column EncodedPixels, Report; the columns are",
        ),
        (
            lambda root: write(root, [["../1", "", "-1", "", ""]]),
            f"{TABLE}:2: SOPInstanceUID '../1' is no image's name",
        ),
        (lambda root: write(root, [["", "", "-1", "Text.", ""]]), f"{TABLE}:2: SOPInstanceUID '' is no image's name"),
        (lambda root: write(root, ROWS[:5]), "data.size=10: there are 5 images to draw from; set it to 5 at most"),
    ],
)
def test_broken_tables_are_named(root, break_it, expected):
    break_it(root)
    with pytest.raises((DataFault, SettingsFault), match=expected):
        made(root).studies("train")


def test_patients_that_are_not_told_cannot_be_drawn(root):
    write(root, [each[:4] for each in ROWS], COLUMNS[:4])
    assert made(root).patient_of(made(root).studies("train")[0]) is None
    with pytest.raises(DataFault, match=r"no filename that begins with its patient .* set data.split_unit=image"):
        made(root, split_unit="patient").studies("train")


@pytest.mark.parametrize(
    ("rle", "expected"),
    [("5 2 7", "3 numbers, the last one"), ("5 two", "'two' stands among"), (f"{SIDE**2} 1", "its runs end 1 pixels")],
)
def test_run_lengths_that_are_none_name_their_row(root, rle, expected):
    name = ids(made(root))[0]
    place = [each[0] for each in ROWS].index(name)
    write(root, [[*each[:2], rle, *each[3:]] if line == place else each for line, each in enumerate(ROWS)])
    line = sum(1 + each[3].count("\n") for each in ROWS[: place + 1]) + 1
    with pytest.raises(DataFault, match=rf"{TABLE}:{line}: {name}: EncodedPixels cannot be read: .*{expected}"):
        made(root).read(made(root).studies("train")[0])


def test_an_image_that_is_missing_or_of_another_size_is_named(root):
    first, second, *_ = ids(made(root))
    (root / "dataset" / first).unlink()
    with pytest.raises(DataFault, match=f"{first}: no such file"):
        made(root).studies("train")
    assert first not in ids(made(root, on_error="skip"))
    Image.new("L", (512, 512)).save(root / "dataset" / second, "PNG")
    data = made(root, on_error="skip")
    with pytest.raises(DataFault, match=f"{second}: has 512 × 512 pixels, .* give it with 1024 × 1024"):
        data.read(data.studies("train")[0])


@pytest.mark.parametrize("wrong", [{"size": 4}, {"test": 0}, {"validation": 0}, {"rle_base": 2}])
def test_settings_that_make_no_split_are_refused(root, wrong):
    with pytest.raises(SettingsFault, match="data.(size|rle_base)="):
        made(root, **wrong).studies("train")


# ---- loose files ----------------------------------------------------------------------------------------------------


def test_one_radiograph_from_loose_files(root, picture, tmp_path):
    data = made(root)
    bare = data.study_from_files(root / "dataset" / "1.2.3")
    assert (bare.id, bare.masks, bare.split, bare.report) == ("1.2.3", None, None, None)
    assert (data.examination_of(bare), data.patient_of(bare), data.group_of(bare)) == ("1.2.3", None, None)
    told = data.study_from_files(picture, LEFT)
    assert told.id == "a" and (told.masks["pneumothorax"] == decode(LEFT, SIDE, SIDE)).all()
    assert not data.study_from_files(picture, " -1").masks["pneumothorax"].any()
    Image.fromarray(disc(200, 300) * 255).save(tmp_path / "a.png")
    for given in (tmp_path / "a.png", tmp_path):
        assert (data.study_from_files(picture, str(given)).masks["pneumothorax"] == disc(200, 300)).all()
    assert (
        set(parameters(data.study_from_files)) == set(described_arguments(data.study_from_files)) == {"image", "masks"}
    )


def test_loose_masks_that_are_none_are_refused(root, picture, tmp_path):
    data = made(root)
    with pytest.raises(SettingsFault, match="--masks: as run-length text it cannot be read: it has 3 numbers"):
        data.study_from_files(picture, "1 2 3")
    with pytest.raises(DataFault, match=r"b.png: no such file"):
        data.study_from_files(picture, str(tmp_path / "b.png"))
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(DataFault, match="9 × 9 pixels, not 1024 × 1024"):
        data.study_from_files(picture, str(tmp_path))


def test_the_table_is_counted_as_its_makers_count(root):
    data = made(root)
    assert data.counts() == {"images": 15, "images with pneumothorax": 12}
    assert data.published_counts.keys() == data.counts().keys()
