"""From one study to its report: a trained model is built, asked, and its answer written as JSON and as a page."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from datamodules.study import Study
from lit_modules.report_generator import Heatmap, Report, ReportGenerator
from zoo.config import Config
from zoo.gallery import write_study_page
from zoo.gallery.page import Entry, RegionRow
from zoo.provenance import git_state, versions
from zoo.registry.load import load_checkpoint
from zoo.run_directory import RunDirectory, atomic_write

NOTICE = "Research use only; not a medical device. Do not share: may hold patient data."
PHANTOM_NOTICE = "The model was trained on drawn patients (phantom): what it says about a real one means nothing."


class Incomplete(Exception):
    """The model said less than it was asked for; the command ends with exit code 1."""


def ask(
    config: Config,
    model: ReportGenerator,
    checkpoint: Path | None,
    studies: Sequence[Study],
    done: Callable[[], None] = lambda: None,
) -> list[tuple[Report, Mapping[str, Heatmap]]]:
    """What the model says of each study and where it looked, in the precision that it was trained in.

    Args:
        config: The run's.
        model: Built or not.
        checkpoint: Its weights; `None`: it is asked as it is built.
        studies: With their pixels.
        done: Called after each study.

    Raises:
        DataFault: The checkpoint cannot be read, or is of another model.
        Incomplete: The model gave another number of reports than one of a study.
    """
    preprocessor = model.preprocessor()
    samples: Any = [preprocessor(study, preprocessor.arrays(study), None) for study in studies]
    asking = _Asking(checkpoint, studies, done)
    trainer = L.Trainer(
        callbacks=[asking],
        accelerator=config.values["trainer"]["accelerator"],
        devices=1,
        precision=config.values["trainer"]["precision"],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.predict(model, DataLoader(samples, collate_fn=preprocessor.collate), return_predictions=False)
    return asking.answers


class _Asking(Callback):
    """Loads the weights once nothing rebuilds the model any more; asks where it looked while it is on its device.

    What `Trainer.predict` returns it copies field by field, which `Report` forbids.
    """

    def __init__(self, checkpoint: Path | None, studies: Sequence[Study], done: Callable[[], None]) -> None:
        self.checkpoint, self.studies, self.done = checkpoint, studies, done
        self.answers: list[tuple[Report, Mapping[str, Heatmap]]] = []

    def on_predict_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.checkpoint is not None:
            load_checkpoint(pl_module, self.checkpoint)

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if len(outputs) != 1:
            raise Incomplete(f"asked for one report, the model gave {len(outputs)} reports")
        report = outputs[0]
        self.answers.append((report, dict(pl_module.explain(self.studies[batch_idx], report.raw or report.text))))
        self.done()


def silent_regions(study: Study, report: Report) -> list[str]:
    """The regions that were shown and that a grounding method says nothing about."""
    if report.regions is None:
        return []
    said = {row.region for row in report.regions if row.text.strip()}
    return [name for name, mask in (study.masks or {}).items() if mask.any() and name not in said]


def write_report(
    folder: Path,
    config: Config,
    run: RunDirectory,
    checkpoint: Path,
    regions: Sequence[str],
    study: Study,
    report: Report,
    heatmaps: Mapping[str, Heatmap],
) -> Path:
    """Writes `report.json` and `report.html`; returns the page."""
    made_by = json.loads(run.provenance.read_text("utf-8")) if run.provenance.is_file() else {}
    notice = f"{NOTICE} {PHANTOM_NOTICE}" if made_by.get("phantom") else NOTICE
    rows = [{"region": row.region, "named": row.named, "text": row.text} for row in report.regions or ()]
    record = {
        "id": study.id,
        "checkpoint": str(checkpoint),
        "notice": notice,
        "regions": rows,
        "silent_regions": silent_regions(study, report),
        "text": report.text,
        "raw": report.raw,
        "provenance": {
            "files": {name: str(file) for name, file in study.files.items()},
            "config_hash": config.hash(),
            "trained_on": made_by.get("data_fingerprint"),
            "git": git_state(),
            "versions": versions(),
        },
    }
    if study.image is not None:
        record["boxes"] = {name: [list(box) for box in boxes] for name, boxes in (study.boxes or {}).items()}
        record["heatmaps"] = {name: _plain(heatmap) for name, heatmap in heatmaps.items()}
    atomic_write(folder / "report.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    said = {row.region: row for row in report.regions or ()}
    shown = [name for name in regions if name in said or name in (study.masks or {})]
    entry = Entry(
        study=study,
        prediction=report.text,
        raw=report.raw,
        regions=tuple(
            RegionRow(name, said[name].named, prediction=said[name].text or None) if name in said else RegionRow(name)
            for name in (dict.fromkeys([*shown, *said]) if report.regions is not None else ())
        ),
    )
    caption = f"{notice} Method {config.method}, recipe {config.recipe}, checkpoint {checkpoint}."
    return write_study_page(folder / "report.html", study, entry, tuple(regions), caption, heatmaps)


def _plain(heatmap: Heatmap) -> dict[str, Any]:
    """As JSON holds it; a value that is not finite is `null` there."""
    rows = heatmap.values.astype(float).tolist()
    return {
        "title": heatmap.title,
        "note": heatmap.note,
        "frame": list(heatmap.frame),
        "signed": heatmap.signed,
        "values": [[value if math.isfinite(value) else None for value in row] for row in rows],
    }
