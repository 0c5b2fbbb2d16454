"""The Trainer of a run: devices, effective batch, callbacks, and a quiet Lightning."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from safetensors.torch import save
from torch import Tensor

from datamodules.report_datamodule import ReportDataModule
from datamodules.study import DataFault
from lit_modules.report_generator import Requirement
from zoo import processes
from zoo.callbacks.batch_counts import BatchCounts
from zoo.callbacks.checkpoints import AtomicCheckpointIO, RunCheckpoints, StepSeeds
from zoo.callbacks.guard import StepGuard
from zoo.callbacks.progress import progress_bar
from zoo.command import EnvironmentFault, UsageError
from zoo.config import Config
from zoo.loggers import MetricsFile, build_loggers
from zoo.provenance import Provenance
from zoo.run_directory import RunDirectory, atomic_write
from zoo.strategies import build_strategy


@dataclass(frozen=True)
class EffectiveBatch:
    """How the studies of one optimizer step are spread."""

    micro: int
    accumulation: int
    devices: int
    nodes: int

    @property
    def total(self) -> int:
        """Studies in one optimizer step."""
        return self.micro * self.accumulation * self.devices * self.nodes

    def __str__(self) -> str:
        parts = f"{self.micro} micro × {self.accumulation} accumulation × {self.devices} devices × {self.nodes} nodes"
        return f"{self.total} studies = {parts}"


def effective_batch(config: Config) -> EffectiveBatch:
    """The accumulation that makes `data.global_batch_size`.

    Raises:
        UsageError: None does; with the values that would.
    """
    data, nodes = config.values["data"], config.values["trainer"]["num_nodes"]
    wanted, micro, devices = data["global_batch_size"], data["micro_batch_size"], device_count(config)
    step = micro * devices * nodes
    if wanted % step:
        below = wanted // step * step
        could = [f"data.global_batch_size={size}" for size in (below, below + step) if size]
        fitting = [size for size in range(micro, 0, -1) if wanted % (size * devices * nodes) == 0][:1]
        could += [f"data.micro_batch_size={size}" for size in fitting]
        raise UsageError(
            f"data.global_batch_size={wanted} is no multiple of {step} = data.micro_batch_size {micro} × {devices} "
            f"devices × {nodes} nodes; these would do: {', '.join(could)}"
        )
    return EffectiveBatch(micro, wanted // step, devices, nodes)


def on_cpu(config: Config) -> bool:
    """Whether a run computes on the CPU."""
    accelerator = config.values["trainer"]["accelerator"]
    return accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())


def device_count(config: Config) -> int:
    """Devices per node that `trainer.devices` means here."""
    devices = config.values["trainer"]["devices"]
    if isinstance(devices, str) and devices.lstrip("-").isdigit():
        devices = int(devices)
    if devices in ("auto", -1):
        return 1 if on_cpu(config) else max(1, torch.cuda.device_count())
    if isinstance(devices, str):
        devices = devices.split(",")
    count = len(devices) if isinstance(devices, list) else devices
    if not isinstance(count, int) or count < 1:
        raise UsageError(f"trainer.devices={devices!r}: give a number, a list such as [0,1], or auto")
    return count


def model_and_data(config: Config) -> tuple[Any, ReportDataModule]:
    """A run's method, its networks not yet built, and its data, seeded, once nothing is missing that they need.

    Raises:
        UsageError: The processes that were started are not those of the settings, or a setting is wrong.
        DataFault, EnvironmentFault: What is missing, and what to do about it.
    """
    batch = effective_batch(config)
    processes.check(batch.devices, batch.nodes)
    seed_everything(config.values["run"]["seed"])
    model, data = config.build("model"), config.build("data")
    require(data_needs(data), DataFault)
    require([*model.requirements(), *device_needs(config)], EnvironmentFault)
    data.preprocessor = model.preprocessor()
    return model, data


def build_trainer(config: Config, run: RunDirectory, callbacks: list[Callback]) -> L.Trainer:
    """The Trainer of a fit, with what every run has: metrics file, checkpoints, seeds, provenance, progress.

    Raises:
        EnvironmentFault: The devices asked for are not there.
    """
    settings = dict(config.values["trainer"])
    here = config.build("run")
    batch = effective_batch(config)
    metrics, provenance = MetricsFile(run, settings["log_every_n_steps"] or 1), Provenance(run, config)
    guard = StepGuard(run)
    own: list[Callback] = [
        StepSeeds(here.seed), *callbacks, metrics, WholeBatches(batch), provenance, guard,
        BatchCounts(batch.total // batch.accumulation),
        RunCheckpoints(run, config.plain(), here.monitor, here.mode, here.checkpoint_every, guard),
    ]  # fmt: skip
    if config.untrained:
        own.append(Untrained(metrics, provenance))
    if settings["enable_progress_bar"] is not False:
        own.append(progress_bar())
    settings["strategy"] = build_strategy(settings["strategy"], on_cpu(config), batch.devices * batch.nodes)
    loggers = build_loggers(str(run.path), **config.values["log"])
    try:
        return L.Trainer(
            **settings, accumulate_grad_batches=batch.accumulation, callbacks=own, logger=loggers or False,
            plugins=[AtomicCheckpointIO(), processes.cluster_environment()], default_root_dir=run.path,
            enable_checkpointing=True, use_distributed_sampler=False,  # the DataModule shares out the studies itself
        )  # fmt: skip
    except (RuntimeError, MisconfigurationException) as error:
        raise EnvironmentFault(f"these devices cannot be used: {' '.join(str(error).split())}") from error


class WholeBatches(Callback):
    """Ends each epoch after the last whole effective batch, as the authors' trainer does.

    A rest would be a step of another size, and DeepSpeed would carry it over into the next epoch.
    """

    def __init__(self, batch: EffectiveBatch) -> None:
        self.batch = batch

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raises `UsageError` where the training split is smaller than one effective batch."""
        studies = len(trainer.datamodule.studies("train"))  # type: ignore[attr-defined]
        batches = studies // (self.batch.micro * trainer.world_size)
        limit = trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        whole = batches // self.batch.accumulation * self.batch.accumulation
        if whole == 0:
            raise UsageError(
                f"the training split gives {batches} micro-batches to each process, and one step takes "
                f"{self.batch.accumulation}: lower data.global_batch_size (now {self.batch.total})"
            )
        trainer.limit_train_batches = whole


class Untrained(Callback):
    """Begins the records of a run that trains nothing when its test begins; those of others begin with the fit."""

    def __init__(self, metrics: MetricsFile, provenance: Provenance) -> None:
        self.metrics, self.provenance = metrics, provenance

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.provenance.on_fit_start(trainer, pl_module)
        self.metrics.on_train_start(trainer, pl_module)


NOISE = (
    r".*does not have many workers.*",
    r".*litlogger.*",
    r".*litmodels.*",
    r".*No positive class.*",
    r".*module\(s\) in eval mode at the start of training.*",  # frozen encoders are
    r".*is smaller than the logging interval.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*lr_scheduler\.step\(\).*before.*optimizer\.step\(\).*",
    r".*`_register_pytree_node` is deprecated.*",
    r".*is_gradient_checkpointing.*",
    r".*It is recommended to use `self\.log\('(validation|test)/.*sync_dist=True.*",  # the metric callback has gathered
    r".*torch\.jit\.script.*is deprecated.*",
)


def quiet() -> None:
    """Silences what a user can do nothing about."""
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning", "deepspeed", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # advises to install what `zoo.command.run` shuts out


def seed_everything(seed: int) -> None:
    """Seeds python, numpy, torch and the loaders' workers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        L.seed_everything(seed, workers=True, verbose=False)


def require(needs: Iterable[Requirement], kind: type[Exception]) -> None:
    """Ends the command, before anything is built, where something is missing.

    Raises:
        kind: Names everything that is missing, and what to do about it.
    """
    lines = [f"{need.what}: {need.how}" for need in needs if not need.met]
    if lines:
        raise kind("\n       ".join(lines))


def data_needs(data: ReportDataModule) -> list[Requirement]:
    """What the data need that a user must bring."""
    return [Requirement(*item) for item in data.requirements()]


def device_needs(config: Config) -> list[Requirement]:
    """The GPUs that the settings ask for."""
    if config.values["trainer"]["accelerator"] != "gpu":
        return []
    there, wanted = torch.cuda.device_count(), device_count(config)
    return [Requirement(f"{wanted} GPUs", there >= wanted, f"there are {there}; set trainer.devices")]


def checkpoint_to_test(run: RunDirectory, wanted: str) -> Path:
    """`best` or `last`, and `last` where no validation chose a best.

    Raises:
        EnvironmentFault: The fit wrote none.
    """
    found: Any = run.checkpoint(wanted) or run.checkpoint("last")
    if found is None:
        raise EnvironmentFault(f"no checkpoint in {run.path / 'checkpoints'}")
    return found


TESTED_LIMIT = 1 << 30  # bytes


def write_tested(run: RunDirectory, checkpoint: Path, config: Config) -> Path:
    """Writes the weights of the checkpoint that was tested, without the optimizer, as `checkpoints/tested.safetensors`.

    Its metadata name `method`, `recipe`, `config_hash`, `frozen_files` (JSON: prefix → what brings the rest; of a file
    on this machine its name and sha256, for its path is nobody else's) and `tied` (JSON: a name that is left out → the
    name with the same tensor).

    Returns:
        Where the tested weights lie: that file, or the checkpoint where they take more than 1 GiB, which is not spent
        twice.
    """
    content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    weights, tied = untied(content["state_dict"])
    if sum(weight.nbytes for weight in weights.values()) > TESTED_LIMIT:
        return checkpoint
    of_run = {"method": config.method, "recipe": config.recipe, "config_hash": config.hash()}
    frozen = {prefix: without_path(source) for prefix, source in content["frozen_files"].items()}
    of_weights = {"frozen_files": json.dumps(frozen), "tied": json.dumps(tied)}
    atomic_write(run.tested, save(weights, {"format": "pt", **of_run, **of_weights}))
    return run.tested


def without_path(source: str) -> str:
    """A hub id, a phantom or a folder of the project as it is; of anything else that lies here its name and hash."""
    path = Path(source)
    if source.startswith("checkpoints/") or not path.exists():
        return source
    if not path.is_file():
        return path.name
    with path.open("rb") as opened:
        return f"{path.name} sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"


def untied(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor once, under its first name, and each other name → that one."""
    once: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, weight in weights.items():
        owner = first.setdefault((weight.data_ptr(), weight.dtype, weight.shape, weight.stride()), name)
        if owner == name or not weight.numel():  # all empty tensors lie at 0
            once[name] = weight.contiguous()
        else:
            tied[name] = owner
    return once, tied
