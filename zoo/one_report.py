"""From one study to its report: a trained model is built, asked, and its answer written as JSON and as a page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
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


def generate(config: Config, model: ReportGenerator, checkpoint: Path, study: Study) -> Report:
    """The model's report, with the checkpoint's weights and in the precision that it was trained in.

    Raises:
        DataFault: The checkpoint cannot be read, or is of another model.
        Incomplete: The model gave no report, or an empty one.
    """
    preprocessor = model.preprocessor()
    sample = preprocessor(study, preprocessor.arrays(study), None)
    reports = _Reports(checkpoint)
    trainer = L.Trainer(
        callbacks=[reports],
        accelerator=config.values["trainer"]["accelerator"],
        devices=1,
        precision=config.values["trainer"]["precision"],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    samples: Any = [sample]
    trainer.predict(model, DataLoader(samples, collate_fn=preprocessor.collate), return_predictions=False)
    if len(reports.kept) != 1 or not reports.kept[0].text.strip():
        found = "an empty report" if len(reports.kept) == 1 else f"{len(reports.kept)} reports"
        raise Incomplete(f"asked for one report, the model gave {found}")
    return reports.kept[0]


class _Reports(Callback):
    """Loads the weights once nothing rebuilds the model any more, and keeps the reports as they are.

    What `Trainer.predict` returns it copies field by field, which `Report` forbids.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.kept: list[Report] = []

    def on_predict_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        load_checkpoint(pl_module, self.checkpoint)

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *batch: Any) -> None:
        self.kept += outputs


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
