"""All figures of a run: the method beside reports that trivial systems make, its regions, its labels."""

import io

import pytest
from rich.console import Console

from datamodules.study import Study
from zoo.metrics.baselines import report_of, trivial_reports
from zoo.metrics.run import Scoring, quick_metrics, run_metrics
from zoo.metrics.table import show

REGIONS = ("heart", "lung", "thyroid")


def label(text: str) -> frozenset[str]:
    """A labeller that finds nodules and big hearts."""
    return frozenset(name for name, phrase in (("nodule", "A nodule"), ("cardiomegaly", "Big heart")) if phrase in text)


SCORING = Scoring("reg2rg", REGIONS, label)


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


def baselines() -> dict[str, dict[str, str]]:
    trivial = trivial_reports(training(), REGIONS, label)
    return {name: {line["id"]: report for line in lines()} for name, report in trivial.items()}


def test_a_runs_figures_stand_beside_its_baselines():
    result = run_metrics(lines(), SCORING, baselines())
    metrics = result["metrics"]
    assert metrics["phantom_findings_micro_f1"] == {
        "value": pytest.approx(2 / 3),
        "ci95": [0.0, pytest.approx(2 / 3)],
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
    assert 0 <= normal["bleu_1"]["ci95"][0] <= normal["bleu_1"]["value"] <= normal["bleu_1"]["ci95"][1]
    assert list(result["per_study"]["bleu_1"]) != [metrics["bleu_1"]["value"]] * 2
    assert result == run_metrics(lines(), SCORING, baselines())


def test_a_baseline_may_say_something_else_of_each_study():
    told = {"nearest_training_report": {"a": "Big heart. A nodule.", "b": "Normal heart. Clear lungs."}}
    result = run_metrics(lines(), SCORING, told)
    assert result["baselines"]["nearest_training_report"]["metrics"]["bleu_4"]["value"] == 1.0


def sentences() -> list[dict]:
    """Three films of two positive sentences or a negative one."""
    said = (
        ("a/0", "positive", "A nodule in the left lung.", "A nodule in the right lung."),
        ("a/1", "positive", "Big heart.", "Big heart."),
        ("a/2", "negative", "No pleural effusion.", "No pleural effusion."),
        ("b/0", "negative", "No pneumothorax seen.", "No pleural effusion."),
        ("c/0", "positive", "A nodule in the right lung.", ""),
        ("c/1", None, "Pacemaker.", "Pacemaker."),
    )
    return [
        {"id": name, "examination": name[0], "reference": reference, "prediction": prediction, "regions": []}
        | ({"group": group} if group else {})
        for name, group, reference, prediction in said
    ]


def test_groups_are_scored_apart_by_the_same_protocol():
    scoring = Scoring("regionformer", (), label)
    baselines = {"most_frequent_report": dict.fromkeys((line["id"] for line in sentences()), "No pleural effusion.")}
    result = run_metrics(sentences(), scoring, baselines)
    groups = result["groups"]
    assert [(name, part["n"]) for name, part in groups.items()] == [("positive", 3), ("negative", 2)]
    ungrouped = run_metrics([{**line, "group": None} for line in sentences()], scoring)
    assert result["metrics"] == ungrouped["metrics"], "the figures of all do not know of groups"
    alone = run_metrics([line for line in sentences() if line.get("group") == "positive"], scoring)
    assert groups["positive"]["metrics"] == alone["metrics"]
    assert groups["positive"]["metrics"]["phantom_findings_micro_recall"]["value"] == pytest.approx(2 / 3)
    assert groups["negative"]["metrics"]["rouge_l"]["value"] == pytest.approx((1 + 1 / 3) / 2)
    assert "phantom_findings_micro_f1" not in groups["negative"]["metrics"], "0 whatever a method says of these"
    rows = [i for i, line in enumerate(sentences()) if line.get("group") == "positive"]
    ours = sum(result["per_study"]["cider"][i] for i in rows) / 3
    assert groups["positive"]["metrics"]["cider"]["value"] != pytest.approx(ours)  # other document frequencies
    trivial = result["baselines"]["most_frequent_report"]["groups"]
    assert trivial["negative"]["metrics"]["rouge_l"]["value"] > trivial["positive"]["metrics"]["rouge_l"]["value"]
    assert "ci95" not in trivial["negative"]["metrics"]["rouge_l"]


def test_references_without_findings_have_an_interval_of_0():
    result = run_metrics(
        [line for line in sentences() if line.get("group") == "negative"], Scoring("regionformer", (), label)
    )
    macro = result["metrics"]["phantom_findings_macro_f1"]
    assert (macro["value"], macro["ci95"]) == (0.0, [0.0, 0.0])


def test_examinations_are_scored_as_one_report_each():
    result = run_metrics(sentences(), Scoring("regionformer", (), label))
    films = [
        ("a", "A nodule in the left lung. Big heart. No pleural effusion.",
         "A nodule in the right lung. Big heart. No pleural effusion."),
        ("b", "No pneumothorax seen.", "No pleural effusion."),
        ("c", "A nodule in the right lung. Pacemaker.", "Pacemaker."),
    ]  # fmt: skip
    reports = [{"id": i, "reference": ref, "prediction": pred, "regions": []} for i, ref, pred in films]
    whole = result["examinations"]
    assert (whole["n"], whole["protocol"]) == (3, "regionformer")
    assert whole["metrics"] == run_metrics(reports, Scoring("regionformer", (), label))["metrics"]
    assert result["per_study"]["examination"] == [0, 0, 0, 1, 2, 2]
    assert result["provenance"]["intervals"]["method"] == "percentile bootstrap over examinations"


def test_studies_of_one_patient_are_drawn_together():
    """Three studies of each of two patients, one always right, the other never: a resample has all three or none."""
    said = [(f"{name}{number}", name, text) for name, text in (("a", "Clear."), ("b", "")) for number in range(3)]
    lines = [
        {"id": study, "patient": name, "reference": "Clear.", "prediction": text, "regions": []}
        for study, name, text in said
    ]
    result = run_metrics(lines, Scoring("overlay", (), label))
    assert result["metrics"]["rouge_1"]["ci95"] == [0.0, 1.0]
    assert result["metrics"]["bleu_1"]["ci95"] == [0.0, 1.0]
    assert result["per_study"]["patient"] == [0, 0, 0, 1, 1, 1]
    assert result["provenance"]["intervals"]["method"] == "percentile bootstrap over patients"
    assert "examinations" not in result
    apart = run_metrics([{**line, "patient": line["id"]} for line in lines], Scoring("overlay", (), label))
    assert apart["metrics"]["rouge_1"]["ci95"] == [pytest.approx(1 / 6), pytest.approx(5 / 6)]
    assert apart["provenance"]["intervals"]["method"] == "percentile bootstrap over studies"
    assert "patient" not in apart["per_study"]


def test_patients_hold_the_examinations_together():
    lines = [{**line, "patient": "p" if line["examination"] < "c" else "q"} for line in sentences()]
    result = run_metrics(lines, Scoring("regionformer", (), label))
    assert result["per_study"]["patient"] == [0, 0, 0, 0, 1, 1]
    assert "examination" not in result["per_study"]
    assert result["examinations"]["n"] == 3
    first, second = (5 / 6 + 1 + 1 + 1 / 3) / 4, (0 + 1) / 2  # ROUGE-L of either patient's sentences
    assert result["metrics"]["rouge_l"]["ci95"] == pytest.approx([second, first])
    unknown = run_metrics([{**line, "patient": "p"} for line in lines], Scoring("regionformer", (), label))
    assert unknown["metrics"]["rouge_l"]["ci95"] is None, "of one patient there is nothing to draw from"


def test_studies_that_are_examinations_have_neither_groups_nor_examinations():
    result = run_metrics(lines(), SCORING, baselines())
    assert not {"groups", "examinations"} & {*result, *result["baselines"]["always_normal"]}
    assert "examination" not in result["per_study"]
    single = [line for line in sentences() if line["id"].endswith("/0")]  # no film of which there are two
    assert "examinations" not in run_metrics(single, SCORING)


def test_the_table_shows_groups_and_examinations_within_100_columns():
    result = run_metrics(sentences(), Scoring("regionformer", (), label)) | {"phantom": True, "split": "test"}
    console = Console(width=100, record=True, file=io.StringIO())
    show(result, console)
    text = console.export_text()
    titles = [line for line in text.splitlines() if line.startswith("phantom, not patients: ")]
    assert [title.split(": ")[1] for title in titles] == [
        "Reports, test, 6 studies, protocol regionformer (version 1)",
        "By group, test, 6 studies, protocol regionformer (version 1)",
        "Texts joined, test, 3 examinations, protocol regionformer (version 1)",
    ]
    group = text.split("By group")[1]
    heads = next(line for line in group.splitlines() if "positive" in line)
    assert [cell.strip() for cell in heads.split("┃")[2:5]] == ["all (6)", "positive (3)", "negative (2)"]
    rouge = next(line for line in group.splitlines() if "ROUGE-L" in line)
    assert rouge.split("│")[4].strip() == "0.6667"


def test_validation_is_spared_what_costs_time():
    result = quick_metrics(lines(), SCORING)
    assert {"bleu_4", "cider", "region_f1", "phantom_findings_micro_f1"} < set(result["metrics"])
    assert not {"meteor", "radbert_ct_18_micro_f1"} & {*result["metrics"], *result["skipped"]}
    assert "ci95" not in result["metrics"]["bleu_4"]
    assert "baselines" not in result


def test_a_broken_labeller_leaves_the_other_figures():
    def broken(text: str) -> frozenset[str]:
        raise ValueError("no such phrase")

    result = quick_metrics(lines(), Scoring("reg2rg", REGIONS, broken))
    assert "bleu_1" in result["metrics"]
    assert "no such phrase" in result["skipped"]["phantom_findings"]["reason"]


def test_the_table_shows_the_method_beside_its_baselines_and_says_phantom():
    result = run_metrics(lines(), SCORING, baselines())
    absent = {"value": None, "status": "skipped", "reason": "WordNet 3.0 is not at hand", "how_to": "install it"}
    result |= {"phantom": True, "split": "validation", "skipped": {"meteor": absent}}
    console = Console(width=120, record=True, file=io.StringIO())
    show(result, console)
    text = console.export_text()
    assert "phantom" in text.splitlines()[0]
    assert "2 studies, protocol reg2rg (version 1)" in text.splitlines()[0]
    row = next(line for line in text.splitlines() if "findings micro F1" in line)
    assert [cell.strip() for cell in row.split("│")[2:6]] == ["0.6667", "0.000–0.667", "0.0000", "0.5000"]
    assert "METEOR absent: WordNet 3.0 is not at hand. To have it: install it." in text
    assert "frequent" in text  # "most frequent report", on three lines
    assert "KL divergence" in text
