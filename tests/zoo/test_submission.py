"""Submissions: made from a run or from predictions, free of text, and found out when anything in them is changed."""

import csv
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from datamodules.study import DataFault
from zoo.command import UsageError
from zoo.leaderboard.__main__ import main
from zoo.leaderboard.board import comparable, load_board
from zoo.leaderboard.check import check
from zoo.leaderboard.submission import add_predictions, add_run, rows_of
from zoo.metrics.per_study import table_of, write_table
from zoo.metrics.run import Scoring, run_metrics

REGIONS = ("heart", "lung")
SAID = {  # id → what the reference and the method say of heart and lung
    "study_a": (("The heart is large.", "A nodule is seen in the left lung."), ("The heart is large.", "Clear lungs.")),
    "study_b": (("The heart is normal.", "Clear lungs on both sides."), ("The heart is normal.", "Clear lungs.")),
    "study_c": (("A large heart.", "There is a nodule."), ("The heart is normal.", "A nodule is seen on the left.")),
    "study_d": (("The heart is normal in size.", "Clear lungs."), ("", "")),
}


def make_run(folder: Path, patients: str = "", **changed: Any) -> Path:
    """A finished run's folder, scored by the real engine; by choice with a letter for each study's patient."""
    lines = []
    for study, (reference, prediction) in SAID.items():
        rows = zip(REGIONS, reference, prediction, strict=True)
        regions = [
            {"region": name, "named": name if says else None, "reference": said, "prediction": says}
            for name, said, says in rows
        ]
        lines.append(
            {
                "id": study,
                "reference": " ".join(reference),
                "prediction": " ".join(prediction).strip(),
                "regions": regions,
            }
        )

    lines = [line | {"patient": name} for line, name in zip(lines, patients, strict=True)] if patients else lines

    def label(text: str) -> frozenset[str]:
        return frozenset(name for name in ("nodule", "large") if name in text)

    baselines = {"most_frequent_report": dict.fromkeys(SAID, "The heart is normal. Clear lungs.")}
    result = run_metrics(lines, Scoring("reg2rg", REGIONS, label), baselines)
    folder.mkdir(parents=True)
    write_table(folder / "per_study.csv", table_of(list(SAID), result))
    result = {"phantom": True, "split": "validation"} | result
    (folder / "metrics.json").write_text(json.dumps(result))
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {"method": "reg2rg", "recipe": "phantom", "with": ["no_rra"], "data": {"class": "a.b:RadGenomeChestCT"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    made = {"status": "done", "config_hash": "c" * 64, "data_fingerprint": "d" * 64, "phantom": True, "seed": 7}
    made |= {"versions": {"python": "3.11.7", "torch": "2.15.0+cpu"}, "git": {"commit": "e" * 40, "changed": False}}
    (folder / "provenance.json").write_text(json.dumps(made | changed))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "reg2rg-phantom-1")


@pytest.fixture
def submission(run: Path, tmp_path: Path) -> Path:
    return add_run(run, tmp_path / "leaderboard")


def test_a_run_becomes_a_submission_that_its_own_numbers_prove(run: Path, submission: Path) -> None:
    assert submission.name == "reg2rg-phantom-1"
    assert sorted(path.name for path in submission.iterdir()) == ["per_study.csv", "submission.json"]
    assert [path.name for path in submission.parent.iterdir()] == [submission.name], "nothing half-written stays"
    content = json.loads((submission / "submission.json").read_text())
    metrics = json.loads((run / "metrics.json").read_text())
    assert (content["method"], content["method_id"]) == ("Reg2RG", "reg2rg")
    assert (content["dataset"], content["split"], content["recipe"]) == (
        "RadGenome-ChestCT",
        "validation",
        "phantom with no_rra",
    )
    assert (content["status"], content["phantom"], content["n"], content["n_empty_predictions"]) == (
        "reproduced",
        True,
        4,
        1,
    )
    assert set(content["metrics"]) == set(metrics["metrics"])
    for key, entry in content["metrics"].items():
        assert entry["value"] == metrics["metrics"][key]["value"]
    assert content["metrics"]["bleu_1"]["ci95"] == metrics["metrics"]["bleu_1"]["ci95"]
    assert set(content["baselines"]) == {"most_frequent_report"}
    made = content["provenance"]
    assert (made["config_sha256"], made["data_fingerprint"], made["git_commit"]) == ("c" * 64, "d" * 64, "e" * 40)
    for key, path in (
        ("predictions_sha256", run / "predictions.jsonl"),
        ("per_study_sha256", submission / "per_study.csv"),
    ):
        assert made[key] == hashlib.sha256(path.read_bytes()).hexdigest()
    faults, stated = check(submission)
    assert faults == []
    assert {"region_f1", "phantom_findings_micro_f1", "bleu_1 (overall)", "baselines", "regions"} <= set(stated)
    assert "bleu_1" not in stated


def test_no_text_no_id_and_no_path_of_the_run_is_in_it(run: Path, submission: Path) -> None:
    written = "".join((submission / name).read_text() for name in ("submission.json", "per_study.csv"))
    for study, sides in SAID.items():
        assert study not in written
        for text in (text for side in sides for text in side if text):
            assert text not in written
    assert str(run.parent) not in written
    assert "searched" not in written
    assert not re.search(r'"/\w', written)
    with (submission / "per_study.csv").open() as file:
        next(file)
        ids = [row["id"] for row in csv.DictReader(file)]
    assert ids == [hashlib.sha256(study.encode()).hexdigest()[:16] for study in SAID]


def test_the_patients_of_a_run_prove_its_intervals(run: Path, submission: Path, tmp_path: Path) -> None:
    shared = add_run(make_run(tmp_path / "shared", patients="pqqp"), tmp_path / "leaderboard")
    assert check(shared)[0] == []
    header, *rows = (shared / "per_study.csv").read_text().splitlines()[1:]
    place = header.split(",").index("patient")
    assert [row.split(",")[place] for row in rows] == ["0", "1", "1", "0"]
    alone, clustered = (json.loads((at / "submission.json").read_text())["metrics"] for at in (submission, shared))
    assert clustered["bleu_1"]["value"] == alone["bleu_1"]["value"]
    assert clustered["bleu_1"]["ci95"] != alone["bleu_1"]["ci95"]


def test_absent_metrics_keep_their_reason_in_one_word(submission: Path) -> None:
    skipped = json.loads((submission / "submission.json").read_text())["skipped"]
    if not skipped:
        pytest.skip("every metric of the protocol can be computed here")
    assert {entry["reason"] for entry in skipped.values()} <= {"weights", "WordNet", "Java"}
    (row,) = (row for row in rows_of(submission) if row.id == submission.name)
    assert set(row.absent) == set(skipped)
    assert not set(row.figures) & set(row.absent)


def test_rows_of_a_submission_split_by_protocol_baseline_and_region(submission: Path) -> None:
    rows = {row.id: row for row in load_board([submission.parent]) if row.paper == submission.name}
    name = submission.name
    assert set(rows) == {
        name,
        f"{name}/region_recognition",
        f"{name}/phantom_findings",
        f"{name}/most_frequent_report",
        f"{name}/most_frequent_report/phantom_findings",
        *(f"{name}/{region}{protocol}" for region in REGIONS for protocol in ("", "/region_recognition")),
    }
    assert all(row.phantom and row.status == "reproduced" for row in rows.values())
    assert set(rows[f"{name}/region_recognition"].figures) == {"region_precision", "region_recall", "region_f1"}
    assert rows[f"{name}/region_recognition"].protocol == "region_recognition"
    assert not any(key.startswith(("region_", "phantom_")) for key in rows[name].figures)
    heart = rows[f"{name}/heart/region_recognition"]
    assert (heart.subset, heart.n, heart.figures["region_recall"].value) == ("heart", 4, 0.75)
    assert rows[f"{name}/most_frequent_report"].method == "most frequent report"


def edited(submission: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = submission / "submission.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def resigned(submission: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Changes the table's lines, and puts the new table's hash into submission.json as a forger would."""
    table = submission / "per_study.csv"
    table.write_text("\n".join(change(table.read_text().splitlines())) + "\n")
    digest = hashlib.sha256(table.read_bytes()).hexdigest()
    edited(submission, lambda content: content["provenance"].__setitem__("per_study_sha256", digest))


def test_a_changed_value_interval_or_deviation_is_named(submission: Path) -> None:
    def forge(content: dict[str, Any]) -> None:
        content["metrics"]["bleu_4"]["value"] += 2e-9
        content["metrics"]["rouge_l"]["ci95"][0] += 0.01
        content["metrics"]["cider"]["std"] = 0.0
        del content["metrics"]["bleu_1"]

    edited(submission, forge)
    faults, _ = check(submission)
    assert [fault.split(":")[0] for fault in faults] == ["bleu_1", "bleu_4 value", "rouge_l ci95 low", "cider std"]


def test_rounding_below_the_tolerance_is_no_difference(submission: Path) -> None:
    edited(
        submission,
        lambda content: content["metrics"]["bleu_4"].__setitem__(
            "value", content["metrics"]["bleu_4"]["value"] + 1e-12
        ),
    )
    assert check(submission)[0] == []


def test_a_changed_row_is_found_with_and_without_a_new_hash(submission: Path) -> None:
    original = (submission / "per_study.csv").read_text()

    def better(lines: list[str]) -> list[str]:
        cells = lines[2].split(",")
        cells[1] = "1"
        return [*lines[:2], ",".join(cells), *lines[3:]]

    lines = better(original.splitlines())
    (submission / "per_study.csv").write_text("\n".join(lines) + "\n")
    assert check(submission)[0] == ["per_study.csv is not the one that was submitted: its sha256 differs"]
    with pytest.raises(DataFault, match="sha256 differs"):
        load_board([submission.parent])
    (submission / "per_study.csv").write_text(original)
    resigned(submission, better)
    faults, _ = check(submission)
    assert any(fault.startswith("bleu_1 value") for fault in faults)


def test_a_dropped_study_and_a_plain_id_are_found(submission: Path) -> None:
    resigned(submission, lambda lines: [*lines[:-1], "study_d" + lines[-1][16:]])
    assert check(submission)[0] == ["per_study.csv: 1 ids are not hashed (16 hexadecimal digits)"]
    resigned(submission, lambda lines: lines[:-1])
    assert "n 4: per_study.csv has 3 studies" in check(submission)[0]


TEXT = "The heart is large and a nodule of 6 mm is seen in the left upper lobe of the lung."


ABSENT = {"value": None, "status": "skipped", "reason": "a nodule"}


def smuggle_column(submission: Path) -> None:
    resigned(submission, lambda lines: [lines[0], f'{lines[1]},"{TEXT}"', *(f"{line},0" for line in lines[2:])])


def smuggle_file(submission: Path) -> None:
    (submission / "notes.txt").write_text(TEXT)


SMUGGLERS: dict[str, Callable[[Path], None]] = {
    "a column's name": smuggle_column,
    "another file": smuggle_file,
    "the method": lambda folder: edited(folder, lambda content: content.update(method=TEXT)),
    "a name": lambda folder: edited(folder, lambda content: content["regions"].update({TEXT: {}})),
    "a reason": lambda folder: edited(folder, lambda content: content["skipped"].update(bleu_1=ABSENT)),
    "an unknown field": lambda folder: edited(folder, lambda content: content.update(comment="nodule")),
    "a version": lambda folder: edited(folder, lambda content: content["provenance"]["environment"].update(torch=TEXT)),
    "a hash": lambda folder: edited(folder, lambda content: content["provenance"].update(config_sha256="left lung")),
    "a path": lambda folder: edited(folder, lambda content: content.update(recipe="/home/anna/recipe")),
}  # fmt: skip


@pytest.mark.parametrize("way", SMUGGLERS)
def test_text_has_no_way_in(submission: Path, way: str) -> None:
    assert check(submission)[0] == []
    SMUGGLERS[way](submission)
    faults, _ = check(submission)
    assert faults
    assert not any("nodule of 6 mm" in fault for fault in faults), "a fault does not repeat the text"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"protocol": "bleu_paper"}, "there is none"),
        ({"version": 999}, "this program knows version"),
        ({"format": 2}, "reads format 1"),
        ({"name": "other"}, "must be the folder's"),
        ({"status": "reported"}, "must be recomputed or reproduced"),
        ({"phantom": "no"}, "must be true or false"),
        ({"n": 3}, "per_study.csv has 4 studies"),
    ],
)
def test_what_a_submission_says_of_itself_is_checked(submission: Path, change: dict[str, Any], says: str) -> None:
    edited(submission, lambda content: content.update(change))
    assert any(says in fault for fault in check(submission)[0])


def test_figures_of_another_protocol_or_of_the_rule_labeller_are_refused(submission: Path) -> None:
    foreign = {"value": 0.5, "protocol": "coco", "version": 1}
    rules = {"value": 0.9, "protocol": "rules14", "version": 1}
    edited(submission, lambda content: content["metrics"].update(bleu_1=foreign, rules14_14_micro_f1=rules))
    faults, _ = check(submission)
    assert any("bleu_1: of protocol 'coco'" in fault for fault in faults)
    assert any("rules14_14_micro_f1" in fault and "stay off" in fault for fault in faults)


def test_the_rule_labellers_figures_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    rules = {"value": 0.9, "protocol": "rules14", "version": 1}
    metrics["metrics"]["rules14_micro_f1"] = metrics["baselines"]["most_frequent_report"]["metrics"][
        "rules14_micro_f1"
    ] = rules
    metrics["classes"]["rules14"] = {
        "Edema": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1, "predicted": 1}
    }
    (run / "metrics.json").write_text(json.dumps(metrics))
    made = add_run(run, tmp_path / "to")
    assert "rules14" not in (made / "submission.json").read_text()
    assert check(made)[0] == []


def test_adding_again_changes_nothing_and_another_run_of_that_name_is_refused(
    run: Path, submission: Path, tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in submission.iterdir()}
    assert add_run(run, submission.parent) == submission
    other = make_run(tmp_path / "reg2rg-phantom-1", seed=8)
    with pytest.raises(UsageError, match="exists and holds something else"):
        add_run(other, submission.parent)
    assert {path.name: path.read_bytes() for path in submission.iterdir()} == before
    assert add_run(other, submission.parent, "second").name == "second"
    assert sorted(path.name for path in submission.parent.iterdir()) == ["reg2rg-phantom-1", "second"]


def test_runs_that_cannot_be_proved_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "failed", status="failed")
    with pytest.raises(UsageError, match=r"no finished run \(status: failed\).*zoo.fit --resume"):
        add_run(run, tmp_path / "to")
    run = make_run(tmp_path / "old")
    (run / "per_study.csv").unlink()
    with pytest.raises(UsageError, match=r"no per_study.csv.*python -m zoo.fit --resume"):
        add_run(run, tmp_path / "to")
    (run / "metrics.json").unlink()
    with pytest.raises(UsageError, match="lacks metrics.json"):
        add_run(run, tmp_path / "to")
    run = make_run(tmp_path / "mixed")
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["metrics"]["bleu_1"]["value"] = 0.99
    (run / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(DataFault, match="bleu_1 value: submission.json says 0.99"):
        add_run(run, tmp_path / "to")
    assert not list((tmp_path / "to").iterdir())


def test_a_predictions_file_needs_to_be_told_what_it_is_of(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="--dataset, --split, --protocol"):
        add_predictions(run / "predictions.jsonl", tmp_path, method="Anna's")
    said = {"method": "Anna's", "dataset": "MIMIC-CXR", "split": "test", "protocol": "overlay"}
    made = add_predictions(run / "predictions.jsonl", tmp_path / "to", **said)
    assert made.name == "anna-s-mimic-cxr-overlay"
    assert check(made)[0] == []
    content = json.loads((made / "submission.json").read_text())
    assert (content["status"], content["phantom"], content["provenance"]["created_from"]) == (
        "recomputed",
        False,
        "predictions",
    )
    assert content["metrics"]["bleu_4"]["ci95"] is not None
    assert main(["--check", str(made)]) == 0
    assert "agrees with its per_study.csv" in capsys.readouterr().out
    edited(made, lambda content: content["metrics"]["bleu_4"].update(value=0.9))
    assert main(["--check", str(made)]) == 3
    assert "bleu_4 value" in capsys.readouterr().out


def test_a_submission_of_one_region_stands_among_the_regions(run: Path, tmp_path: Path) -> None:
    said = {"method": "Anna's", "dataset": "RadGenome-ChestCT", "split": "test", "protocol": "reg2rg", "subset": "lung"}
    made = add_predictions(run / "predictions.jsonl", tmp_path / "to", **said)
    assert made.name == "anna-s-radgenome-chestct-lung-reg2rg"
    (row,) = [row for row in load_board([made]) if row.paper == made.name]
    assert (row.subset, row.parts, row.status) == ("lung", "by region", "recomputed")
    published = [other for other in load_board() if other.subset == "lung" and other.table == "IV"]
    assert published and not any(comparable(row, other) for other in published), "another number of studies"
    assert main(["--add", str(run), "--subset", "lung"]) == 2


def test_a_name_stands_for_one_submission(run: Path, submission: Path, tmp_path: Path) -> None:
    again = add_run(run, tmp_path / "copy")
    assert len(load_board([submission, again])) == len(load_board([submission])), "the same one, found twice"
    other = add_run(run, tmp_path / "other", method="Reg2RG, other")
    with pytest.raises(DataFault, match="reg2rg-phantom-1 is there twice"):
        load_board([submission, other])


def test_trivial_baselines_stand_once(run: Path, submission: Path) -> None:
    add_run(run, submission.parent, "second", method="Another")
    shipped = {row.id for row in load_board()}
    rows = [row for row in load_board([submission.parent]) if row.id not in shipped and row.subset is None]
    assert sorted(row.method for row in rows if row.protocol == "reg2rg") == [
        "Another",
        "Reg2RG",
        "most frequent report",
    ]


def test_every_shipped_submission_proves_itself() -> None:
    from zoo.leaderboard.board import submission_folders

    faults = {folder.name: found for folder in submission_folders() if (found := check(folder)[0])}
    assert not faults
