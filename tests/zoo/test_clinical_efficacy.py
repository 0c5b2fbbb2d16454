"""The metric callback in a real Trainer, on one process and on two."""

import json
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from datamodules.report_datamodule import ReportDataModule
from datamodules.study import Study
from lit_modules.report_generator import RegionReport, Report, ReportGenerator
from zoo.callbacks.clinical_efficacy import ClinicalEfficacy, check_complete
from zoo.command import UsageError
from zoo.metrics import engine
from zoo.metrics.per_study import read_table

HEARTS, LUNGS = ("The heart is normal.", "The heart is big."), ("The lungs are clear.", "A nodule is seen.")


class Texts:
    """No pixels: a sample is its id."""

    def settings(self):
        return {}

    def arrays(self, study):
        return {}

    def __call__(self, study, arrays, rng):
        return {"id": study.id}

    def collate(self, samples):
        return {"ids": [sample["id"] for sample in samples]}


class Parrot(ReportGenerator):
    """Says what the heart's reference says, "clear" of every lung, and forgets whom it is told to forget."""

    modality = "ct"

    def __init__(self, forget: tuple[str, ...] = ()):
        super().__init__()
        self.forget = forget
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def configure_model(self):
        pass

    def preprocessor(self):
        return Texts()

    def loss(self, batch):
        return self.weight.sum()

    def generate(self, batch):
        return [self.report(int(name)) for name in batch["ids"] if name not in self.forget]

    def embed(self, batch):
        """Sees whether a number is odd, beside much that all studies share."""
        return torch.tensor([[9.0, float(int(name) % 2)] for name in batch["ids"]])

    def report(self, number):
        regions = (RegionReport("heart", "heart", HEARTS[number % 2]), RegionReport("lung", None, LUNGS[0]))
        text = " ".join(region.text for region in regions)
        return Report(str(number), text, raw=f"<{text}>", regions=regions)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class FewStudies(ReportDataModule):
    """Five studies in each split, without files."""

    modality = "ct"
    regions = ("heart", "lung")

    def list_studies(self, split):
        texts = [(str(i), {"lung": LUNGS[i % 2], "heart": HEARTS[i % 2]}) for i in range(5)]
        return [Study(id=name, split=split, regions=regions) for name, regions in texts], []

    def inspect(self, study):
        return study, []

    def draw_phantom(self, train, validation):
        raise AssertionError("not asked for")

    def label_findings(self):
        return lambda text: (
            frozenset({"nodule"} if "nodule" in text else ()) | frozenset({"big"} if "big" in text else ())
        )

    def train_dataloader(self):
        return DataLoader(range(2), collate_fn=lambda numbers: {"ids": [str(number) for number in numbers]})


def trainer(folder: Path, **options) -> L.Trainer:
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
        "use_distributed_sampler": False,  # the DataModule shares out the studies itself
    }
    return L.Trainer(accelerator="cpu", default_root_dir=folder, **(quiet | options))


def data(folder: Path) -> FewStudies:
    module = FewStudies(str(folder), store=None, eval_batch_size=2)
    module.preprocessor = Texts()
    return module


def test_test_writes_and_logs_everything(tmp_path):
    logged = trainer(tmp_path, callbacks=[ClinicalEfficacy()]).test(Parrot(), data(tmp_path), verbose=False)[0]
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["0", "1", "2", "3", "4"]
    assert lines[1] == {
        "id": "1",
        "reference": "The heart is big. A nodule is seen.",
        "prediction": "The heart is big. The lungs are clear.",
        "raw": "<The heart is big. The lungs are clear.>",
        "regions": [
            {"region": "heart", "named": "heart", "reference": HEARTS[1], "prediction": HEARTS[1]},
            {"region": "lung", "named": None, "reference": LUNGS[1], "prediction": LUNGS[0]},
        ],
        "findings": ["big", "nodule"],
        "split": "validation",
    }
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert (result["n"], result["split"], result["phantom"]) == (5, "validation", False)
    assert result["metrics"]["phantom_findings_micro_recall"]["value"] == 0.5
    assert result["metrics"]["region_f1"]["value"] == 0.5  # the heart 1, the lung 0
    assert result["baselines"]["most_frequent_report"]["metrics"]["phantom_findings_micro_f1"]["value"] == 0.0
    assert logged["test/bleu_4"] == pytest.approx(result["metrics"]["bleu_4"]["value"], abs=1e-6)
    assert {f"test/{key}" for key in result["metrics"]} == set(logged)
    table = read_table(tmp_path / "per_study.csv")
    assert table.ids == ["0", "1", "2", "3", "4"]
    assert table.columns["bleu_4"].mean() == result["metrics"]["bleu_4"]["value"]
    assert "nearest_training_report" not in result["baselines"]  # not a phantom


def test_patients_reach_the_lines_and_the_intervals(tmp_path):
    class OfPatients(FewStudies):
        def patient_of(self, study):
            return None if study.id == "4" else f"p{int(study.id) // 2}"

    module = OfPatients(str(tmp_path), store=None, eval_batch_size=2)
    module.preprocessor = Texts()
    trainer(tmp_path, callbacks=[ClinicalEfficacy()]).test(Parrot(), module, verbose=False)
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [line.get("patient") for line in lines] == ["p0", "p0", "p1", "p1", None]
    table = read_table(tmp_path / "per_study.csv")
    assert table.clusters.tolist() == table.columns["patient"].tolist() == [0, 0, 1, 1, 2]
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert result["provenance"]["intervals"]["method"] == "percentile bootstrap over patients"


def test_the_same_predictions_give_the_same_file(tmp_path):
    files = []
    for name in ("a", "b"):
        trainer(tmp_path / name, callbacks=[ClinicalEfficacy()]).test(Parrot(), data(tmp_path), verbose=False)
        files.append([(tmp_path / name / file).read_bytes() for file in ("metrics.json", "predictions.jsonl")])
    assert files[0] == files[1]


def test_validation_logs_what_a_checkpoint_can_monitor(tmp_path):
    best = L.pytorch.callbacks.ModelCheckpoint(tmp_path, monitor="validation/bleu_4", mode="max")
    run = trainer(
        tmp_path, callbacks=[ClinicalEfficacy(), best], enable_checkpointing=True, max_epochs=1, num_sanity_val_steps=1
    )
    run.fit(Parrot(), datamodule=data(tmp_path))
    assert float(best.best_model_score) == pytest.approx(float(run.callback_metrics["validation/bleu_4"]))
    assert 0 < float(run.callback_metrics["validation/region_f1"]) < 1
    assert "validation/meteor" not in run.callback_metrics
    assert not (tmp_path / "metrics.json").exists()


def test_every_other_epoch_is_scored_and_the_others_write_nothing(tmp_path):
    seen, asked = [], []

    class Watch(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            seen.append("validation/bleu_4" in trainer.callback_metrics)

    class Counting(Parrot):
        def generate(self, batch):
            asked.append(self.trainer.current_epoch)
            return super().generate(batch)

    run = trainer(
        tmp_path, callbacks=[ClinicalEfficacy(every_n_epochs=2), Watch()], max_epochs=2, num_sanity_val_steps=0
    )
    run.fit(Counting(), datamodule=data(tmp_path))
    assert seen == [False, True] and set(asked) == {1}


def test_a_study_without_a_report_is_an_error_that_names_it(tmp_path):
    with pytest.raises(RuntimeError, match=r"2 of 5 studies of the test split have no report: 1, 3"):
        trainer(tmp_path, callbacks=[ClinicalEfficacy()]).test(Parrot(forget=("1", "3")), data(tmp_path), verbose=False)
    assert not (tmp_path / "metrics.json").exists()


def test_limited_batches_are_scored_with_a_warning(tmp_path):
    run = trainer(tmp_path, callbacks=[ClinicalEfficacy()], limit_test_batches=1)
    with pytest.warns(UserWarning, match="only 2 of 5 studies"):
        run.test(Parrot(), data(tmp_path), verbose=False)
    assert json.loads((tmp_path / "metrics.json").read_text())["n"] == 2


def test_reports_of_no_study_are_an_error():
    with pytest.raises(RuntimeError, match="1 reports are of no study of the test split: x"):
        check_complete({"x": {}, "a": {}}, [Study(id="a")], "test")
    with pytest.raises(RuntimeError, match="0 of 0"):
        check_complete({}, [], "test")


def test_settings_are_checked():
    with pytest.raises(UsageError, match="choose from reg2rg"):
        ClinicalEfficacy(protocol="reg2rgg")
    with pytest.raises(UsageError, match="every_n_epochs=0"):
        ClinicalEfficacy(every_n_epochs=0)


def test_a_failing_metric_is_recorded_and_the_rest_stands(tmp_path, monkeypatch):
    attempt = engine.attempt
    broken = {"value": None, "status": "failed", "reason": "no luck", "how_to": "wait"}
    monkeypatch.setattr(
        engine, "attempt", lambda metric, pairs: broken if metric.label == "CIDEr" else attempt(metric, pairs)
    )
    logged = trainer(tmp_path, callbacks=[ClinicalEfficacy()]).test(Parrot(), data(tmp_path), verbose=False)[0]
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert result["skipped"]["cider"] == broken
    assert "test/bleu_1" in logged
    assert "test/cider" not in logged


class WriteDown(L.Callback):
    """Leaves what each process logged."""

    def on_test_end(self, trainer, pl_module):
        value = float(trainer.callback_metrics["test/bleu_4"])
        (Path(trainer.default_root_dir) / f"rank{trainer.global_rank}").write_text(str(value))


def test_the_nearest_training_report_is_a_baseline_where_asked_for(tmp_path):
    trainer(tmp_path, callbacks=[ClinicalEfficacy(nearest_report=True)]).test(Parrot(), data(tmp_path), verbose=False)
    baselines = json.loads((tmp_path / "metrics.json").read_text())["baselines"]
    # Training and test studies of one parity have the same report, which the embedding tells apart.
    assert baselines["nearest_training_report"]["metrics"]["bleu_4"]["value"] == 1.0
    assert baselines["most_frequent_report"]["metrics"]["bleu_4"]["value"] < 1.0


def test_a_method_without_an_embedding_has_no_nearest_report(tmp_path, monkeypatch):
    monkeypatch.delattr(Parrot, "embed")
    trainer(tmp_path, callbacks=[ClinicalEfficacy(nearest_report=True)]).test(Parrot(), data(tmp_path), verbose=False)
    assert "nearest_training_report" not in json.loads((tmp_path / "metrics.json").read_text())["baselines"]


def test_a_fault_in_a_baseline_does_not_cost_the_reports(tmp_path, monkeypatch):
    def broken(self, batch):
        raise RuntimeError("no luck")

    monkeypatch.setattr(Parrot, "embed", broken)
    with pytest.raises(RuntimeError, match="no luck"):
        trainer(tmp_path, callbacks=[ClinicalEfficacy(nearest_report=True)]).test(Parrot(), data(tmp_path))
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 5


def test_two_processes_give_what_one_gives(tmp_path):
    """Five studies on two processes: one is padded, and must not be counted twice."""
    for name, processes in (("one", {}), ("two", {"devices": 2, "strategy": "ddp_fork"})):
        run = trainer(tmp_path / name, callbacks=[ClinicalEfficacy(nearest_report=True), WriteDown()], **processes)
        run.test(Parrot(), data(tmp_path), verbose=False)
    for file in ("metrics.json", "predictions.jsonl", "per_study.csv"):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
    written = {(tmp_path / place).read_text() for place in ("one/rank0", "two/rank0", "two/rank1")}
    assert len(written) == 1
