"""Lightning's counts of batches, carried over to another number of processes."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class BatchCounts(Callback):
    """Lets a run go on where a batch of all processes holds more or fewer studies than before, also within an epoch.

    Lightning counts the batches of one process: how many of the epoch are left, and which random numbers the next one
    draws (`StepSeeds`), would be wrong by the ratio of the two.

    Args:
        studies: In one batch of all processes together.
    """

    def __init__(self, studies: int) -> None:
        self.studies = studies

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["studies_per_batch"] = self.studies

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Comes before the loops get their counts; a batch that has begun but is not `completed` stays such a one."""
        before = checkpoint.get("studies_per_batch", self.studies)
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            more = counts["ready"] * before // self.studies - counts["ready"]
            counts.update({name: count + more for name, count in counts.items()})
