"""Findings' P/R/F1 against scikit-learn's definition worked out by hand; the reports that trivial systems make."""

import io

import pytest
from rich.console import Console

from datamodules.study import Study
from zoo.metrics.baselines import report_of, trivial_reports
from zoo.metrics.findings import finding_scores
from zoo.metrics.run import quick_metrics, run_metrics
from zoo.metrics.table import show

REGIONS = ("heart", "lung", "thyroid")


def label(text: str) -> frozenset[str]:
    """A labeller that finds nodules and big hearts."""
    return frozenset(name for name, phrase in (("nodule", "A nodule"), ("cardiomegaly", "Big heart")) if phrase in text)


def test_findings_by_hand():
    references = [frozenset("ab"), frozenset("a"), frozenset(), frozenset("b")]
    predictions = [frozenset("a"), frozenset("ac"), frozenset("a"), frozenset()]
    scores = finding_scores(references, predictions)
    assert scores["micro"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5}  # 2 right, 2 false, 2 missed
    assert scores["labels"]["a"] == {"precision": 2 / 3, "recall": 1.0, "f1": 0.8, "support": 2, "predicted": 3}
    assert scores["labels"]["c"]["support"] == 0
    assert scores["macro"] == {"precision": pytest.approx(1 / 3), "recall": 0.5, "f1": 0.4}  # of a and b


def test_nothing_to_find_is_zero():
    scores = finding_scores([frozenset()], [frozenset()])
    assert scores["micro"] == scores["macro"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert scores["labels"] == {}


def training() -> list[Study]:
    texts = [
        {"heart": "Big heart.", "lung": "A nodule."},
        {"heart": "Big heart.", "lung": "Clear lungs."},
        {"heart": "Big heart.", "lung": "Clear lungs."},
        {"heart": "Normal heart.", "lung": "No nodule.", "thyroid": "Normal thyroid."},
    ]
    return [Study(id=str(i), regions=regions) for i, regions in enumerate(texts)]


def test_trivial_reports_come_from_training_alone():
    reports = trivial_reports(training(), REGIONS, label)
    assert reports == {
        "always_normal": "Normal heart. Clear lungs.",
        "most_frequent_report": "Big heart. Clear lungs.",
    }
    assert list(trivial_reports(training(), REGIONS, None)) == ["most_frequent_report"]


def test_trivial_report_of_a_dataset_without_regions():
    studies = [Study(id=str(i), report=text) for i, text in enumerate(["Clear.", "A nodule.", "A nodule."])]
    assert trivial_reports(studies, (), label) == {"always_normal": "Clear.", "most_frequent_report": "A nodule."}


def test_reference_is_the_regions_in_order_or_else_the_report():
    study = Study(id="a", report="Whole.", regions={"lung": "Clear. ", "heart": "Normal."})
    assert report_of(study, REGIONS) == "Normal. Clear."
    assert report_of(Study(id="a", report="Whole."), REGIONS) == "Whole."


def lines() -> list[dict]:
    return [
        {
            "id": name,
            "reference": f"{heart} {lung}",
            "prediction": f"{heart} Clear lungs.",
            "regions": [
                {"region": "heart", "named": "heart", "reference": heart, "prediction": heart},
                {"region": "lung", "named": "heart", "reference": lung, "prediction": "Clear lungs."},
            ],
        }
        for name, heart, lung in (("a", "Big heart.", "A nodule."), ("b", "Normal heart.", "Clear lungs."))
    ]


def test_a_runs_figures_stand_beside_its_baselines():
    baselines = trivial_reports(training(), REGIONS, label)
    result = run_metrics(lines(), "reg2rg", REGIONS, label, baselines)
    metrics = result["metrics"]
    assert metrics["phantom_findings_micro_f1"] == {
        "value": pytest.approx(2 / 3),
        "protocol": "phantom_findings",
        "version": 1,
    }
    assert metrics["phantom_findings_macro_recall"]["value"] == 0.5
    assert metrics["region_f1"] == {"value": pytest.approx(1 / 3), "protocol": "region_recognition", "version": 1}
    assert result["findings"]["labels"]["nodule"]["support"] == 1
    assert result["regions"]["heart"]["recognition"]["fp"] == 2
    assert result["length"]["unit"] == "words"
    assert list(result["baselines"]) == ["always_normal", "most_frequent_report"]
    normal = result["baselines"]["always_normal"]["metrics"]
    assert normal["phantom_findings_micro_f1"]["value"] == 0.0
    assert "region_f1" not in normal
    assert normal["bleu_1"]["value"] < metrics["bleu_1"]["value"] < 1
    assert result == run_metrics(lines(), "reg2rg", REGIONS, label, baselines)


def test_validation_is_spared_what_costs_time():
    result = quick_metrics(lines(), "reg2rg", REGIONS, label)
    assert {"bleu_4", "cider", "region_f1", "phantom_findings_micro_f1"} < set(result["metrics"])
    assert not {"meteor"} & set(result["metrics"])
    assert "baselines" not in result


def test_a_broken_labeller_leaves_the_other_figures():
    def broken(text: str) -> frozenset[str]:
        raise ValueError("no such phrase")

    result = quick_metrics(lines(), "reg2rg", REGIONS, broken)
    assert "bleu_1" in result["metrics"]
    assert "no such phrase" in result["skipped"]["phantom_findings"]["reason"]


def test_the_table_shows_the_method_beside_its_baselines_and_says_phantom():
    result = run_metrics(lines(), "reg2rg", REGIONS, label, trivial_reports(training(), REGIONS, label))
    absent = {"value": None, "status": "skipped", "reason": "WordNet 3.0 is not at hand", "how_to": "install it"}
    result |= {"phantom": True, "split": "validation", "skipped": {"meteor": absent}}
    console = Console(width=120, record=True, file=io.StringIO())
    show(result, console)
    text = console.export_text()
    assert "phantom" in text.splitlines()[0]
    assert "2 studies, protocol reg2rg (version 1)" in text.splitlines()[0]
    row = next(line for line in text.splitlines() if "findings micro F1" in line)
    assert [cell.strip() for cell in row.split("│")[2:5]] == ["0.6667", "0.0000", "0.5000"]
    assert "METEOR is absent: WordNet 3.0 is not at hand. To have it: install it." in text
    assert "always normal" in text
    assert "KL divergence" in text
