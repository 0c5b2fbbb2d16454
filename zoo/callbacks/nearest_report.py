"""The report of the nearest training study: what retrieval alone scores, with the method's own eyes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from datamodules.report_datamodule import ReportDataModule
from lit_modules.report_generator import ReportGenerator
from zoo.metrics.baselines import report_of


def nearest_reports(trainer: L.Trainer, model: ReportGenerator, data: ReportDataModule, split: str) -> dict[str, str]:
    """For each study of a split, the report of the training study whose embedding is nearest.

    Embeddings are the method's own (`ReportGenerator.embed`), centred on the training mean and compared by cosine; of
    equally near studies the first in the dataset's order counts. All processes take part and get the same answer.

    Returns:
        Study id → report; empty where the method gives no embedding.
    """
    known = _embeddings(trainer, model, data, "train")
    asked = _embeddings(trainer, model, data, split)
    if not known or not asked:
        return {}
    studies = [study for study in data.studies("train") if study.id in known]
    keys = torch.stack([known[study.id] for study in studies]).float()
    centre = keys.mean(0)
    nearest = F.normalize(torch.stack(list(asked.values())).float() - centre) @ F.normalize(keys - centre).T
    reports = [report_of(study, data.regions) for study in studies]
    return {name: reports[int(row.argmax())] for name, row in zip(asked, nearest, strict=True)}


def _embeddings(trainer: L.Trainer, model: ReportGenerator, data: ReportDataModule, split: str) -> dict[str, Tensor]:
    """Study id → embedding, of all processes."""
    found: dict[str, Tensor] = {}
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        for batch in data.evaluation_dataloader(split):
            vectors = model.embed(trainer.strategy.batch_to_device(batch))
            if vectors is None:
                return {}
            found |= dict(zip(batch["ids"], vectors.float().cpu(), strict=True))
    return _gathered(found)


def _gathered(found: Mapping[str, Any]) -> dict[str, Any]:
    if not (dist.is_available() and dist.is_initialized()):
        return dict(found)
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, found)
    return {name: vector for part in parts for name, vector in part.items()}
