"""Scores a run's reports: gathers them from all processes, checks that none is missing, computes the metrics once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from datamodules.report_datamodule import ReportDataModule
from datamodules.study import Study
from lit_modules.report_generator import Report, ReportGenerator
from zoo.callbacks.nearest_report import nearest_reports
from zoo.command import UsageError
from zoo.metrics import DEFAULT_PROTOCOL
from zoo.metrics.baselines import report_of, trivial_reports
from zoo.metrics.pairs import Tools, default_cache
from zoo.metrics.per_study import table_of, write_table
from zoo.metrics.protocols import PROTOCOLS
from zoo.metrics.run import Scoring, quick_metrics, run_metrics
from zoo.metrics.table import absent_metrics
from zoo.run_directory import RunDirectory, atomic_write

Said = dict[str, Any]  # a Report as plain data


class ClinicalEfficacy(L.Callback):
    """Metrics of the generated reports, logged as `validation/bleu_4`, `test/region_f1`, ….

    Validation computes the cheap metrics; the test computes all of them, those of groups of studies apart
    (`test/positive/bleu_4`), and writes `predictions.jsonl`, `metrics.json` and `per_study.csv` into the Trainer's
    `default_root_dir`. `metrics.json` holds no time and no place: the same predictions give the same file.

    Args:
        protocol: How texts are scored, a key of `zoo.metrics.protocols.PROTOCOLS`.
        every_n_epochs: Score the validation after every so many epochs; the others write no reports.
        weights: A folder with the weights of metrics that have some (`docs/protocols.md`).
        online: Whether those weights may be fetched from the hub.
        rules14: Add the figures of the rule labeller for drawn radiographs.
        nearest_report: Score the nearest training report as a baseline, which embeds every training study; `None` does
            so on phantom data only.
    """

    def __init__(
        self,
        protocol: str = DEFAULT_PROTOCOL,
        every_n_epochs: int = 1,
        weights: str | None = None,
        online: bool = False,
        rules14: bool = False,
        nearest_report: bool | None = None,
    ) -> None:
        if protocol not in PROTOCOLS:
            raise UsageError(f"metrics.protocol={protocol}: choose from {', '.join(PROTOCOLS)}")
        if every_n_epochs < 1:
            raise UsageError(f"metrics.every_n_epochs={every_n_epochs}: must be at least 1")
        self.protocol, self.every_n_epochs, self.rules14 = protocol, every_n_epochs, rules14
        self.tools = Tools(Path(weights) if weights else None, online, cache=default_cache())
        self.nearest_report = nearest_report
        self._said: list[Said] = []

    # Collecting

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets what an interrupted validation left, and asks for no reports that would not be scored."""
        self._said = []
        if isinstance(pl_module, ReportGenerator):
            pl_module.reports_in_validation = self._due(trainer)

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets what an interrupted test left."""
        self._said = []

    def _due(self, trainer: L.Trainer) -> bool:
        """Whether this validation is scored."""
        return not trainer.sanity_checking and (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the batch's reports."""
        self._said += [_plain(report) for report in outputs["reports"]]

    on_test_batch_end = on_validation_batch_end

    # Scoring

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the cheap metrics."""
        if not self._due(trainer):
            return
        data = _datamodule(trainer)
        lines = self._lines(trainer, data, "validation")
        result = quick_metrics(lines, self._scoring(data)) if trainer.is_global_zero else None
        self._log(trainer, pl_module, "validation", result)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs all metrics and writes `predictions.jsonl`, `metrics.json` and `per_study.csv`."""
        data = _datamodule(trainer)
        lines = self._lines(trainer, data, "test")
        run, result = RunDirectory(Path(trainer.default_root_dir)), None
        if trainer.is_global_zero:  # first of all, so that no fault in scoring costs the reports
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            atomic_write(run.predictions, text)
        nearest = self._nearest(trainer, pl_module, data)  # every process takes part
        if trainer.is_global_zero:
            scoring = self._scoring(data)
            trivial = trivial_reports(data.studies("train"), data.regions, scoring.label)
            baselines = {name: {line["id"]: report for line in lines} for name, report in trivial.items()} | nearest
            result = run_metrics(lines, scoring, baselines, progress=trainer.progress_bar_callback is not None)
            result = {"phantom": data.is_phantom(), "split": lines[0]["split"]} | result
            write_table(run.per_study, table_of([line["id"] for line in lines], result))
            atomic_write(run.metrics, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
        self._log(trainer, pl_module, "test", result)

    def _scoring(self, data: ReportDataModule) -> Scoring:
        return Scoring(self.protocol, data.regions, data.label_findings(), self.rules14, self.tools)

    def _nearest(
        self, trainer: L.Trainer, pl_module: L.LightningModule, data: ReportDataModule
    ) -> dict[str, dict[str, str]]:
        wanted = data.is_phantom() if self.nearest_report is None else self.nearest_report
        if not wanted or not isinstance(pl_module, ReportGenerator):
            return {}
        reports = nearest_reports(trainer, pl_module, data, "test")
        return {"nearest_training_report": reports} if reports else {}

    def _lines(self, trainer: L.Trainer, data: ReportDataModule, split: str) -> list[dict[str, Any]]:
        """The lines of `predictions.jsonl`, in the dataset's order, on every process."""
        said = {report["id"]: report for part in _gather(self._said) for report in part}
        self._said = []
        studies = data.studies(split)
        limit = trainer.limit_val_batches if split == "validation" else trainer.limit_test_batches
        check_complete(said, studies, split, partial=isinstance(limit, int) or limit < 1.0)  # 1 is one batch, 1.0 all
        label = data.label_findings()
        return [_line(study, said[study.id], data, label) for study in studies if study.id in said]

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule, split: str, result: dict[str, Any] | None) -> None:
        groups = {f"{split}/{name}": part for name, part in result.get("groups", {}).items()} if result else {}
        parts = {split: result} | groups if result else {}
        numbers = {
            f"{of}/{key}": entry["value"] for of, part in parts.items() for key, entry in part["metrics"].items()
        }
        numbers = trainer.strategy.broadcast(numbers)  # every process logs, so that a checkpoint may monitor them
        pl_module.log_dict(numbers)
        for (reason, how_to), names in (absent_metrics(result) if result else {}).items():
            rank_zero_info(f"{split}: {', '.join(names)} absent: {reason}; {how_to}")


def check_complete(said: dict[str, Said], studies: list[Study], split: str, partial: bool = False) -> None:
    """Every study has a report, and every report a study.

    Args:
        said: Study id → report.
        studies: The studies that were to be reported.
        split: Their split, for the message.
        partial: The Trainer was told to take only some batches.

    Raises:
        RuntimeError: Reports are missing, or belong to no study.
    """
    expected = [study.id for study in studies]
    missing = [name for name in expected if name not in said]
    unknown = sorted(set(said) - set(expected))
    if unknown:
        raise RuntimeError(f"{len(unknown)} reports are of no study of the {split} split: {', '.join(unknown[:5])}")
    if partial and said:
        rank_zero_warn(f"only {len(said)} of {len(expected)} studies of the {split} split were reported, as limited")
    elif missing or not expected:
        names = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        raise RuntimeError(f"{len(missing)} of {len(expected)} studies of the {split} split have no report: {names}")


def _plain(report: Report) -> Said:
    regions = [{"region": row.region, "named": row.named, "text": row.text} for row in report.regions or ()]
    return {"id": report.study_id, "text": report.text, "raw": report.raw, "regions": regions}


def _line(study: Study, said: Said, data: ReportDataModule, label: Any) -> dict[str, Any]:
    reference = report_of(study, data.regions)
    known = study.regions or {}
    regions = [
        {
            "region": row["region"],
            "named": row["named"],
            "reference": known.get(row["region"]),
            "prediction": row["text"],
        }
        for row in said["regions"]
    ]
    line = {
        "id": study.id,
        "reference": reference,
        "prediction": said["text"],
        "raw": said["raw"],
        "regions": regions,
        "findings": None if label is None else sorted(label(reference)),
        "split": study.split,
    }
    group, examination, patient = data.group_of(study), data.examination_of(study), data.patient_of(study)
    line |= {} if group is None else {"group": group}
    line |= {} if patient is None else {"patient": patient}
    return line | ({} if examination == study.id else {"examination": examination})


def _gather(said: list[Said]) -> list[list[Said]]:
    if not (dist.is_available() and dist.is_initialized()):
        return [said]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, said)
    return parts


def _datamodule(trainer: L.Trainer) -> ReportDataModule:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, ReportDataModule):
        raise RuntimeError("give the Trainer a ReportDataModule: its studies are the references")
    return data
