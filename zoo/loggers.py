"""What a run records while it trains: `metrics.csv`, always, and Weights & Biases, where asked for."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment

from zoo.command import EnvironmentFault
from zoo.run_directory import RunDirectory, atomic_write, remedy

HEADER = ("epoch", "step", "metric", "value")


class MetricsFile(Callback):
    """Writes `metrics.csv`: one observation a row (`epoch,step,metric,value`), steps counted in optimizer steps from 1.

    `train/loss` is the mean over the whole effective batch. A resumed run first drops the rows past its checkpoint, so
    that no step stands there twice or is left out.

    Args:
        run: The run's folder.
        every: Write each so many steps.
    """

    def __init__(self, run: RunDirectory, every: int = 1) -> None:
        self.path, self.every = run.metrics_csv, every
        self._loss: Any = 0.0
        self._rate = 0.0
        self._step = 0
        self._known: set[tuple[int, str]] = set()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        if trainer.is_global_zero:
            rows = [row for row in read_rows(self.path) if int(row[1]) <= trainer.global_step]
            self._known = {(int(row[1]), row[2]) for row in rows}
            atomic_write(self.path, _lines([HEADER, *rows]))

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *batch: Any) -> None:
        # The scheduler moves on before the batch's end: this is the rate that the step is made with.
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *batch: Any) -> None:
        self._loss = self._loss + outputs["loss"].detach().float()  # Lightning has divided it by the accumulation
        if trainer.global_step == self._step:
            return
        self._step, loss, self._loss = trainer.global_step, self._loss, 0.0
        if self._step % self.every == 0:
            loss = trainer.strategy.reduce(loss, reduce_op="mean")
            self._append(trainer, {"train/loss": float(loss), "train/lr": self._rate})

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._append(trainer, _logged(trainer, "validation/"))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._append(trainer, _logged(trainer, "test/"))

    def _append(self, trainer: L.Trainer, metrics: dict[str, float]) -> None:
        new = {name: value for name, value in metrics.items() if (trainer.global_step, name) not in self._known}
        if trainer.is_global_zero and new:
            rows = [(trainer.current_epoch, trainer.global_step, name, repr(value)) for name, value in new.items()]
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(_lines(rows))
            except OSError as error:
                raise EnvironmentFault(f"cannot write {self.path}: {error.strerror}{remedy(error)}") from error


def read_rows(path: Path) -> list[list[str]]:
    """The rows of a `metrics.csv` without its header and without a last line that a crash cut short."""
    if not path.is_file():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0].decode()
    return [row for row in csv.reader(whole.splitlines()[1:]) if len(row) == len(HEADER)]


class Wandb(WandbLogger):
    """W&B that ends no run once it has begun: where it fails it is warned of, and left alone from there on."""

    _failed = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Raises `EnvironmentFault` where it cannot begin."""
        try:
            return super().experiment
        except Exception as error:
            reason = " ".join(str(error).split())
            raise EnvironmentFault(
                f"W&B cannot begin ({reason}); log.wandb=offline writes to the run's folder"
            ) from error

    def log_hyperparams(self, *arguments: Any, **named: Any) -> None:
        self._try(super().log_hyperparams, *arguments, **named)

    def log_metrics(self, *arguments: Any, **named: Any) -> None:
        self._try(super().log_metrics, *arguments, **named)

    def log_text(self, *arguments: Any, **named: Any) -> None:
        self._try(super().log_text, *arguments, **named)

    def finalize(self, *arguments: Any, **named: Any) -> None:
        self._try(super().finalize, *arguments, **named)

    def finish(self) -> None:
        """Writes out what it still holds."""
        self._try(self.experiment.finish)

    def _try(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        if self._failed:
            return
        try:
            call(*arguments, **named)
        except Exception as error:
            self._failed = True
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"warning: W&B failed and is left alone ({reason}); metrics.csv holds all figures", file=sys.stderr)


def build_loggers(
    folder: str, wandb: Literal["off", "offline", "online"] = "off", project: str = "rrg-zoo", text: bool = False
) -> list[Logger]:
    """The loggers of a run beside `metrics.csv`.

    W&B gets numbers only: no console output, code, git state or machine details.

    Args:
        folder: Where its files go.
        wandb: `offline` writes them there, `online` also sends them.
        project: The W&B project.
        text: Also log reports as text. They may identify patients.
    """
    if text:
        warnings.warn("log.text=true: report texts go into the log. Do this only with public data.", stacklevel=2)
    if wandb == "off":
        return []
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # its client would send its own tracebacks to its makers
    import wandb as client

    os.environ["WANDB_SILENT"] = "true"
    quiet = client.Settings(
        console="off", disable_git=True, save_code=False, disable_code=True, x_disable_meta=True,
        x_disable_stats=True, x_disable_machine_info=True,
    )  # fmt: skip
    logger = Wandb(save_dir=folder, name=Path(folder).name, project=project, offline=wandb == "offline", settings=quiet)
    logger._wandb_init.pop("anonymous", None)  # deprecated by W&B, which warns of it
    return [logger]


def log_text(loggers: list[Logger], predictions: Path, most: int = 100) -> None:
    """Sends references and predictions to W&B (`log.text=true` only)."""
    lines = predictions.read_text(encoding="utf-8").split("\n")  # texts hold other line ends
    records = [json.loads(line) for line in lines[:most] if line]
    rows = [[record["id"], record["reference"], record["prediction"]] for record in records]
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_text("reports", columns=["id", "reference", "prediction"], data=rows)


def close(loggers: list[Logger]) -> None:
    """Writes out what W&B still holds."""
    for logger in loggers:
        if isinstance(logger, Wandb):
            logger.finish()


def _logged(trainer: L.Trainer, prefix: str) -> dict[str, float]:
    return {name: float(value) for name, value in sorted(trainer.callback_metrics.items()) if name.startswith(prefix)}


def _lines(rows: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
