"""PadChest-GR's layout, its units, its splits and its faults, on a handful of studies in the true layout."""

from __future__ import annotations

import csv
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from datamodules import radiograph
from datamodules.padchest_gr import PadChestGR, share
from datamodules.padchest_gr_tables import boxes_of, parse_boxes
from datamodules.study import DataFault, SettingsFault, Study
from zoo.schema import parameters
from zoo.study_options import described_arguments

REPORTS, MASTER = "grounded_reports_20240819.json", "master_table.csv"
BASE = 216840111366964012558082906712009000000  # 39 digits; a float would merge the ids
A, B, C, D, E = (str(BASE + number) for number in range(1, 6))
SPLIT = {A: "train", B: "train", C: "train", D: "validation", E: "test"}
HEART, NODULE, EXTRA = [0.3, 0.4, 0.8, 0.9], [0.1, 0.2, 0.3, 0.4], [0.15, 0.2, 0.35, 0.4]


def positive(sentence, boxes, labels, **more):
    keys = {"locations": [], "progression": None, "labels": labels, "boxes": boxes}
    return {"sentence_en": sentence, "sentence_es": "…", "abnormal": True, **keys, **more}


def negative(sentence):
    return {"sentence_en": sentence, "sentence_es": "…", "abnormal": False}


FINDINGS = {
    A: [positive("Nodule.", [NODULE], ["nodule"], extra_boxes=[EXTRA]), negative("No effusion.")],
    B: [positive("Large heart.", [HEART], ["cardiomegaly", "enlarged shape"], extra_boxes=[])],
    C: [negative(" Normal. ")],
    D: [positive("Old change.", [], ["chronic changes"]), positive("Nodule.", [NODULE, HEART], ["nodule"])],
    E: [negative("Clear lungs."), negative("No effusion.")],
}


def image(study):
    return f"{study}_00-154-186.png"


def grey(study):
    return np.random.default_rng(int(study[-1])).integers(0, 65536, (9, 7), dtype=np.uint16)


def entries():
    return [{"StudyID": s, "ImageID": image(s), "PreviousStudyID": None, "findings": FINDINGS[s]} for s in FINDINGS]


def write_reports(root, content):
    (root / REPORTS).write_text(json.dumps(content))


def write_master(root, **changed):
    """`changed`: column → study → value."""
    rows = []
    for study, findings in FINDINGS.items():
        said = [(f["sentence_en"], label) for f in findings for label in f.get("labels", [])] or [("", "Normal")]
        for sentence, label in said:
            row = {"StudyID": study, "ImageID": image(study), "label": label, "sentence_en": sentence}
            row |= {"split": SPLIT[study], "PatientID": f"P{study[-1]}"}
            rows.append(row | {column: values[study] for column, values in changed.items() if study in values})
    with (root / MASTER).open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


@pytest.fixture
def root(tmp_path):
    write_reports(tmp_path, entries())
    write_master(tmp_path)
    for number, study in enumerate(FINDINGS):
        folder = tmp_path / f"PadChest_GR/part{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey(study)).save(folder / image(study))
    return tmp_path


def ids(data, split):
    return [study.id for study in data.studies(split)]


def test_a_study_is_a_sentence_with_its_boxes(root):
    data = PadChestGR(str(root))
    assert ids(data, "train") == [f"{A}/0", f"{A}/1", f"{B}/0", f"{C}/0"]
    nodule, effusion, heart, normal = data.studies("train")
    assert (nodule.report, nodule.boxes, nodule.findings) == ("Nodule.", {"nodule": (tuple(NODULE),)}, ("nodule",))
    assert (effusion.report, effusion.boxes, effusion.findings) == ("No effusion.", {}, ())
    assert heart.boxes == {"cardiomegaly, enlarged shape": (tuple(HEART),)} and normal.report == "Normal."
    unmarked, _ = data.studies("validation")
    assert (unmarked.boxes, unmarked.findings) == ({}, ("chronic changes",))  # positive, yet without a box
    assert all(study.split == "train" for study in data.studies("train"))


def test_sentences_are_of_a_group_and_of_an_examination(root):
    data = PadChestGR(str(root))
    nodule, effusion, *_ = data.studies("train")
    assert [data.group_of(study) for study in (nodule, effusion)] == ["positive", "negative"]
    assert data.group_of(data.studies("validation")[0]) == "positive"  # though nothing is marked
    assert data.examination_of(nodule) == data.examination_of(effusion) == A
    assert data.group_of(Study(id=f"{A}/0")) is None  # the files do not tell
    whole = PadChestGR(str(root), unit="study")
    study = whole.studies("train")[0]
    assert (whole.group_of(study), whole.examination_of(study)) == (None, A)


def test_or_a_whole_study(root):
    data = PadChestGR(str(root), unit="study")
    first, *_ = data.studies("train")
    assert ids(data, "train") == [A, B, C]
    assert (first.report, first.findings) == ("Nodule. No effusion.", ("nodule",))
    (both,) = data.studies("validation")
    assert both.boxes == {"nodule": (tuple(NODULE), tuple(HEART))} and both.findings == ("chronic changes", "nodule")
    assert data.studies("test")[0].findings == ()


def test_a_second_readers_boxes_join_on_request(root):
    assert PadChestGR(str(root), boxes="union").studies("train")[0].boxes == {"nodule": (tuple(NODULE), tuple(EXTRA))}


def test_validation_is_the_official_one_unless_the_papers_is_asked_for(root):
    data = PadChestGR(str(root))
    assert ids(data, "validation") == [f"{D}/0", f"{D}/1"] and ids(data, "test") == [f"{E}/0", f"{E}/1"]
    papers = PadChestGR(str(root), validation_split="test")
    assert ids(papers, "validation") == ids(papers, "test") == [f"{E}/0", f"{E}/1"]
    assert {study.split for study in papers.studies("validation")} == {"test"}  # and says so
    assert data.fingerprint() != papers.fingerprint()


def test_the_image_keeps_its_16_bits_and_is_decoded_once_for_its_sentences(root, monkeypatch):
    decoded = []
    real = radiograph._picture
    monkeypatch.setattr(radiograph, "_picture", lambda path: decoded.append(path) or real(path))
    radiograph._decode.cache_clear()
    data = PadChestGR(str(root))
    for study in data.studies("train"):
        full = data.read(study)
        assert full.image.dtype == np.uint16 and (full.image == grey(study.id.split("/")[0])).all()
    assert len(decoded) == 3  # four sentences


@pytest.mark.parametrize("name", ["master_table.csv.zip", "master_table.zip"])
def test_tables_may_stay_zipped(root, name):
    expected = ids(PadChestGR(str(root)), "train")
    for table, packed in ((MASTER, name), (REPORTS, f"{REPORTS}.zip")):
        with zipfile.ZipFile(root / packed, "w") as archive:
            archive.write(root / table, table)
        (root / table).unlink()
    assert ids(PadChestGR(str(root)), "train") == expected


def derive(root):
    """The authors' tables in place of the JSON."""
    (root / REPORTS).unlink()
    for split in ("train", "validation", "test"):
        with (root / f"{split}_final_separated.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["StudyID", "ImageID", "report_es", "report_en", "boxes", "extra_boxes", "split"])
            for study, findings in FINDINGS.items():
                for finding in findings if SPLIT[study] == split else []:
                    text = finding["sentence_en"]
                    fields = [json.dumps([[0, text, finding.get(key, [])]]) for key in ("boxes", "extra_boxes")]
                    table.writerow([study, image(study), "…", text, *fields, split])


@pytest.mark.parametrize("boxes", ["boxes", "union"])
def test_the_derived_tables_say_the_same(root, boxes):
    def told(data):
        rows = [study for split in data.splits for study in data.studies(split)]
        return [(s.id, s.split, s.report, s.boxes, s.findings, s.files["image"]) for s in rows]

    published = told(PadChestGR(str(root), boxes=boxes))
    derive(root)
    assert told(PadChestGR(str(root), boxes=boxes)) == published
    (root / MASTER).unlink()  # now nothing says that "Old change." is positive and "No effusion." is not
    alone = PadChestGR(str(root), boxes=boxes)
    assert [study.findings for study in alone.studies("train")] == [("abnormal",), None, ("abnormal",), None]
    assert [study.report for study in alone.studies("validation")] == ["Old change.", "Nodule."]


def test_a_boxed_sentence_that_the_master_table_lacks_is_positive_all_the_same(root):
    derive(root)
    (root / MASTER).write_text((root / MASTER).read_text().replace("Nodule.", "Nodules."))
    nodule, effusion, *_ = PadChestGR(str(root)).studies("train")
    assert (nodule.report, nodule.findings, effusion.findings) == ("Nodule.", ("abnormal",), ())


def test_the_reference_implementations_tables_are_read_as_it_reads_them(shared, tmp_path):
    stored = json.loads((shared / "golden/regionformer/data_pipeline.json").read_text())
    for field in stored["boxes_field"]:
        assert [list(box) for box in boxes_of(parse_boxes(field["in"]))[0]] == field["out"], field["in"]
    for split, text in stored["create_data"]["csv"].items():
        (tmp_path / f"{split}_final_separated.csv").write_text(text)
    for name in ("s1_a.png", "s2_a.png", "s3_a.png"):
        (tmp_path / name).touch()
    data = PadChestGR(str(tmp_path))
    for split, rows in stored["create_data"]["parsed"].items():
        read = [
            (s.files["image"].name, s.report, [list(b) for bs in s.boxes.values() for b in bs])
            for s in data.studies(split)
        ]
        assert read == [tuple(row) for row in rows]


def test_an_unreadable_boxes_field_is_a_fault_and_an_empty_one_is_not():
    for text in ("not a list", "[[0, 'a', null]]", "[[0, 'a']]", "{}", "1"):
        assert boxes_of(parse_boxes(text))[1], text
    for text in ("", "[]", '[[0, "a", []]]'):
        assert boxes_of(parse_boxes(text)) == ([], []), text


def test_a_share_of_the_training_findings(shared):
    stored = json.loads((shared / "golden/regionformer/data_pipeline.json").read_text())["percent_indices"]
    for percent, indices in stored.items():
        assert share(list(range(50)), int(percent), 0) == sorted(indices)


def test_a_share_is_seeded_and_spares_the_evaluation(root):
    half = [ids(PadChestGR(str(root), percent=50, seed=seed), "train") for seed in (0, 0, 1, 2, 3)]
    assert half[0] == half[1] and {len(drawn) for drawn in half} == {2} and len(set(map(tuple, half))) > 1
    assert len(ids(PadChestGR(str(root), percent=50), "test")) == 2
    assert len(ids(PadChestGR(str(root), percent=99), "train")) == 3  # int(3.96)


def box_of(root, **options):
    return PadChestGR(str(root), **options).studies("train")[0].boxes["nodule"][0]


def test_box_noise_is_one_draw_a_box(root):
    still, weak, strong = (np.array(box_of(root, box_noise=level)) for level in (0, 1, 5))
    assert still.tolist() == NODULE and not np.allclose(still, weak)
    assert np.allclose(strong - still, 5 * (weak - still))  # the same draw, five times as far (nothing is clipped here)
    assert box_of(root, box_noise=5) == box_of(root, box_noise=5, unit="study") != box_of(root, box_noise=5, seed=1)
    assert PadChestGR(str(root), box_noise=5).studies("validation")[1].boxes["nodule"] != (tuple(NODULE), tuple(HEART))


class Corners:
    """A preprocessor in a few lines: where the boxes begin, and how bright the image is."""

    def settings(self):
        return {}

    def arrays(self, study):
        corners = [box for boxes in study.boxes.values() for box in boxes]
        return {"corners": np.float32(corners).reshape(-1, 4), "mean": np.float32([study.image.mean()])}

    def __call__(self, study, arrays, rng):
        return {"id": study.id, "corners": np.array(arrays["corners"]), "mean": float(arrays["mean"][0])}

    def collate(self, samples):
        return {"ids": [sample["id"] for sample in samples], "samples": samples}


def prepared(root, **options):
    data = PadChestGR(str(root), **options)
    data.preprocessor = Corners()
    data.prepare_data()
    data.setup()
    return data


def test_batches_of_all_three_splits_come_out_of_the_store(root):
    data = prepared(root, eval_batch_size=2)
    assert [batch["ids"] for batch in data.test_dataloader()] == [[f"{E}/0", f"{E}/1"]]
    (batch,) = data.val_dataloader()
    assert [len(sample["corners"]) for sample in batch["samples"]] == [0, 2]
    assert batch["samples"][0]["mean"] == pytest.approx(grey(D).mean())


def test_the_store_knows_boxes_that_were_moved(root):
    def corners(**options):
        data = prepared(root, **options)
        return next(iter(data.evaluation_dataloader("train")))["samples"][0]["corners"].tolist()

    first = corners()
    assert first == [pytest.approx(NODULE)] and corners(box_noise=5) != first
    assert corners(boxes="union") == [pytest.approx(NODULE), pytest.approx(EXTRA)] and corners() == first


def edit(study, place, **changed):
    """Breaks one finding in the JSON."""

    def break_it(root):
        content = entries()
        for entry in content:
            if entry["StudyID"] == study:
                findings = list(entry["findings"])
                findings[place] = {**findings[place], **changed}
                entry["findings"] = findings
        write_reports(root, content)

    return break_it


def find(root, study):
    return next(root.rglob(image(study)))


def double(root):
    (root / "again").mkdir()
    (root / "again" / image(B)).write_bytes(find(root, B).read_bytes())


def without(study):
    return lambda root: write_reports(root, [entry for entry in entries() if entry["StudyID"] != study])


STUDY_FAULTS = [
    (lambda root: find(root, B).unlink(), f"{B}: its image {image(B)} lies nowhere", [f"{A}/0", f"{A}/1", f"{C}/0"]),
    (double, f"{B}: there are several images of its name", [f"{A}/0", f"{A}/1", f"{C}/0"]),
    (edit(A, 1, sentence_en="  "), f"{A}/1: a finding has no English sentence", [f"{A}/0", f"{B}/0", f"{C}/0"]),
    (edit(B, 0, boxes=[[0.1, 0.2, 0.3]]), "is not four numbers", [f"{A}/0", f"{A}/1", f"{C}/0"]),
    (edit(B, 0, boxes=[["0", 0, 1, 1]]), "is not four numbers", [f"{A}/0", f"{A}/1", f"{C}/0"]),
    (edit(B, 0, boxes=[[0.9, 0.9, 0.1, 0.1]]), "has no area", [f"{A}/0", f"{A}/1", f"{C}/0"]),
    (edit(B, 0, boxes=[[100, 200, 300, 400]]), "has no area inside the image", [f"{A}/0", f"{A}/1", f"{C}/0"]),
    (edit(B, 0, boxes="none"), "are no list of boxes", [f"{A}/0", f"{A}/1", f"{C}/0"]),
    (edit(B, 0, boxes=[[0.5, 0.5, 0.7, 1.2]]), "reaches out", [f"{A}/0", f"{A}/1", f"{B}/0", f"{C}/0"]),
    (lambda root: write_master(root, ImageID={B: "x.png"}), f"{B} has image .*x.png", [f"{A}/0", f"{A}/1", f"{C}/0"]),
    (lambda root: write_master(root, PatientID={B: "P5"}), "its patient P5", [f"{A}/0", f"{A}/1", f"{C}/0"]),
    (lambda root: write_reports(root, [*entries(), entries()[1]]), f"{B} stands there more than once", None),
    (lambda root: write_reports(root, [*entries(), {"StudyID": "7"}]), f"7 is not in .*{MASTER}", None),
    (without(B), f"{B} has no report in", [f"{A}/0", f"{A}/1", f"{C}/0"]),
]


@pytest.mark.parametrize(("break_it", "expected", "left"), STUDY_FAULTS)
def test_faults_are_named_and_training_goes_on_without_them(root, break_it, expected, left):
    break_it(root)
    with pytest.raises(DataFault, match=expected):
        PadChestGR(str(root)).studies("train")
    data = PadChestGR(str(root), on_error="skip")
    assert ids(data, "train") == (left or [f"{A}/0", f"{A}/1", f"{B}/0", f"{C}/0"])
    assert data.faults["train"]


def test_a_study_in_two_splits_is_in_neither(root):
    with (root / MASTER).open("a") as file:
        file.write(f"{B},{image(B)},Other,Another.,test,P2\n")
    for split in ("train", "test"):
        with pytest.raises(DataFault, match=f"{B} stands in test and in train"):
            PadChestGR(str(root)).studies(split)
    assert ids(PadChestGR(str(root), on_error="skip"), "train") == [f"{A}/0", f"{A}/1", f"{C}/0"]


def test_a_row_that_contradicts_an_earlier_one_is_named(root):
    derive(root)
    with (root / "validation_final_separated.csv").open("a") as file:
        file.write(f"{B},{image(B)},…,More.,[],[],train\n")
    with pytest.raises(
        DataFault, match=f"validation_final_separated.csv:4: {B} stands in train_final_separated.csv too"
    ):
        PadChestGR(str(root)).studies("train")
    assert len(ids(PadChestGR(str(root), on_error="skip"), "train")) == 4


def test_hidden_folders_hold_no_images(root):
    (root / ".store").mkdir()
    (root / ".store" / image(B)).write_bytes(find(root, B).read_bytes())
    assert len(ids(PadChestGR(str(root)), "train")) == 4


def test_an_evaluation_leaves_nothing_out(root):
    find(root, E).unlink()
    with pytest.raises(DataFault, match="an evaluation leaves no study out"):
        PadChestGR(str(root), on_error="skip").studies("test")


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_image_in_colour_is_named_and_left_out(root, mode):
    Image.new(mode, (7, 9)).save(find(root, B))
    data = PadChestGR(str(root))
    with pytest.raises(DataFault, match=f"{image(B)}: is no grey image .mode {mode}"):
        data.read(data.studies("train")[2])
    assert ids(prepared(root, on_error="skip"), "train") == [f"{A}/0", f"{A}/1", f"{C}/0"]
    (skipped,) = root.glob(".store/*/skipped.jsonl")
    row = json.loads(skipped.read_text())
    assert (row["id"], row["split"], row["dropped"]) == (f"{B}/0", "train", True)


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda root: (root / MASTER).unlink(), f"{MASTER}: no such file; it says which study is in which split"),
        (lambda root: (root / REPORTS).unlink(), "holds no grounded_reports_"),
        (
            lambda root: (root / "grounded_reports_1.json").write_text("[]"),
            "grounded_reports_1.json, .*keep one of them",
        ),
        (lambda root: (root / REPORTS).write_text("{"), f"{REPORTS}: cannot be read as JSON"),
        (lambda root: (root / REPORTS).write_text("{}"), f"{REPORTS}: expected a list"),
        (lambda root: (root / MASTER).write_text("StudyID,split\n"), f"{MASTER}: no column ImageID, PatientID"),
        (lambda root: write_master(root, split={B: "dev"}), "master_table.csv:3: split 'dev' is not in the list"),
        (lambda root: write_master(root, StudyID={B: "2.16840111366964E+38"}), "lost its digits"),
        (lambda root: write_reports(root, [{"StudyID": 2.1e38}]), "lost its digits"),
        (edit(A, 0, abnormal=None), f"{A} has a finding that does not say whether it is abnormal"),
    ],
)
def test_broken_tables_are_named(root, break_it, expected):
    break_it(root)
    with pytest.raises(DataFault, match=expected):
        PadChestGR(str(root)).studies("train")


def test_settings_out_of_range_are_refused():
    for wrong in ({"percent": 0}, {"percent": 101}, {"box_noise": 6}, {"box_noise": -1}):
        with pytest.raises(SettingsFault, match=next(iter(wrong))):
            PadChestGR("nowhere", **wrong)


def test_the_signature_is_a_schema():
    known = parameters(PadChestGR)
    assert {"root", "unit", "percent", "box_noise", "global_batch_size", "phantom", "seed"} <= known.keys()
    assert parameters(PadChestGR.study_from_files).keys() == described_arguments(PadChestGR.study_from_files).keys()


def test_one_radiograph_from_loose_files(root, tmp_path):
    data, path = PadChestGR(str(root)), find(root, A)
    study = data.study_from_files(path, "0.1,0.2,0.3,0.4;0.5,0.5,1,1")
    assert study.boxes == {"finding": ((0.1, 0.2, 0.3, 0.4), (0.5, 0.5, 1, 1))} and (study.image == grey(A)).all()
    (tmp_path / "boxes.json").write_text("[[0.1, 0.2, 0.3, 0.4]]")
    assert data.study_from_files(path, str(tmp_path / "boxes.json")).boxes == {"finding": ((0.1, 0.2, 0.3, 0.4),)}
    bare = data.study_from_files(path)
    assert bare.boxes == {} and bare.report is None and bare.findings is None and bare.split is None


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ("0.1,0.2,0.3", "is not four numbers: expected x0,y0,x1,y1"),
        ("10,20,300,400", "no area inside the image: expected"),
        ("heart", "'heart': boxes are no list of boxes: expected"),
        ("0.1,0.2,0.3,1.4", "reaches out of the image"),
    ],
)
def test_boxes_that_are_none_are_refused(root, boxes, expected):
    with pytest.raises(SettingsFault, match=expected):
        PadChestGR(str(root)).study_from_files(find(root, A), boxes)


def test_a_boxes_file_that_is_not_there_is_named(root):
    with pytest.raises(DataFault, match="nothing.json: cannot be read"):
        PadChestGR(str(root)).study_from_files(find(root, A), "nothing.json")


def test_the_phantom_is_read_like_the_dataset(tmp_path):
    data = PadChestGR(str(tmp_path / "phantom"), unit="study")
    data.draw_phantom(1, 1)
    assert data.is_phantom() and [len(data.studies(split)) for split in data.splits] == [1, 1, 1]
    study = data.read(data.studies("train")[0])
    assert study.image.dtype == np.uint16 and study.image.std() > 0
    label = data.label_findings()
    assert label("Hazy infiltrates in both lungs.") and not label("Normal.")
    assert PadChestGR(str(tmp_path)).label_findings() is None
