"""MIMIC-CXR's layout, its choices of text and images, and its faults, on a handful of studies in the true layout."""

from __future__ import annotations

import csv
import gzip
import json

import numpy as np
import pytest
from PIL import Image

from datamodules.mimic_cxr import MimicCXR
from datamodules.mimic_cxr_tables import FINDINGS
from datamodules.study import DataFault, SettingsFault
from zoo.schema import parameters
from zoo.study_options import described_arguments

SPLIT, METADATA, LABELS = (f"mimic-cxr-2.0.0-{name}.csv.gz" for name in ("split", "metadata", "chexpert"))
KEYS = ["dicom_id", "study_id", "subject_id"]
IMAGES = [  # dicom_id, study_id, subject_id, split, ViewPosition
    ("a", 50000001, 10000001, "train", "LATERAL"),
    ("b", 50000001, 10000001, "train", "AP"),
    ("c", 50000001, 10000001, "train", "PA"),
    ("d", 50000001, 10000001, "train", "PA"),
    ("e", 50000002, 10000001, "train", "AP"),
    ("f", 50000003, 11000002, "train", "PA"),
    ("g", 50000004, 11000003, "train", ""),
    ("h", 50000005, 12000004, "validate", "PA"),
    ("i", 50000006, 19000005, "test", "PA"),
]
PATIENT = {f"s{study}": f"p{patient}" for _, study, patient, _, _ in IMAGES}
A, B, C, D, E, F = (f"s5000000{number}" for number in range(1, 7))
TEXTS = {
    study: f" FINAL REPORT\n \n FINDINGS:  Lungs of\n {study}  ___.\n \n IMPRESSION:  Well.\n" for study in PATIENT
}
TEXTS[C] = " FINAL REPORT\n \n IMPRESSION:  Ill.\n"


def pack(path, header, rows):
    with gzip.open(path, "wt", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_split(root, images=IMAGES):
    pack(root / SPLIT, [*KEYS, "split"], [row[:4] for row in images])


def write_metadata(root, images=IMAGES):
    pack(root / METADATA, [*KEYS, "Rows", "ViewPosition"], [(*row[:3], 9, row[4]) for row in images])


def write_labels(root):
    said = {A: {"Edema": "1.0", "Pneumonia": "0.0", "Fracture": "-1.0"}, B: {"No Finding": "1.0"}}
    names = [*FINDINGS, "No Finding"]
    rows = [[PATIENT[s][1:], s[1:], *(values.get(name, "") for name in names)] for s, values in said.items()]
    pack(root / LABELS, ["subject_id", "study_id", *names], rows)


def folder(root, study):
    return root / "files" / PATIENT[study][:3] / PATIENT[study] / study


def find(root, dicom):
    return next(root.glob(f"files/*/*/*/{dicom}.jpg"))


def draw(path, size=(24, 36)):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(ord(path.stem)).integers(0, 256, (3, 4), dtype=np.uint8)
    Image.fromarray(noise).resize(size).save(path, quality=95)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "mimic"
    for dicom, study, *_ in IMAGES:
        draw(folder(root, f"s{study}") / f"{dicom}.jpg")
    for study, text in TEXTS.items():
        folder(root, study).with_suffix(".txt").write_text(text)
    write_split(root)
    write_metadata(root)
    write_labels(root)
    return root


def ids(data, split="train"):
    return [study.id for study in data.studies(split)]


def shown(data, split="train"):
    return [study.files["image"].stem for study in data.studies(split)]


# ---- what a study is ------------------------------------------------------------------------------------------------


def test_a_study_is_one_frontal_image_with_its_findings(root):
    data = MimicCXR(str(root))
    assert (ids(data), ids(data, "validation"), ids(data, "test")) == ([A, B], [E], [F])
    assert shown(data) == ["c", "e"]  # PA before AP, then the first
    first = data.studies("train")[0]
    assert (first.report, first.split, data.studies("validation")[0].split) == (
        f"Lungs of {A} ___.",
        "train",
        "validation",
    )
    assert (data.patient_of(first), data.examination_of(first)) == ("p10000001", A)
    image = data.read(first).image
    assert image.dtype == np.uint8 and (image == np.asarray(Image.open(find(root, "c")))).all()


def test_or_every_image_on_its_own(root):
    data = MimicCXR(str(root), per_study="all")
    assert ids(data) == [f"{A}/b", f"{A}/c", f"{A}/d", f"{B}/e"]
    assert {data.examination_of(study) for study in data.studies("train")} == {A, B}
    assert {data.patient_of(study) for study in data.studies("train")} == {"p10000001"}
    assert len({study.report for study in data.studies("train")}) == 2


def test_or_any_view(root):
    assert shown(MimicCXR(str(root), views="all")) == ["c", "e", "g"]  # still a frontal one where there is one
    assert shown(MimicCXR(str(root), views="all", per_study="all")) == ["a", "b", "c", "d", "e", "g"]


def test_or_another_section(root):
    impression = MimicCXR(str(root), section="impression")
    assert [study.report for study in impression.studies("train")] == ["Well.", "Well.", "Ill."]
    both = MimicCXR(str(root), section="findings+impression")
    assert [study.report for study in both.studies("train")] == [
        f"Lungs of {A} ___. Well.",
        f"Lungs of {B} ___. Well.",
        "Ill.",
    ]
    assert MimicCXR(str(root)).fingerprint() != both.fingerprint() != impression.fingerprint()


def test_what_lacks_the_section_is_no_fault_but_counted(root, capsys):
    folder(root, E).with_suffix(".txt").write_text(" FINAL REPORT\n \n FINDINGS: \n \n IMPRESSION:  Well.\n")
    data = MimicCXR(str(root), store=None)
    with pytest.raises(DataFault, match="no study in the validation split"):
        data.studies("validation")
    assert ids(data) == [A, B] and data.without_section == {"train": 1, "validation": 1}
    data.prepare_data()
    assert "no findings: 1 of validation, 1 of train" in capsys.readouterr().out


def test_labels_are_those_that_are_present(root):
    data = MimicCXR(str(root), section="impression")
    assert [study.findings for study in data.studies("train")] == [("Edema",), (), None]  # the table lacks the third
    (root / LABELS).unlink()
    assert [study.findings for study in MimicCXR(str(root)).studies("train")] == [None, None]


def test_tables_may_be_unpacked_and_reports_lie_elsewhere(root, tmp_path):
    expected = [(s.id, s.report, s.findings) for s in MimicCXR(str(root)).studies("train")]
    for name in (SPLIT, METADATA, LABELS):
        (root / name.removesuffix(".gz")).write_bytes(gzip.decompress((root / name).read_bytes()))
        (root / name).unlink()
    for text in root.glob("files/*/*/*.txt"):
        there = tmp_path / "reports" / text.relative_to(root)
        there.parent.mkdir(parents=True, exist_ok=True)
        text.rename(there)
    data = MimicCXR(str(root), reports=str(tmp_path / "reports"))
    assert [(s.id, s.report, s.findings) for s in data.studies("train")] == expected
    with pytest.raises(DataFault, match="holds no report of the train split; set data.reports"):
        MimicCXR(str(root)).studies("train")


def test_a_limit_spares_the_rest(root):
    folder(root, B).with_suffix(".txt").unlink()
    assert ids(MimicCXR(str(root), limit=1)) == [A]
    assert ids(MimicCXR(str(root), limit=2, per_study="all")) == [f"{A}/b", f"{A}/c"]


# ---- faults ---------------------------------------------------------------------------------------------------------


def changed(dicom, **values):
    """The images with another entry: column → value."""
    order = [*KEYS, "split", "view"]
    return [
        tuple(values.get(key, old) for key, old in zip(order, r, strict=True)) if r[0] == dicom else r for r in IMAGES
    ]


STUDY_FAULTS = [
    (lambda root: find(root, "c").unlink(), f"c.jpg: no such file, but there is a report of {A}", [B]),
    (lambda root: folder(root, B).with_suffix(".txt").unlink(), f"{B}.txt: no such file, the report of {B}", [A]),
    (lambda root: folder(root, B).with_suffix(".txt").write_bytes(b" FINDINGS: \xff"), "is not UTF-8 text", [A]),
    (lambda root: write_split(root, IMAGES[:4] + IMAGES[5:]), f"metadata.csv.gz: image e of {B} is not in", [A]),
    (lambda root: write_metadata(root, IMAGES[:4] + IMAGES[5:]), "split.csv.gz:6: image e is not in .*metadata", [A]),
    (lambda root: write_metadata(root, changed("e", subject_id=7)), "image e is of another study or patient", [A]),
    (lambda root: write_split(root, [*IMAGES, IMAGES[4]]), "image e stands there more than once", [A, B]),
]  # fmt: skip


@pytest.mark.parametrize(("break_it", "expected", "left"), STUDY_FAULTS)
def test_faults_are_named_and_training_goes_on_without_them(root, break_it, expected, left):
    break_it(root)
    with pytest.raises(DataFault, match=expected):
        MimicCXR(str(root)).studies("train")
    data = MimicCXR(str(root), on_error="skip")
    assert ids(data) == left and data.faults["train"]
    assert ids(data, "test") == [F]


def test_training_goes_without_a_patient_who_is_evaluated(root):
    for write in (write_split, write_metadata):
        write(root, changed("i", subject_id=10000001))
    for source in (find(root, "i"), folder(root, F).with_suffix(".txt")):
        target = root / "files/p10/p10000001" / (f"{F}/i.jpg" if source.suffix == ".jpg" else f"{F}.txt")
        target.parent.mkdir(exist_ok=True)
        source.rename(target)
    with pytest.raises(DataFault, match=f"patient p10000001 of {A} is in the train split and in one evaluated after"):
        MimicCXR(str(root)).studies("train")
    data = MimicCXR(str(root), on_error="skip")
    with pytest.raises(DataFault, match="no study in the train split"):
        data.studies("train")
    assert ids(data, "test") == [F]


def test_an_evaluation_leaves_nothing_out(root):
    find(root, "i").unlink()
    with pytest.raises(DataFault, match="an evaluation leaves no study out"):
        MimicCXR(str(root), on_error="skip").studies("test")


def test_but_what_has_no_report_is_nothing_to_be_compared_with(root):
    images = [*IMAGES, ("j", 50000007, 19000005, "test", "PA")]
    write_split(root, images)
    write_metadata(root, images)
    draw(root / "files/p19/p19000005/s50000007/j.jpg")
    with pytest.raises(DataFault, match="s50000007.txt: no such file"):
        MimicCXR(str(root)).studies("test")
    assert ids(MimicCXR(str(root), on_error="skip"), "test") == [F]


def test_a_study_that_the_tables_contradict_is_left_out_with_all_its_images(root):
    write_metadata(root, [row for row in IMAGES if row[0] != "d"])
    assert ids(MimicCXR(str(root), per_study="all", on_error="skip")) == [f"{B}/e"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda root: (root / SPLIT).unlink(), "mimic-cxr-\\*-split.csv: no such file .nor .gz.; it says which image"),
        (lambda root: cut(root / SPLIT), f"{SPLIT}: cannot be read.*end-of-stream.*; fetch it again"),
        (lambda root: cut(root / METADATA), f"{METADATA}: cannot be read"),
        (lambda root: (root / SPLIT).write_bytes(b"text"), f"{SPLIT}: cannot be read.*Not a gzipped file"),
        (lambda root: pack(root / METADATA, KEYS, []), f"{METADATA}: no column ViewPosition; the columns are: dicom"),
        (lambda root: pack(root / LABELS, ["study_id"], []), f"{LABELS}: no column Atelectasis"),
        (lambda root: write_split(root, changed("c", split="val")), f"{SPLIT}:4: split 'val' is not in the list"),
        (lambda root: write_split(root, changed("c", study_id="5e7")), f"{SPLIT}:4: study_id '5e7' is no whole number"),
        (lambda root: write_metadata(root, changed("c", dicom_id="../c")), "dicom_id '../c' is no image's name"),
        (lambda root: pack(root / "mimic-cxr-2.1.0-split.csv.gz", KEYS, []), "split.csv.gz; keep one of them"),
    ],
)  # fmt: skip
def test_broken_tables_are_named(root, break_it, expected):
    break_it(root)
    with pytest.raises(DataFault, match=expected):
        MimicCXR(str(root)).studies("train")


# ---- batches, images, masks -----------------------------------------------------------------------------------------


class Means:
    """A preprocessor in a few lines: the image's size, how bright it is, and what is masked."""

    def settings(self):
        return {}

    def arrays(self, study):
        area = sum(int(mask.sum()) for mask in (study.masks or {}).values())
        return {"told": np.float32([*study.image.shape, study.image.mean(), area])}

    def __call__(self, study, arrays, rng):
        return {"id": study.id, "told": arrays["told"].tolist()}

    def collate(self, samples):
        return {"ids": [sample["id"] for sample in samples], "told": [sample["told"] for sample in samples]}


def prepared(root, **options):
    data = MimicCXR(str(root), **options)
    data.preprocessor = Means()
    data.prepare_data()
    data.setup()
    return data


def told(data, split="train"):
    return {batch["ids"][0]: batch["told"][0] for batch in data.evaluation_dataloader(split)}


@pytest.mark.parametrize("break_it", [cut, lambda path: Image.new("RGB", (9, 9)).save(path)])
def test_an_image_that_cannot_be_used_is_named_and_left_out(root, break_it):
    break_it(find(root, "c"))
    data = MimicCXR(str(root))
    with pytest.raises(DataFault, match="c.jpg: (cannot be read as an image|is no grey image)"):
        data.read(data.studies("train")[0])
    assert ids(prepared(root, on_error="skip", resized=12)) == [B]
    (skipped,) = root.glob(".store/*/skipped.jsonl")
    assert [json.loads(line)["id"] for line in skipped.read_text().splitlines()] == [A]


@pytest.mark.parametrize("store", ["auto", None])
def test_smaller_copies_are_made_once_and_read(root, store):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*.jpg")}
    data = prepared(root, resized=12, store=store)
    copies = {path.stem: path for path in root.glob(".resized-12/files/p*/p*/s*/*.jpg")}
    assert sorted(copies) == ["c", "e", "h", "i"]  # what is used, of all splits
    assert all((path.read_bytes(), path.stat().st_mtime_ns) == old for path, old in before.items())
    study = data.studies("train")[0]
    assert study.files["image"] == copies["c"] and data.patient_of(study) == "p10000001"
    small, large = data.read(study).image, MimicCXR(str(root)).read(MimicCXR(str(root)).studies("train")[0]).image
    assert (small.shape, large.shape) == ((18, 12), (36, 24))
    assert abs(small - large.reshape(18, 2, 12, 2).mean((1, 3))).mean() < 4
    made = {path: path.stat().st_mtime_ns for path in copies.values()}
    copies["e"].unlink()
    (copies["e"].parent / ".e.jpg.123").write_bytes(b"cut short")
    prepared(root, resized=12, store=store)
    assert copies["e"].is_file()
    assert all(path.stat().st_mtime_ns == time for path, time in made.items() if path != copies["e"])
    assert told(data)[A][:2] == [18, 12] and told(prepared(root, store=store))[A][:2] == [36, 24]


def test_the_store_says_which_tool_made_the_masks_and_another_makes_another(root):
    (root / "masks").mkdir()
    data = prepared(root)
    folders = []
    for tool in (None, "cxas 0.0.20", "cxas 0.0.21"):
        if tool:
            (root / "masks" / "made_by.txt").write_text(f"{tool}\n")
        store = MimicCXR(str(root), masks="masks")
        store.preprocessor = data.preprocessor
        opened = store.open_store()
        folders.append(opened.folder)
        assert json.loads(opened.settings).get("masks_made_by") == tool
    assert len(set(folders)) == 3


def test_a_missing_copy_is_made_when_it_is_read_and_a_small_image_stays_as_it_is(root):
    data = MimicCXR(str(root), resized=30)
    study = data.studies("train")[0]
    assert not study.files["image"].exists() and data.read(study).image.shape == (36, 24)
    assert study.files["image"].read_bytes() == find(root, "c").read_bytes()
    find(root, "c").unlink()
    assert ids(MimicCXR(str(root), resized=30)) == [A, B]  # a copy is as good
    with pytest.raises(SettingsFault, match="data.resized=0"):
        MimicCXR(str(root), resized=0)


def mask(folder, dicom, name, area):
    array = np.zeros((36, 24), bool)
    array.flat[:area] = True
    (folder / dicom).mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(folder / dicom / f"{name}.png")


def test_masks_come_with_the_image(root, tmp_path):
    for dicom in "cehi":
        mask(tmp_path / "masks", dicom, "heart", 5)
    mask(tmp_path / "masks", "c", "left lung", 7)
    data = MimicCXR(str(root), masks=str(tmp_path / "masks"))
    study = data.read(data.studies("train")[0])
    assert sorted(study.masks) == ["heart", "left lung"] and study.masks["left lung"].sum() == 7
    assert study.masks["heart"].dtype == np.uint8 and study.masks["heart"].shape == study.image.shape
    assert MimicCXR(str(root)).read(data.studies("train")[0]).masks is None
    assert [area for *_, area in told(prepared(root, masks=str(tmp_path / "masks"))).values()] == [12, 5]
    assert [area for *_, area in told(prepared(root)).values()] == [0, 0]
    assert len(list(root.glob(".store/*"))) == 2  # neither undoes the other's work


def test_masks_may_lie_below_the_root_or_in_the_working_directory(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for dicom in "cehi":
        mask(tmp_path / "below", dicom, "heart", 5)
    assert MimicCXR(str(root), masks="below").read(MimicCXR(str(root)).studies("train")[0]).masks["heart"].sum() == 5
    for dicom in "cehi":
        mask(root / "below", dicom, "heart", 9)
    assert MimicCXR(str(root), masks="below").read(MimicCXR(str(root)).studies("train")[0]).masks["heart"].sum() == 9


def dark(grey):
    """A segmentation tool of sorts."""
    return {"lung": (grey < np.median(grey)).astype(np.uint8)}


def test_masks_may_come_from_a_function(root):
    data = MimicCXR(str(root), masks=f"{__name__}:dark")
    study = data.read(data.studies("train")[0])
    assert study.masks["lung"].shape == study.image.shape and "masks" not in study.files
    for wrong in (f"{__name__}:light", "no_such_module:dark"):
        with pytest.raises(SettingsFault, match=f"data.masks={wrong}: no such function"):
            MimicCXR(str(root), masks=wrong).read(data.studies("train")[0])


def test_masks_that_are_made_later_make_new_arrays(root, tmp_path):
    for dicom in "cehi":
        mask(tmp_path / "masks", dicom, "heart", 5)
    assert [area for *_, area in told(prepared(root, masks=str(tmp_path / "masks"))).values()] == [5, 5]
    mask(tmp_path / "masks", "c", "lung", 7)
    assert [area for *_, area in told(prepared(root, masks=str(tmp_path / "masks"))).values()] == [12, 5]


def test_masks_of_another_size_are_a_fault(root, tmp_path):
    mask(tmp_path, "c", "heart", 5)
    find(root, "c").unlink()
    draw(find(root, "b").with_name("c.jpg"), (12, 36))
    study = MimicCXR(str(root), masks=str(tmp_path)).read(MimicCXR(str(root)).studies("train")[0])
    with pytest.raises(DataFault, match="heart has 36 × 24 pixels, not 36 × 12"):
        assert study.masks["heart"].any()


def test_a_study_without_masks_is_a_fault_that_may_be_passed_over(root, tmp_path):
    for dicom in "chi":
        mask(tmp_path / "masks", dicom, "heart", 5)
    with pytest.raises(DataFault, match=f"{tmp_path}/masks: no masks of e"):
        prepared(root, masks=str(tmp_path / "masks"))
    data = prepared(root, masks=str(tmp_path / "masks"), on_error="skip")
    assert [area for *_, area in told(data).values()] == [5, 0] and data.read(data.studies("train")[1]).masks is None


def test_one_radiograph_from_loose_files(root, tmp_path):
    data = MimicCXR(str(root))
    bare = data.study_from_files(find(root, "c"))
    assert (bare.id, bare.masks, bare.report, bare.findings, bare.split) == ("c", None, None, None, None)
    assert bare.image.shape == (36, 24) and data.patient_of(bare) is None
    mask(tmp_path, "c", "heart", 5)
    assert data.study_from_files(find(root, "c"), tmp_path).masks["heart"].sum() == 5
    with pytest.raises(DataFault, match=str(tmp_path)):
        data.study_from_files(find(root, "e"), tmp_path)


def test_the_signature_is_a_schema():
    assert {"root", "reports", "section", "views", "per_study", "resized", "masks", "phantom"} <= parameters(
        MimicCXR
    ).keys()
    assert parameters(MimicCXR.study_from_files).keys() == described_arguments(MimicCXR.study_from_files).keys()
