"""What a run was made with: `provenance.json`."""

from __future__ import annotations

import json
import platform
import resource
import time
from contextlib import suppress
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from datamodules.study import DataFault
from zoo.command import EnvironmentFault
from zoo.config import Config
from zoo.environment import git_state, versions
from zoo.run_directory import RunDirectory, atomic_write


class Provenance(Callback):
    """Writes `provenance.json` when a fit begins, and, with what it took, after each epoch and when it ends or fails.

    Args:
        run: The run's folder.
        config: Its configuration.
    """

    def __init__(self, run: RunDirectory, config: Config) -> None:
        self.run, self.config = run, config
        self._started = time.time()
        self._record: dict[str, Any] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raises `DataFault` where a resumed run finds other data than it was begun with."""
        if not trainer.is_global_zero:
            return
        before = json.loads(self.run.provenance.read_text()) if self.run.provenance.is_file() else {}
        fingerprint = trainer.datamodule.fingerprint()  # type: ignore[attr-defined]
        if before.get("data_fingerprint", fingerprint) != fingerprint:
            raise DataFault(f"the data are not those that {self.run.path} was begun with; start a new run")
        self._record = {
            "status": "running",
            "config_hash": self.config.hash(),
            "data_fingerprint": fingerprint,
            "phantom": trainer.datamodule.is_phantom(),  # type: ignore[attr-defined]
            "seed": self.config.values["run"]["seed"],
            "versions": versions(),
            "git": git_state(),
            "devices": device_names(trainer),
            "threads": torch.get_num_threads(),  # sums of floats depend on how many share them
            "earlier_seconds": before.get("earlier_seconds", 0.0) + before.get("wall_seconds", 0.0),
        }
        self._write()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes the time taken, so that it is not lost with a process that is killed."""
        if self._record:
            self._write()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        with suppress(EnvironmentFault):  # a full disk: what it spoilt first is what is told
            self._end("failed")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end("done")

    def _end(self, status: str) -> None:
        if self._record and self.run.path.is_dir():
            self._record["status"] = status
            self._write()

    def _write(self) -> None:
        self._record["wall_seconds"] = round(time.time() - self._started, 3)
        self._record["peak_memory_bytes"] = peak_memory()
        atomic_write(self.run.provenance, json.dumps(self._record, indent=1) + "\n")


def device_names(trainer: L.Trainer) -> list[str]:
    """The devices of this node, by name."""
    if trainer.strategy.root_device.type == "cuda":
        return [torch.cuda.get_device_name(index) for index in range(trainer.num_devices)]
    return [f"{trainer.strategy.root_device.type} ({platform.machine()})"] * trainer.num_devices


def peak_memory() -> dict[str, int]:
    """The most bytes held so far by this process, and by its GPU."""
    scale = 1 if platform.system() == "Darwin" else 1024
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale}
    return peak | ({"gpu": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {})
