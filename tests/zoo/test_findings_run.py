"""A run on PadChest-GR's phantom, a sentence a study: groups, examinations, baselines, and the submission of it."""

import csv
import io
import json

import lightning as L
import pytest
import torch
import yaml
from rich.console import Console

from datamodules.padchest_gr import PadChestGR
from datamodules.phantom.padchest_layout import write_padchest_gr
from lit_modules.report_generator import Report, ReportGenerator
from zoo.callbacks.clinical_efficacy import ClinicalEfficacy
from zoo.evaluate import main as evaluate
from zoo.leaderboard.check import check
from zoo.leaderboard.submission import add_run, rows_of, sha256
from zoo.metrics.baselines import trivial_reports
from zoo.metrics.table import show

USUAL = "Never said by any phantom."


class Ids:
    """Nothing of the pixels: a sample is its id."""

    def settings(self):
        return {}

    def arrays(self, study):
        return {}

    def __call__(self, study, arrays, rng):
        return {"id": study.id}

    def collate(self, samples):
        return {"ids": [sample["id"] for sample in samples]}


class Knows(ReportGenerator):
    """Says what it was told of a sentence's study, else the same of all."""

    modality = "radiograph"

    def __init__(self, told):
        super().__init__()
        self.told, self.weight = told, torch.nn.Parameter(torch.zeros(1))

    def configure_model(self):
        pass

    def preprocessor(self):
        return Ids()

    def loss(self, batch):
        return self.weight.sum()

    def generate(self, batch):
        return [Report(name, self.told.get(name, USUAL)) for name in batch["ids"]]

    def embed(self, batch):
        """By the sentence's place in its film."""
        return torch.tensor([[9.0, float(name.partition("/")[2])] for name in batch["ids"]])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A test that speaks right of every negative sentence and wrong of every positive one; what it logged, the data."""
    folder, root = tmp_path_factory.mktemp("regionformer-phantom"), tmp_path_factory.mktemp("data") / "padchest"
    write_padchest_gr(root, train=2, validation=0, test=2, seed=0)
    data = PadChestGR(str(root), store=None, eval_batch_size=4)
    data.preprocessor = Ids()
    told = {study.id: study.report for study in data.studies("test") if not study.findings}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ZOO_WEIGHTS", raising=False)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
        patch.setenv("HOME", str(folder / "home"))
        trainer = L.Trainer(
            accelerator="cpu",
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[ClinicalEfficacy(protocol="regionformer")],
        )
        (logged,) = trainer.test(Knows(told), data, verbose=False)
    config = {"method": "regionformer", "recipe": "phantom", "data": {"class": "datamodules.padchest_gr:PadChestGR"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    made = {"status": "done", "config_hash": "c" * 64, "data_fingerprint": "d" * 64, "seed": 0}
    (folder / "provenance.json").write_text(json.dumps(made | {"versions": {}, "git": {"commit": "e" * 40}}))
    return folder, data, logged


@pytest.fixture
def figures(run):
    return json.loads((run[0] / "metrics.json").read_text())


def test_lines_say_their_group_and_examination(run):
    folder, data, _ = run
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    studies = data.studies("test")
    assert [line["id"] for line in lines] == [study.id for study in studies]
    assert [line["group"] for line in lines] == ["positive" if study.findings else "negative" for study in studies]
    assert {line["examination"] for line in lines} == {study.id.split("/")[0] for study in studies}


def test_figures_stand_apart_and_are_logged(run, figures):
    _, data, logged = run
    groups, studies = figures["groups"], data.studies("test")
    assert groups["positive"]["n"] == sum(bool(study.findings) for study in studies)
    assert groups["positive"]["n"] + groups["negative"]["n"] == figures["n"] == len(studies)
    negative, positive = (groups[name]["metrics"]["rouge_l"] for name in ("negative", "positive"))
    assert (negative["value"], positive["value"]) == (1.0, 0.0)
    assert (negative["protocol"], negative["version"]) == ("regionformer", 1)
    share = groups["negative"]["n"] / len(studies)
    assert figures["metrics"]["rouge_l"]["value"] == pytest.approx(share)
    assert logged["test/rouge_l"] == pytest.approx(share)
    assert (logged["test/negative/rouge_l"], logged["test/positive/rouge_l"]) == (1.0, 0.0)
    assert logged["test/positive/cider"] == 0.0 < logged["test/negative/cider"]
    assert figures["examinations"]["n"] == 2
    assert 0 < figures["examinations"]["metrics"]["rouge_l"]["value"] < 1


def test_what_needs_weights_is_absent_with_its_reason(figures):
    for part in (figures, figures["examinations"], *figures["groups"].values()):
        assert {"bleu_1", "bleu_4", "rouge_l", "cider"} <= set(part["metrics"])
        for key in ("bertscore_f1", "chexbert_5_micro_f1", "chexbert_14_macro_f1", "radgraph_partial"):
            assert part["skipped"][key]["status"] == "skipped"
            assert part["skipped"][key]["reason"] and part["skipped"][key]["how_to"]


def test_trivial_baselines_speak_of_sentences(run, figures):
    data = run[1]
    assert list(figures["baselines"]) == ["always_normal", "most_frequent_report", "nearest_training_report"]
    training = data.studies("train")
    said = trivial_reports(training, data.regions, data.label_findings())
    assert said["always_normal"] in {study.report for study in training if not study.findings}
    assert said["most_frequent_report"] in {study.report for study in training}
    assert figures["baselines"]["always_normal"]["metrics"]["phantom_findings_micro_f1"]["value"] == 0.0
    for baseline in figures["baselines"].values():
        assert [part["n"] for part in baseline["groups"].values()] == [p["n"] for p in figures["groups"].values()]
        assert 0 <= baseline["groups"]["positive"]["metrics"]["rouge_l"]["value"] < 1


def test_the_screen_shows_them(figures):
    console = Console(width=100, record=True, file=io.StringIO())
    show(figures, console)
    text = console.export_text()
    assert f"positive ({figures['groups']['positive']['n']})" in text
    assert "2 examinations, protocol regionformer" in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_submission_of_such_a_run_is_proved_by_its_table(run, figures, tmp_path):
    folder, data, _ = run
    submission = add_run(folder, tmp_path)
    faults, _ = check(submission)
    assert faults == []
    content = json.loads((submission / "submission.json").read_text())
    assert content["metrics"]["rouge_l"]["ci95"] == figures["metrics"]["rouge_l"]["ci95"]
    assert "groups" not in content and "examinations" not in content
    assert {row.n for row in rows_of(submission)} == {len(data.studies("test"))}
    _, *rows = (submission / "per_study.csv").read_text().splitlines()
    films = [row["examination"] for row in csv.DictReader(rows)]
    names = [study.id.split("/")[0] for study in data.studies("test")]
    assert films == [str(list(dict.fromkeys(names)).index(name)) for name in names]


def test_intervals_that_forget_the_examinations_are_found_out(run, tmp_path):
    submission = add_run(run[0], tmp_path)
    table = submission / "per_study.csv"
    head, *rows = table.read_text().splitlines()
    place = rows[0].split(",").index("examination")
    cut = [",".join(cell for column, cell in enumerate(row.split(",")) if column != place) for row in rows]
    table.write_text("\n".join([head, *cut]) + "\n")
    content = json.loads((submission / "submission.json").read_text())
    content["provenance"]["per_study_sha256"] = sha256(table.read_bytes())
    (submission / "submission.json").write_text(json.dumps(content))
    faults, _ = check(submission)
    assert any("rouge_l ci95" in fault for fault in faults)


def test_anybodys_predictions_may_have_groups(run, figures, tmp_path, capsys):
    out, predictions = tmp_path / "scores.json", str(run[0] / "predictions.jsonl")
    assert evaluate([predictions, "--protocol", "regionformer", "--group", "group", "--json", str(out)]) == 0
    groups = json.loads(out.read_text())["groups"]
    for name, part in figures["groups"].items():
        values = {key: entry["value"] for key, entry in part["metrics"].items() if "findings" not in key}
        assert {key: entry["value"] for key, entry in groups[name]["metrics"].items()} == values
    assert f"negative ({groups['negative']['n']})" in capsys.readouterr().out
    assert evaluate([predictions, "--protocol", "regionformer", "--group", "sign"]) == 3
    assert "has no column 'sign'; its columns are: 'id', " in capsys.readouterr().err


def test_a_row_without_a_group_is_of_none(tmp_path):
    file, out = tmp_path / "p.csv", tmp_path / "p.json"
    file.write_text("id,reference,prediction,site\na,Clear.,Clear.,x\nb,A nodule.,Clear.,\nc,Clear.,Clear.,x\n")
    assert evaluate([str(file), "--protocol", "regionformer", "--group", "site", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert {name: part["n"] for name, part in result["groups"].items()} == {"x": 2}
    assert result["groups"]["x"]["metrics"]["rouge_l"]["value"] == 1.0 > result["metrics"]["rouge_l"]["value"]
