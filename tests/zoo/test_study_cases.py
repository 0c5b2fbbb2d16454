"""Single cases of a study: quartiles, changes on the same cases, and the plot of boxes."""

import csv
import io

import numpy as np
import pytest

from tests.zoo.toy_results import Written, design, figure, uncut
from zoo.metrics.per_study import StudyTable, table_of
from zoo.metrics.run import Scoring, run_metrics
from zoo.studies.box_plot import plot_boxes
from zoo.studies.design import Arm
from zoo.studies.report import markdown, write_report
from zoo.studies.results import collect

IDS = ["a", "b", "c", "d"]


def table(values, ids=IDS, **columns):
    return StudyTable(list(ids), {"cider": np.array(values, float)} | columns, "regionformer", 1)


@pytest.fixture
def written(tmp_path):
    return Written(tmp_path)


def boxes(written, arms=(), metrics=("cider",), **options):
    return collect(design(arms, metrics, plot="box", **options), written.points, {})


def test_quartiles_are_of_all_seeds_reports(written):
    tables = [table([0, 1, 2, 3]), table([4, 5, 6, 7])]
    cases = boxes(written.add("a", [1.5, 5.5], tables=tables), seeds=(0, 1)).cases
    (row,) = csv.DictReader(io.StringIO(cases.comma_separated()))
    numbers = [float(row[key]) for key in ("minimum", "q1", "median", "q3", "maximum")]
    assert numbers == [0, 1.75, 3.5, 5.25, 7]
    assert [row[key] for key in ("point", "at", "cases", "seeds", "reports")] == ["a", "", "4", "2", "8"]


def test_changes_are_of_the_same_cases_and_resample_patients(written):
    """The cases stand in another order at the second point, and two of either patient change alike."""
    patient = {"patient": np.array([0, 0, 1, 1])}
    before, later = table([1, 2, 3, 4], **patient), table([4, 3, 4, 3], "dcba", patient=np.array([0, 0, 1, 1]))
    written.add("x", [2.5, 2.5], 0.9, [before, before]).add("x", [3.5, 3.5], 0.5, [later, later])
    written.add("y", [2.5, 2.5], tables=[before, before])
    results = boxes(written, [Arm("x", (), {}, {"data.dice": [0.9, 0.5]}), Arm("y", (), {}, {})], seeds=(0, 1))
    (change,) = results.cases.changes()  # a: 1 → 3, b: 2 → 4, c: 3 → 3, d: 4 → 4
    assert (change.before, change.after, change.change) == ("x at 0.9", "x at 0.5", 1.0)
    assert change.ci95 == (0.0, 2.0)  # as often as not both draws are of one patient
    text = markdown(results)
    assert "paired: the same 4 cases at every point" in text
    assert "| x at 0.9 | 4 | 2 | 2.5000 [1.7500, 3.2500] |" in text
    assert "[95 % bootstrap interval over patients]" in text
    assert "| x at 0.9 | x at 0.5 | +1.0000 [+0.0000, +2.0000] |" in text


def test_seeds_may_draw_other_cases_of_the_same_patients(written):
    """Patient p has a, b and c, of which no seed has all; patient q has d."""
    tables = [
        [table(values, ids, patient=np.array(patients)) for values, ids, patients in runs]
        for runs in (
            [([0, 0, 0], "abd", [0, 0, 1]), ([0, 0, 0], "dbc", [0, 1, 1])],
            [([1, 1, 3], "abd", [0, 0, 1]), ([5, 1, 1], "dbc", [0, 1, 1])],
        )
    ]
    written.add("x", [0.0, 0.0], 0.9, tables[0]).add("x", [1.7, 2.3], 0.5, tables[1])
    results = boxes(written, [Arm("x", (), {}, {"data.dice": [0.9, 0.5]})], seeds=(0, 1))
    assert results.cases.design() == "paired: the same 4 cases at every point"
    (change,) = results.cases.changes()
    assert change.change == (1 + 1 + 1 + 4) / 4
    assert change.ci95 == (1.0, 4.0)  # p's three together, or q's alone


def test_an_arm_is_paired_though_another_has_more_cases(written):
    for at, value in ((0.9, 0.3), (0.5, 0.1)):
        written.add("x", [value], at, [table([value] * 2, "ab")])
    written.add("y", [0.5], tables=[table([0.5] * 4)])
    results = boxes(written, [Arm("x", (), {}, {"data.dice": [0.9, 0.5]}), Arm("y", (), {}, {})], seeds=(0,))
    assert results.cases.design() == "paired: the same 2 cases at every point of 'x'"
    (change,) = results.cases.changes()
    assert (change.before, change.change) == ("x at 0.9", pytest.approx(-0.2))


def test_points_with_other_cases_are_not_compared_case_by_case(written):
    written.add("x", [0.2], 0.9, [table([0.1, 0.3], "ab")]).add("x", [0.2], 0.5, [table([0.1, 0.3], "ac")])
    results = boxes(written, [Arm("x", (), {}, {"data.dice": [0.9, 0.5]})], seeds=(0,))
    assert results.cases.changes() == []
    assert "; not paired: the points differ in their cases." in markdown(results)


def test_what_no_single_case_has_is_left_out_with_its_reason(written, tmp_path):
    written.add("a", [0.1, 0.3], tables=[table([0.1] * 4), table([0.3] * 4)]).add("b", [0.2, 0.4])
    results = boxes(written, metrics=("cider", "positive/cider", "region_f1", "bleu_1"), seeds=(0, 1))
    assert results.cases.metrics == ("cider",)
    assert [row.point.name for row in results.cases.rows] == ["a"]
    notes = "\n".join(results.notes)
    assert "No box for CIDEr of a group: " in notes
    assert "No box for region recognition F1: " in notes
    assert "BLEU-1 absent" in notes and "No box for BLEU-1" not in notes  # said once
    assert "b, seed 1: no cases: " in notes and "per_study.csv: No such file" in notes


def test_without_any_case_the_plot_is_of_means(written, tmp_path):
    written.add("a", [0.1]).add("b", [0.2])
    write_report(design([], ("cider",), (0,), plot="box"), written.points, {}, (), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"study.json", "table.md", "table.csv", "plot.png"}


def test_a_corpus_metric_shows_the_reports_own_values(written):
    """As the engine writes them: a case without a common 4-gram has 0, though the corpus has not."""
    said = [("a", "There is a large left pneumothorax.", "There is a large left pneumothorax."), ("b", "Clear.", "No.")]
    lines = [{"id": name, "reference": ref, "prediction": pred, "regions": []} for name, ref, pred in said]
    result = run_metrics(lines, Scoring("overlay"))
    own = table_of(["a", "b"], result)
    head = {"phantom": True, "split": "test", "protocol": "overlay", "version": 1, "n": 2, "groups": {}}
    metrics = {key: figure(result["metrics"][key]["value"], "overlay") for key in ("bleu_4", "rouge_l")}
    written.add("a", [0.0], tables=[own], **head, metrics=metrics)
    results = boxes(written, metrics=("bleu_4", "rouge_l"), seeds=(0,))
    assert [(row.metric, row.minimum, row.maximum) for row in results.cases.quartiles()] == [
        ("bleu_4", 0.0, pytest.approx(1.0)),
        ("rouge_l", 0.0, 1.0),
    ]
    (note,) = [note for note in results.notes if "Single cases" in note]
    assert "own value of BLEU-4, by the same protocol (corpus BLEU on 13a tokens" in note


@pytest.mark.parametrize("axis", [True, False])
def test_the_plot_of_boxes(written, tmp_path, axis):
    random = np.random.default_rng(0)
    metrics = ("cider", "rouge_l")

    def add(arm, at=None):
        reports = table(random.random(30), map(str, range(30)), rouge_l=random.random(30))
        written.add(arm, [0.5], at, [reports], metrics=dict.fromkeys(metrics, figure(0.5)))

    for at in (0.9, 0.8, 0.5):
        add("line" if axis else f"arm {at}", at if axis else None)
    add("an arm whose name is a long one, which no tick has room for in one line")
    arms = [Arm("line", (), {}, {"data.dice": [0.9, 0.8, 0.5]})] if axis else []
    results = boxes(written, arms, metrics, seeds=(0,))
    for name in ("plot", "again"):
        plot_boxes(results, results.cases, tmp_path / f"{name}.png")
    assert (tmp_path / "plot.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    assert uncut(tmp_path / "plot.png").min() < 128
