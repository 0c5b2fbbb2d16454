"""Drawn contents for the datasets' tables: whatever is in them, rows come out or one fault that names the file."""

import csv
import io
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from datamodules.candid_ptx_tables import SPLITS, read_films, read_split, write_split
from datamodules.ctrg_chest import CTRGChest
from datamodules.mimic_cxr_tables import FINDINGS, read_labels, read_radiographs
from datamodules.padchest_gr_tables import boxes_of, read_entries
from datamodules.radgenome_chestct import read_region_reports
from datamodules.study import DataFault
from datamodules.tables import read_csv, read_json, read_text
from tests.fuzz import JSON, WORDS, fuzz

# A character 0 is a fault, and Python 3.11's csv.writer leaves "\r" without quotes.
TEXTS = st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"]), max_size=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


def csv_of(columns, rows, line_end="\n"):
    text = io.StringIO()
    csv.writer(text, lineterminator=line_end).writerows([columns, *rows])
    return text.getvalue().encode("utf-8", "surrogatepass")


def tables(columns, **cells):
    """Tables with these columns, one after the other, twice, or one too few, as bytes of which some may be missing."""
    rows = st.lists(st.tuples(*(cells.get(name, WORDS) | WORDS for name in columns)), max_size=4)
    heads = st.sampled_from([columns] * 6 + [columns[1:], (*columns, columns[0]), ()])
    whole = st.builds(csv_of, heads, rows, st.sampled_from(["\n", "\r\n", "\r"]))
    marked = st.builds(bytes.__add__, st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe"]), whole)
    return st.builds(lambda content, cut: content[: -cut or None], marked, st.sampled_from([0, 0, 0, 1, 2, 5]))


def read(reader, path):
    """What a reader gives, or `None` after a fault in one line that names a file of the folder."""
    try:
        return reader()
    except DataFault as fault:
        assert str(path) in str(fault) and "\n" not in str(fault)
        return None


@fuzz(60)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5), st.sampled_from(["\n", "\r\n"]))
def test_every_value_of_a_table_comes_back(folder, rows, line_end):
    path = folder / "t.csv"
    path.write_bytes(csv_of(("id", "text"), rows, line_end))
    assert [tuple(row.values()) for _, row in read_csv(path, ("id", "text"))] == rows


@fuzz(100)
@given(tables(("id", "text")) | st.binary(max_size=40))
@example(b"id,text,id\na,b,c\n")
@example(b'id,text\na,"b\n')
def test_any_table_is_rows_or_a_fault(folder, content):
    path = folder / "u.csv"
    path.write_bytes(content)
    for _, row in read(lambda: list(read_csv(path, ("id", "text"))), path) or ():
        assert row.keys() == {"id", "text"} and all(isinstance(value, str) for value in row.values())
    read(lambda: read_text(path, ".csv"), path)


@fuzz(100)
@given(JSON.map(json.dumps).map(str.encode) | st.binary(max_size=40))
@example(b"[" * 100_000)
@example(b"1" * 10_000)
def test_any_json_is_read_or_a_fault(folder, content):
    path = folder / "j.json"
    path.write_bytes(content)
    value = read(lambda: read_json(path), path)
    if value is not None:
        assert json.dumps(value) == json.dumps(json.loads(content.decode("utf-8-sig")))


@fuzz(60)
@given(
    tables(
        ("SOPInstanceUID", "StudyInstanceUID", "filename", "EncodedPixels", "Report"),
        SOPInstanceUID=st.sampled_from(["1.2", "1.3"]),
        filename=st.sampled_from(["P1_a", "P2_b"]),
        EncodedPixels=st.sampled_from(["-1", "0 5"]),
    )
)
def test_any_table_of_candid_gives_films_or_a_fault(folder, content):
    path = folder / "c.csv"
    path.write_bytes(content)
    films, left_out = read(lambda: read_films(path), path) or ({}, {})
    assert all(name == film.name for name, film in films.items()) and all(left_out.values())


NAMES = st.lists(TEXTS, max_size=6, unique=True)


@fuzz(60)
@given(NAMES, st.integers(0, 6), st.integers(0, 6))
def test_a_split_comes_back(folder, names, one, two):
    one, two = sorted((one, two))
    split = dict(zip(SPLITS, (names[:one], names[one:two], names[two:]), strict=True))
    write_split(folder / "split.json", split, seed=0)
    assert read_split(folder / "split.json") == split


@fuzz(60)
@given(st.fixed_dictionaries(dict.fromkeys(SPLITS, JSON | NAMES), optional={"sha256": JSON}) | JSON)
def test_any_split_is_three_lists_or_a_fault(folder, content):
    path = folder / "any_split.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert set(read(lambda: read_split(path), path) or SPLITS) == set(SPLITS)


KEYS = {"dicom_id": st.sampled_from("ab"), "study_id": st.sampled_from("12"), "subject_id": st.sampled_from("34")}


@fuzz(60)
@given(
    tables((*KEYS, "split"), split=st.sampled_from(["train", "test"]), **KEYS),
    tables((*KEYS, "ViewPosition"), **KEYS),
    tables(("study_id", *FINDINGS), **KEYS, **dict.fromkeys(FINDINGS, st.sampled_from(["1.0", "-1.0", ""]))),
)
def test_any_tables_of_mimic_give_radiographs_or_a_fault(folder, splits, metadata, labels):
    for name, content in (("split", splits), ("metadata", metadata), ("chexpert", labels)):
        (folder / f"mimic-cxr-2-{name}.csv").write_bytes(content)
    radiographs, faults = read(lambda: read_radiographs(folder), folder) or ([], [])
    assert all(each.folder.startswith("files/p") for each in radiographs) and all(fault.what for _, fault in faults)
    assert {name for names in (read(lambda: read_labels(folder), folder) or {}).values() for name in names} <= {
        *FINDINGS
    }


FINDING = st.fixed_dictionaries(
    {"sentence_en": WORDS | JSON, "abnormal": st.booleans()},
    optional={"boxes": JSON, "extra_boxes": JSON, "labels": JSON},
)
REPORTS = st.lists(
    st.fixed_dictionaries(
        {"StudyID": st.sampled_from("12") | JSON, "ImageID": st.just("a.png") | JSON},
        optional={"findings": st.lists(FINDING | JSON, max_size=3) | JSON},
    ),
    max_size=3,
)
MASTER = ("StudyID", "ImageID", "PatientID", "split", "sentence_en", "label")
STUDIES = {"StudyID": st.sampled_from("12"), "ImageID": st.just("a.png"), "split": st.sampled_from(["train", "test"])}


@pytest.fixture(scope="module")
def padchest(tmp_path_factory):
    return tmp_path_factory.mktemp("padchest")


@fuzz(100)
@given(REPORTS | JSON, st.lists(st.sampled_from("12"), max_size=2, unique=True))
@example([{"StudyID": "1", "ImageID": "a.png", "findings": 5}], ["1"])
@example([{"StudyID": "1", "ImageID": "a.png", "findings": [{"abnormal": True, "labels": "nodule"}]}], ["1"])
@example([{"StudyID": "1", "ImageID": "a.png", "findings": [{"abnormal": True, "labels": 5}]}], ["1"])
def test_any_reports_of_padchest_give_entries_or_a_fault(padchest, content, known):
    (padchest / "grounded_reports_1.json").write_text(json.dumps(content), encoding="utf-8")
    (padchest / "master_table.csv").write_bytes(
        csv_of(MASTER, [(each, "a.png", "p", "train", "", "") for each in known])
    )
    entries, _ = read(lambda: read_entries(padchest), padchest) or ([], [])
    for finding in (finding for entry in entries for finding in entry.findings):
        assert isinstance(finding.sentence, str) and not {*"nodule"} & {*finding.labels}
        boxes_of(finding.boxes), boxes_of(finding.extra_boxes)


@fuzz(60)
@given(tables(MASTER, **STUDIES), tables(("StudyID", "ImageID", "report_en", "boxes", "split"), **STUDIES))
def test_any_derived_tables_of_padchest_give_entries_or_a_fault(folder, master, derived):
    (folder / "master_table.csv").write_bytes(master)
    (folder / "train_final_separated.csv").write_bytes(derived)
    entries, _ = read(lambda: read_entries(folder), folder) or ([], [])
    assert all(entry.findings and entry.split in ("train", "test", "validation") for entry in entries)


@fuzz(60)
@given(
    tables(
        ("Volumename", "Anatomy", "Sentence"),
        Volumename=st.sampled_from(["a.nii.gz", "b.nii.gz"]),
        Anatomy=st.sampled_from(["lung", "heart", "lung/left", "whole", "lungs"]),
    )
)
def test_any_region_reports_of_radgenome_are_read_or_a_fault(folder, content):
    path = folder / "r.csv"
    path.write_bytes(content)
    reports, faults = read(lambda: read_region_reports(path), path) or ({}, [])
    text = content.decode("utf-8", "replace")
    for said in (said for regions in reports.values() for said in regions.values()):
        assert said and said.replace('"', '""') in text
    assert all("\n" not in fault.what for fault in faults)


ROWS = st.lists(st.fixed_dictionaries({"id": st.integers(0, 3) | JSON}, optional={"finding": TEXTS | JSON}), max_size=3)


@fuzz(60)
@given(st.fixed_dictionaries({"train": ROWS | JSON}, optional={"test": ROWS | JSON}) | ROWS | JSON)
def test_any_annotation_of_ctrg_gives_reports_or_a_fault(tmp_path_factory, content):
    root = tmp_path_factory.mktemp("ctrg")
    (root / "annotation.json").write_text(json.dumps(content), encoding="utf-8")
    (root / "region_report.csv").write_text("Volumename,Anatomy,Sentence\n")
    for split in ("train", "test"):
        studies, faults = read(lambda: CTRGChest(str(root)).list_studies(split), root) or ([], [])  # noqa: B023
        assert not studies and all("\n" not in fault.what for fault in faults)
