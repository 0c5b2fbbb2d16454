"""Drawn contents for what commands read: predictions, per-study tables, metrics.csv, settings, submissions."""

import csv
import io
import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from datamodules.study import DataFault
from tests.fuzz import JSON, WORDS, fuzz
from zoo.command import UsageError
from zoo.evaluate import COLUMNS, KNOWN_COLUMNS
from zoo.gallery import read_predictions as read_run
from zoo.layers import flatten, read_arguments, read_layer
from zoo.leaderboard.check import _OPTIONAL, _TOP, check
from zoo.leaderboard.submission import FORMAT
from zoo.loggers import HEADER, _lines, read_rows
from zoo.metrics.per_study import StudyTable, read_table, write_table
from zoo.metrics.predictions import read_column, read_predictions
from zoo.metrics.protocols import PROTOCOLS

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


def raises_plainly(fault, path):
    assert str(path) in str(fault) and len(str(fault)) < 5000
    return True


# Predictions.

REPORTS = TEXTS.map(lambda text: f"Said {text}.")
ROWS = st.lists(
    st.tuples(st.integers().map(lambda number: f"s{number}"), REPORTS, REPORTS),
    min_size=1,
    max_size=4,
    unique_by=lambda row: row[0],
)


@fuzz(60)
@given(ROWS, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_predictions_come_back_from_either_format(folder, rows, line_end, marked):
    text = io.StringIO()
    csv.writer(text, lineterminator=line_end, quoting=csv.QUOTE_ALL).writerows([COLUMNS, *rows])
    (folder / "p.csv").write_bytes(b"\xef\xbb\xbf" * marked + text.getvalue().encode())
    lines = [json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=marked) + line_end for row in rows]
    (folder / "p.jsonl").write_bytes("".join(lines).encode())
    for path in (folder / "p.csv", folder / "p.jsonl"):
        assert read_predictions(path, (None,) * 3, KNOWN_COLUMNS) == (COLUMNS, rows)
    assert [(line["id"], line["reference"], line["prediction"]) for line in read_run(folder / "p.jsonl")] == rows


def csv_bytes(rows):
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


CSV = st.builds(
    lambda head, rows: csv_bytes([head, *rows]),
    st.sampled_from([COLUMNS] * 4 + [(*COLUMNS, "id"), COLUMNS[1:], ()]),
    st.lists(st.lists(WORDS, min_size=3, max_size=3) | st.lists(WORDS, max_size=4), max_size=3),
)
JSONL = st.lists(st.fixed_dictionaries(dict.fromkeys(COLUMNS, WORDS | JSON)) | JSON, max_size=3).map(
    lambda lines: "\n".join(map(json.dumps, lines)).encode()
)


@fuzz(120)
@given(CSV | JSONL | st.binary(max_size=40), st.sampled_from([".csv", ".jsonl"]), st.sampled_from([0, 0, 0, 1, 3]))
@example(b"[" * 100_000, ".jsonl", 0)
@example(b"1" * 10_000, ".jsonl", 0)
@example(b"id,reference,prediction,prediction\na,b,c,d\n", ".csv", 0)
@example(b'{"id": "a\\ud800", "reference": "b", "prediction": "c"}', ".jsonl", 0)
@example(b'{"id": "a\\nb", "reference": "b", "prediction": "c"}', ".jsonl", 0)
@example(b'"' * 50_001, ".csv", 0)
def test_any_predictions_are_rows_or_faults_and_what_was_read_can_be_written(folder, content, suffix, cut):
    path = folder / f"any{suffix}"
    path.write_bytes(content[: -cut or None])
    try:
        _, rows = read_predictions(path, (None,) * 3, KNOWN_COLUMNS)
    except DataFault as fault:
        assert raises_plainly(fault, path)
        return
    assert rows and all(isinstance(cell, str) for row in rows for cell in row)
    assert len(read_column(path, "id")) == len(rows) == len({row[0] for row in rows})
    protocol = next(iter(PROTOCOLS.values()))
    table = StudyTable([row[0] for row in rows], {"a": np.zeros(len(rows))}, protocol.id, protocol.version)
    write_table(folder / "any.per_study.csv", table)
    assert read_table(folder / "any.per_study.csv").ids == table.ids


@fuzz(100)
@given(JSONL | CSV | st.binary(max_size=40))
@example(b"[" * 100_000)
@example(b"1" * 10_000)
@example(b"\xff\xfe")
@example(b'{"id": 1, "reference": [], "prediction": null}')
def test_any_predictions_of_a_run_are_lines_or_a_fault(folder, content):
    path = folder / "predictions.jsonl"
    path.write_bytes(content)
    try:
        lines = read_run(path)
    except DataFault as fault:
        assert raises_plainly(fault, path)
    else:
        assert all({*COLUMNS} <= line.keys() for line in lines)


# Per-study tables.

NUMBERS = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3)
IDS = st.lists(TEXTS.filter(lambda text: "\r" not in text), min_size=3, max_size=3, unique=True)


@fuzz(60)
@given(IDS, st.dictionaries(TEXTS.filter(lambda text: "\r" not in text and text != "id"), NUMBERS, max_size=3))
@example(["a\u2028b", "c\x0bd", "e\nf"], {"a,b": [0.1, -0.0, 1e300]})
def test_a_per_study_table_comes_back(folder, ids, columns):
    protocol = next(iter(PROTOCOLS.values()))
    path = folder / "per_study.csv"
    write_table(path, StudyTable(ids, {k: np.array(v) for k, v in columns.items()}, protocol.id, protocol.version))
    table = read_table(path)
    assert table.ids == ids and {name: values.tolist() for name, values in table.columns.items()} == columns


HEADS = st.sampled_from([f"# protocol {key} version {rules.version}" for key, rules in PROTOCOLS.items()])


@fuzz(100)
@given(
    st.builds(
        lambda head, rows: head.encode() + b"\n" + csv_bytes(rows),
        HEADS | TEXTS,
        st.lists(st.lists(WORDS | st.sampled_from(["id", "1", "0.5"]), max_size=3), max_size=4),
    )
    | st.binary(max_size=40)
)
@example(b"# protocol reg2rg version " + b"9" * 5000 + b"\nid\na\n")
@example(b"# protocol reg2rg version 1\n\nx\n")
@example(b'# protocol reg2rg version 1\nid,"a\nb\n')
@example(b"# protocol reg2rg version 1\nid,a\n" + b"x" * 200_000 + b",1\n")
def test_any_per_study_table_is_read_or_a_fault(folder, content):
    path = folder / "any.csv"
    path.write_bytes(content)
    try:
        table = read_table(path)
    except DataFault as fault:
        assert raises_plainly(fault, path)
    else:
        assert all(values.shape == (len(table.ids),) for values in table.columns.values())


# metrics.csv.

OBSERVATIONS = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 99), st.sampled_from(["train/loss", "test/π", 'a,"b']), st.floats()),
    max_size=4,
).map(lambda rows: [(epoch, step, name, repr(value)) for epoch, step, name, value in rows])


@fuzz(100)
@given(OBSERVATIONS, st.integers(0, 2**20))
@example([(0, 1, "test/π", "0.5")], 40)
def test_a_crash_at_any_byte_of_metrics_csv_costs_the_line_that_was_being_written(folder, rows, place):
    path = folder / "metrics.csv"
    written = [_lines([row]).encode() for row in [HEADER, *rows]]
    cut = place % (1 + sum(map(len, written)))
    path.write_bytes(b"".join(written)[:cut])
    whole = sum(sum(map(len, written[: n + 1])) <= cut for n in range(len(written)))
    assert read_rows(path) == [list(map(str, row)) for row in rows][: max(0, whole - 1)]


# Settings.

VALUES = st.text(st.sampled_from("{}[]:,'\"!&*#|>%@`$-. \t\n0123456789abe~"), max_size=12) | WORDS


@fuzz(120)
@given(st.lists(st.text(st.sampled_from("ab.[]0= \"'"), max_size=6), max_size=2).map("".join), VALUES)
@example("a", "[" * 5000)
@example("a", "1" * 10_000)
@example("a", "2020-13-45")
@example("a", "!!python/object/apply:os.system [echo]")
@example("a", "${oc.env:HOME}")
@example("a[0", "1")
@example("[", "")
def test_any_argument_is_a_setting_or_refused(key, value):
    layers, errors = read_arguments([f"{key}={value}"])
    assert len(layers) + len(errors) == 1
    for layer in layers:
        assert isinstance(layer.values, dict)
        flatten(layer.values)


@fuzz(60)
@given(
    st.text(st.sampled_from("abcde.-_"), min_size=1, max_size=8).filter(
        lambda key: key.strip(".") == key and ".." not in key
    ),
    st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.just([1, "a"]),
)
def test_plain_settings_are_read_as_they_were_written(key, value):
    (layer,), errors = read_arguments([f"{key}={json.dumps(value)}"])
    (found,) = flatten(layer.values).items()
    assert found == (key, value) and not errors


@fuzz(120)
@given(
    VALUES.map(lambda text: text.encode("utf-8", "surrogatepass"))
    | JSON.map(json.dumps).map(str.encode)
    | st.binary(max_size=30)
)
@example(b"a: " + b"[" * 5000)
@example(b"a: " + b"1" * 10_000)
@example(b"when: 5")
@example(b"when: {phantom: 5}")
@example(b"with: 5")
@example(b"\xff")
@example(b"? [a]\n: b")
@example(b"a: &a [*a]")
@example(b"1: 2")
@example(b"1e5")
def test_any_recipe_is_read_or_refused(folder, content):
    path = folder / "recipe.yaml"
    path.write_bytes(content)
    try:
        layer = read_layer(path, "phantom")
    except UsageError as fault:
        assert "recipe.yaml" in str(fault) and "\n" not in str(fault)
    else:
        assert isinstance(layer.values, dict)


# Submissions.


FIELDS = {
    **dict.fromkeys(_TOP, JSON),
    "format": st.just(FORMAT),
    "name": st.just("submission"),
    "protocol": st.sampled_from(list(PROTOCOLS)),
    "status": st.just("reproduced"),
    **dict.fromkeys(("n", "n_empty_predictions", "version"), st.integers(0, 3) | JSON),
}
SECTION = st.dictionaries(st.sampled_from(["bleu_1", "micro", "a b"]), st.dictionaries(TEXTS, JSON, max_size=3) | JSON)
PARTS = dict.fromkeys(("metrics", "skipped", "provenance"), SECTION)


@fuzz(60)
@given(st.fixed_dictionaries(FIELDS | PARTS, optional=dict.fromkeys(_OPTIONAL, SECTION | JSON)) | JSON)
@example({"format": 1})
def test_any_submission_is_told_what_is_wrong_with_it(folder, content):
    place = folder / "submission"
    place.mkdir(exist_ok=True)
    (place / "submission.json").write_text(json.dumps(content), encoding="utf-8")
    faults, _ = check(place)
    assert faults and all(isinstance(fault, str) for fault in faults)
