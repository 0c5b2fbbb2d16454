"""Region recognition, texts by region, and report lengths."""

import json
from pathlib import Path

import numpy as np
import pytest

from zoo.evaluate import main
from zoo.metrics.lengths import length_distribution
from zoo.metrics.regions import (
    REFERENCE_EPSILON,
    named_regions,
    recognition,
    recognition_mean,
    region_scores,
    region_texts_of_run,
    regions_in,
    split_regions,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "metrics_synthetic.json").read_text())
REGIONS = ("heart", "lung", "trachea and bronchie")


def test_prefixes_are_read_as_by_the_released_code():
    for case in GOLDEN["region_dict"]:
        assert named_regions(case["text"]) == case["out"]
    for case in GOLDEN["parse"]:
        assert split_regions(case["text"], regions_in([case["text"]])) == case["out"]


def test_recognition_by_hand():
    pairs = [("heart", "heart"), ("heart", "lung"), ("lung", "lung"), ("lung", None), ("lung", "liver")]
    table = recognition(pairs, REGIONS)
    assert list(table) == ["heart", "lung"]
    assert table["heart"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "tp": 1, "fp": 0, "fn": 1}
    assert table["lung"] == {"precision": 0.5, "recall": pytest.approx(1 / 3), "f1": 0.4, "tp": 1, "fp": 1, "fn": 2}
    assert recognition_mean(table)["region_f1"] == pytest.approx((2 / 3 + 0.4) / 2)


def test_the_references_epsilon():
    table = recognition([("heart", "heart"), ("lung", "heart")], REGIONS, REFERENCE_EPSILON)
    precision, recall = 1 / (2 + 1e-5), 1 / (1 + 1e-5)
    assert table["heart"]["precision"] == precision
    assert table["heart"]["recall"] == recall
    assert table["heart"]["f1"] == 2 * precision * recall / (precision + recall + 1e-5)
    assert table["lung"]["f1"] == 0.0
    assert recognition([], REGIONS) == {}
    assert recognition_mean({}) == {}


def test_printed_table_iii_follows_from_its_counts():
    """Abdomen as released: 1,558 right, 4 false, 6 missed; the paper prints 0.997, 0.996 (0.9962), 0.997."""
    pairs = [("abdomen", "abdomen")] * 1558 + [("abdomen", None)] * 6 + [("lung", "abdomen")] * 4
    row = recognition(pairs, ("abdomen", "lung"))["abdomen"]
    assert [f"{row[key]:.3f}" for key in ("precision", "recall", "f1")] == ["0.997", "0.996", "0.997"]


def line(name: str, *rows: tuple) -> dict:
    return {
        "id": name,
        "regions": [dict(zip(("region", "named", "reference", "prediction"), row, strict=True)) for row in rows],
    }


def test_texts_are_filed_under_the_name_that_was_given():
    lines = [
        line("a", ("heart", "lung", "Big heart.", "Clear."), ("lung", "lung", "A nodule.", "A nodule.")),
        line("b", ("heart", "heart", None, "Normal."), ("lung", None, "Clear.", "Clear.")),
    ]
    assert region_texts_of_run(lines, REGIONS) == {
        "heart": [],
        "lung": [("a", "A nodule.", "Clear. A nodule.")],
        "trachea and bronchie": [],
    }
    unnamed = [line("a", ("heart", None, "Big heart.", "Big heart."))]
    assert region_texts_of_run(unnamed, REGIONS)["heart"] == [("a", "Big heart.", "Big heart.")]


def test_region_rows_hold_recognition_and_figures():
    named = [("heart", "heart"), ("heart", "heart"), ("lung", "heart")]
    rows = region_scores(
        named, {"heart": [("a", "Big heart.", "Big heart."), ("b", "Normal.", "x")]}, REGIONS, "reg2rg"
    )
    assert list(rows) == ["heart", "lung"]
    assert rows["heart"]["n"] == 2
    assert rows["heart"]["metrics"]["rouge_l"]["value"] == 0.5
    assert rows["heart"]["recognition"]["fp"] == 1
    assert (rows["lung"]["n"], rows["lung"]["metrics"]) == (0, {})


def test_evaluate_scores_regions_of_reports_with_prefixes(tmp_path, capsys):
    row = {
        "id": "a",
        "reference": "The region 0 is lung: Clear. The region 1 is trachea and bronchie: Trachea is open. ",
        "prediction": "The region 0 is lung: Both lungs are clear. The region 1 is lung: Open. ",
    }
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    assert main([str(tmp_path / "p.jsonl"), "--json", str(tmp_path / "s.json")]) == 0
    regions = json.loads((tmp_path / "s.json").read_text())["regions"]
    assert regions["lung"]["n"] == 1
    assert regions["lung"]["recognition"]["tp"] == 1
    assert regions["lung"]["recognition"]["fp"] == 1
    assert regions["trachea and bronchie"]["recognition"]["fn"] == 1
    assert "trachea and bronchie" in capsys.readouterr().out


def test_length_distribution_and_divergence():
    references = ["w " * n for n in (3, 12, 14, 25)]
    same = length_distribution(references, references, str)
    assert same["kl_divergence"] == 0.0
    assert same["reference"] == {"counts": [1, 2, 1], "mean": 13.5, "median": 13.0}
    shorter = length_distribution(references, ["w w w"] * 4, str)
    theirs, mine = np.array([1.5, 2.5, 1.5]) / 5.5, np.array([4.5, 0.5, 0.5]) / 5.5
    assert shorter["kl_divergence"] == pytest.approx(float((theirs * np.log(theirs / mine)).sum()))
    assert shorter["prediction"]["counts"] == [4, 0, 0]
    empty = length_distribution(["", ""], ["", ""], str)
    assert empty["kl_divergence"] == 0.0
