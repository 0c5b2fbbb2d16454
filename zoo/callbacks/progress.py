"""Progress without a terminal: a line now and then, with the time that is left."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from rich.console import Console


def progress_bar() -> ProgressBar:
    """Bars in a terminal, lines elsewhere (a log file, a pipe, a notebook's output)."""
    return RichProgressBar(refresh_rate=1, leave=False) if Console().is_terminal else ProgressLines()


class ProgressLines(ProgressBar):
    """Prints a line about training, validation and test every `seconds`, and at each end.

    Args:
        seconds: The least time between two lines.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        super().__init__()
        self.seconds = seconds
        self._enabled = True
        self._begun = self._said = 0.0
        self._before: int | None = None  # batches of an epoch that a resumed run had behind it

    def disable(self) -> None:
        """Called by Lightning on all processes but the first."""
        self._enabled = False

    def on_train_start(self, *_: Any) -> None:
        self._begin()  # a run that is resumed within an epoch does not start it

    def on_train_epoch_start(self, *_: Any) -> None:
        self._begin()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any) -> None:
        done, total = batch[2] + 1, int(self.total_train_batches)
        metrics = ", ".join(f"{name} {float(value):.4g}" for name, value in trainer.progress_bar_metrics.items())
        self._say(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", done, total, metrics)

    def on_validation_start(self, *_: Any) -> None:
        self._begin()

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any) -> None:
        self._say("validating", batch[2] + 1, int(sum(trainer.num_val_batches)))

    def on_test_start(self, *_: Any) -> None:
        self._begin()

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any) -> None:
        self._say("testing", batch[2] + 1, int(sum(trainer.num_test_batches)))

    def on_predict_start(self, *_: Any) -> None:
        self._begin()

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any) -> None:
        self._say("predicting", batch[2] + 1, int(sum(trainer.num_predict_batches)))

    def _begin(self) -> None:
        self._begun = self._said = time.monotonic()
        self._before = None

    def _say(self, what: str, done: int, total: int, more: str = "") -> None:
        now = time.monotonic()
        self._before = done - 1 if self._before is None else self._before
        if not self._enabled or (done < total and now - self._said < self.seconds):
            return
        self._said = now
        left = timedelta(seconds=round((now - self._begun) / (done - self._before) * (total - done)))
        print(f"{what}: {done}/{total}, {left} left{', ' if more else ''}{more}", flush=True)
