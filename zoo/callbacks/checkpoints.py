"""Checkpoints that a crash cannot spoil, and randomness that a resumed run repeats exactly."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from zoo.callbacks.guard import StepGuard
from zoo.command import EnvironmentFault, UsageError
from zoo.run_directory import RunDirectory, remedy, sync_folder


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the place, flushes to the disk, then renames: the old checkpoint is whole until the new one is.

    Lightning's own writer goes through `$TMPDIR` and copies where that is another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises `EnvironmentFault` where the disk does not take it; the checkpoint before stays."""
        place = Path(path)
        partial = place.with_name(f"{place.name}.partial")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(place)
            sync_folder(place.parent)
        except (OSError, RuntimeError) as error:  # torch reports what its file tells it as a RuntimeError
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise EnvironmentFault(f"cannot write the checkpoint {place}: {_reason(error, place)}") from error


def _reason(error: OSError | RuntimeError, place: Path) -> str:
    """Why a checkpoint could not be written, what to do, and what there is still."""
    cause = error if isinstance(error, OSError) else error.__context__
    kept = "the one before is kept" if place.exists() else "there is none before it"
    if isinstance(cause, OSError):
        return f"{cause.strerror}{remedy(cause)}; {kept}"
    return f"{(str(error).splitlines() or ['no reason given'])[0]}; {kept}"


class RunCheckpoints(Checkpoint):
    """Keeps `checkpoints/last` to resume from and `checkpoints/best` by a monitored value.

    `last` is written at each epoch's end, after validation, and every `every` optimizer steps; never between a step
    and the validation that follows it, so that a resumed run repeats no validation and leaves none out. A run that is
    told to end (`StepGuard`) writes it at the first of these places and ends there.

    Args:
        run: The run's folder.
        config: The run's configuration, plain; checkpoints carry it.
        monitor: The logged value that `best` follows.
        mode: `min` or `max`.
        every: Optimizer steps between two `last`; `None` for epochs' ends only.
        guard: Knows whether the run ends.
    """

    def __init__(
        self, run: RunDirectory, config: Mapping[str, Any], monitor: str, mode: str, every: int | None, guard: StepGuard
    ) -> None:
        self.guard = guard
        self.run, self.config, self.monitor, self.every = run, dict(config), monitor, every
        self.sign = 1.0 if mode == "max" else -1.0
        self.best_score: float | None = None
        self.best_step: int | None = None
        self._step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any) -> None:
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if stepped and self._due(trainer) and not trainer.is_last_batch and not _validation_follows(trainer):
            self._save_last(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if trainer.strategy.broadcast(self._improved(trainer)):
            trainer.save_checkpoint(self.run.best)
        if self._due(trainer) and not trainer.is_last_batch:
            self._save_last(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save_last(trainer)

    def _save_last(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.run.last)
        self.guard.leave()

    def _due(self, trainer: L.Trainer) -> bool:
        return self.guard.ending or bool(self.every) and trainer.global_step % (self.every or 1) == 0

    def _improved(self, trainer: L.Trainer) -> bool:
        if self.monitor not in trainer.callback_metrics:
            names = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("validation/")))
            raise UsageError(f"run.monitor={self.monitor} was not logged by the validation; choose one of: {names}")
        score = float(trainer.callback_metrics[self.monitor])
        if math.isnan(score) or (self.best_score is not None and self.sign * score <= self.sign * self.best_score):
            return False
        self.best_score, self.best_step = score, trainer.global_step
        return True


def _validation_follows(trainer: L.Trainer) -> bool:
    """Whether Lightning validates between this batch and the next."""
    every = trainer.val_check_batch
    if not every or not math.isfinite(every) or not trainer.enable_validation:
        return False
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready % int(every) == 0


class StepSeeds(Callback):
    """Seeds every generator anew at each step from (seed, what is done, which batch of all processes).

    Dropout and sampling then depend on where the run is and not on how it came there: a resumed run draws what the
    uninterrupted one drew, and a validation more or less changes no training step. Nothing has to be saved for it.

    Args:
        seed: The run's seed.
    """

    STAGES = {"build": 0, "train": 1, "validation": 2, "test": 3, "predict": 4}

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Comes before the networks are built, and after the data are prepared, which may draw numbers or not."""
        self._seed("build", 0)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any) -> None:
        self._seed("train", _number(trainer, trainer.fit_loop.total_batch_idx))

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any) -> None:
        self._seed("validation", _number(trainer, batch[1]))

    def on_test_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any) -> None:
        self._seed("test", _number(trainer, batch[1]))

    def on_predict_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any) -> None:
        self._seed("predict", _number(trainer, batch[1]))

    def _seed(self, stage: str, index: int) -> None:
        sequence = np.random.SeedSequence([self.seed, self.STAGES[stage], index, 0])
        words = [int(word) for word in sequence.generate_state(3)]
        random.seed(words[0])
        np.random.seed(words[1])
        torch.manual_seed(words[2])


def _number(trainer: L.Trainer, batch: int) -> int:
    """The number that a process's batch has where one process makes all of them (`resumable_loader.deal`)."""
    return batch * trainer.world_size + trainer.global_rank
