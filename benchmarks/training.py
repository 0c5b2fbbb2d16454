"""What one optimizer step of a method costs: seconds, tokens, memory, and the share of the devices that is used.

    python -m benchmarks.training --method reg2rg --recipe paper --random trainer.devices=8 trainer.strategy=zero2

runs the method by its own recipe: the real Trainer, strategy, optimizer and loss, on one micro-batch that every device
is given again and again, so that each step costs the same and no reading is measured. Its studies are the phantom's
patients, drawn in the dataset's layout and prepared by the method itself, or, where `data.root` is given, the first
ones there. With `--random` no weights are needed: every network is built at its true size with random ones, on the
device that trains it.

A JSON in benchmarks/results/ holds what came out, on which hardware, with which versions, and the command;
`python -m benchmarks.training --show` prints all of them. MFU is the operations that the step asks for
(`benchmarks.flops`; none for what is recomputed) over those that the devices can make in that time, dense, in bf16.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import random
import re
import resource
import shlex
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from benchmarks.flops import Cost, count
from datamodules.study import DataFault
from lit_modules.nets.backbones import RANDOM, is_made
from zoo import command, machine, processes
from zoo.callbacks.progress import progress_bar
from zoo.config import Config
from zoo.environment import git_state, versions
from zoo.run_directory import atomic_write
from zoo.strategies import build_strategy
from zoo.trainer import EffectiveBatch, effective_batch, model_and_data, on_cpu, quiet

RESULTS = Path(__file__).parent / "results"
PATIENTS = 4  # are drawn; a larger micro-batch has them more than once
WARM_UP = 2  # steps, before those that are measured
NETWORKS = ("llm", "llava", "vlm", "clip", "resnet")  # settings that name a network with weights …
FILES = ("vision_weights", "adapter_weights", "init_from")  # … and those that name weights alone
# Operations a second in bf16 with fp32 sums, without sparsity, by NVIDIA's data sheets and white papers. The first
# pattern that a GPU's name matches; a part of one (MIG) is none of them.
PEAK = {
    r"A100": 312e12,
    r"\bH100.*PCIe": 756e12,
    r"\bH100.*NVL": 835e12,
    r"\bH100": 989e12,
    r"\bH200(?!.*NVL)": 989e12,
    r"L40S": 362e12,
    r"RTX 3090(?! Ti)": 71e12,
    r"RTX 4090(?! D| Laptop)": 165e12,
}
GIB = 1024**3


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    given = sys.argv[1:] if argv is None else argv
    return command.run(lambda: benchmark(_parse(given), given))


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = command.parser("fit", __doc__ or "")
    parser.prog = "python -m benchmarks.training"
    parser.set_defaults(prog=parser.prog)
    parser.add_argument("--random", action="store_true", help="random weights, the phantom's tokenizer, true size")
    parser.add_argument("--steps", type=int, default=20, help=f"steps that are measured, after {WARM_UP} (default: 20)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of results")
    parser.add_argument("--show", action="store_true", help="print the results that are there")
    return parser.parse_intermixed_args(argv)


def benchmark(arguments: argparse.Namespace, argv: list[str]) -> None:
    """Measures and records, or shows."""
    if arguments.show:
        show(arguments.out)
        return
    if arguments.steps < 1:
        raise command.UsageError("--steps: give 1 or more")
    config = command.configuration(arguments, allow_missing=True)
    quiet()
    warnings.filterwarnings("ignore", message=".*but have no `val_dataloader`.*")
    warnings.filterwarnings("ignore", message=".*used fork_rng without explicitly.*")  # where there are many GPUs
    given = {setting.partition("=")[0] for setting in arguments.settings}
    with tempfile.TemporaryDirectory() as folder:
        config = measured(config, arguments.random, Path(folder, "phantom"), given)
        found = measure(config, arguments.steps)
    if found is None:
        return
    made = {
        "random_weights": arguments.random,
        "tokenizer": "the phantom's, whose ids the vocabulary holds" if arguments.random else "the recipe's",
        "data": "given" if "data.root" in given else "phantom",
    }
    found = found | made | {"command": shlex.join(["python", "-m", "benchmarks.training", *argv])}
    device = re.sub(r"[^a-z0-9]+", "-", found["hardware"]["device"].lower().removeprefix("nvidia "))
    studies = found["batch"]
    name = f"{config.method}-{_size(found)}-{studies['devices'] * studies['nodes']}x{device}-{found['date']}.json"
    arguments.out.mkdir(parents=True, exist_ok=True)
    atomic_write(arguments.out / name, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    _print(table([found]))
    command.say(f"result      {arguments.out / name}")


def measured(config: Config, random_weights: bool, phantom: Path, given: Collection[str]) -> Config:
    """The configuration with random weights where they are wanted, and the phantom's studies where no others are given.

    Args:
        config: As composed; `data.root` may be missing.
        random_weights: Whether networks get random weights.
        phantom: The folder to draw into.
        given: The settings that stand on the command line.

    Raises:
        UsageError: A setting is missing, or nothing is trained.
    """
    values = copy.deepcopy(config.values)
    model, data = values["model"], values["data"]
    if random_weights:
        named = {name: model[name] for name in NETWORKS if name in model}
        model |= {name: source if is_made(source) else RANDOM + source for name, source in named.items()}
        model |= dict.fromkeys(name for name in FILES if name in model)
    own_data = "data.root" in given
    if not own_data:
        data["root"] = str(phantom)
    if "data.phantom" not in given:
        data["phantom"] = None if own_data else PATIENTS
    data |= {"store": None, "num_workers": 0}
    missing = [key for key in config.missing if key != "data.root"]
    if missing:
        raise command.UsageError("\n       ".join(f"{key} is missing: give {key}=…" for key in missing))
    if config.untrained:
        raise command.UsageError("trainer.max_epochs=0: nothing is trained, so there is no step to measure")
    return replace(config, values=values, missing=())


# What is measured.


class Clock(L.Callback):
    """When each step ended, and the most memory that each process took."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.memory: list[list[int]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step > len(self.ends):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.ends.append(time.perf_counter())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        device = pl_module.device
        if device.type == "cuda":
            own = [torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)]
        else:
            own = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]
        self.memory = [own] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(self.memory, own)


def measure(config: Config, steps: int) -> dict[str, Any] | None:
    """Trains for `steps` steps after the first ones; `None` in all processes but the first."""
    batch = effective_batch(config)
    model, data = model_and_data(config)
    command.say(f"preparing {batch.micro} studies")
    given = micro_batch(data)
    cost = counted(config, given) if processes.rank() == 0 else None
    clock = Clock()
    shown = config.values["trainer"]["enable_progress_bar"] is not False
    callbacks: list[L.Callback] = [clock, progress_bar()] if shown else [clock]
    settings = config.values["trainer"] | {
        "max_steps": -1, "max_epochs": 1, "limit_train_batches": 1.0, "limit_val_batches": 0,
        "strategy": build_strategy(config.values["trainer"]["strategy"], on_cpu(config), batch.devices * batch.nodes),
    }  # fmt: skip
    trainer = L.Trainer(
        **settings, accumulate_grad_batches=batch.accumulation, callbacks=callbacks,
        plugins=[processes.cluster_environment()], logger=False, enable_checkpointing=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    repeated: Any = [given] * ((steps + WARM_UP) * batch.accumulation)
    with processes.ending_together(trainer):
        trainer.fit(model, DataLoader(repeated, collate_fn=_only))
    if not trainer.is_global_zero:
        return None
    assert cost is not None, "the first process counted"
    found = of_method(config) | figures(clock, steps, batch, cost) | of_machine(on_cpu(config))
    share, note = mfu(found)
    return found | {"mfu": {"value": share, "note": note}}


def micro_batch(data: Any) -> dict[str, Any]:
    """What one device is given at a time: the first studies, again from the first where there are too few."""
    source = data.preprocessor
    if data.phantom:
        data.draw_phantom(data.phantom, 1)
    studies, rng = data.studies("train"), random.Random(0)
    read = map(data.read, studies[: data.micro_batch_size])
    samples = [source(study, source.arrays(study), rng) for study in read]
    return source.collate([samples[index % len(samples)] for index in range(data.micro_batch_size)])


def counted(config: Config, batch: Mapping[str, Any]) -> Cost:
    """What the batch costs, counted on a model without memory."""
    command.say("counting operations")
    model = config.build("model")
    with torch.device("meta"):
        model.configure_model()
    return count(model, batch)


def _only(batches: list[Any]) -> Any:
    return batches[0]


# What is recorded.


def of_method(config: Config) -> dict[str, Any]:
    """Which method, by which settings."""
    changed = {key: value for key, (_, value) in config.differences(config.base).items() if key != "data.root"}
    return {
        "method": config.method, "recipe": config.recipe, "with": list(config.ablations), "settings": changed,
        "strategy": config.values["trainer"]["strategy"],
        "precision": config.values["trainer"]["precision"] or "32-true",
        "gradient_checkpointing": config.values["model"].get("gradient_checkpointing", False),
    }  # fmt: skip


def figures(clock: Clock, steps: int, batch: EffectiveBatch, cost: Cost) -> dict[str, Any]:
    """Seconds, rates, memory and operations, of a step of all devices together."""
    seconds = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)][-steps:]
    median = statistics.median(seconds)
    batches = batch.total // batch.micro
    names = ("allocated", "reserved") if len(clock.memory[0]) == 2 else ("resident",)
    return {
        "parameters": {"trainable": cost.trainable, "frozen": cost.frozen},
        "batch": asdict(batch) | {"studies": batch.total},
        "seconds_per_step": {"median": median, "least": min(seconds), "greatest": max(seconds), "steps": len(seconds)},
        "studies_per_second": batch.total / median,
        "tokens_per_step": cost.positions * batches,
        "tokens_per_second": cost.positions * batches / median,
        "tokens_are": "positions that the language model reads: text, image tokens, and padding within a micro-batch",
        "peak_memory_bytes": dict(zip(names, (list(kind) for kind in zip(*clock.memory, strict=True)), strict=True)),
        "flops_per_step": cost.flops * batches,
        "flops_per_step_by_formula": cost.formula * batches,
        "formula": "(4 N + 2 n) × tokens: N weights of the language model, n of them trained",
    }


def of_machine(cpu: bool) -> dict[str, Any]:
    """Hardware, versions and date."""
    cpus = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.+)$", cpus.read_text() if cpus.is_file() else "", re.MULTILINE)
    hardware = {
        "device": "CPU" if cpu else torch.cuda.get_device_name(),
        "gpus": None if cpu else machine.gpus().found,
        "cpu": named[1] if named else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": machine.memory(),
    }
    git = git_state()
    made_with = versions() | {"cuda": torch.version.cuda} if not cpu else versions()
    return {"hardware": hardware, "versions": made_with, "git": git, "date": time.strftime("%Y%m%d-%H%M")}


def mfu(found: Mapping[str, Any]) -> tuple[float | None, str]:
    """Model-FLOP utilisation of a result, and how it is meant, or why there is none."""
    device, batch = found["hardware"]["device"], found["batch"]
    if device == "CPU":
        return None, "run on a CPU, of which no peak is listed"
    peak = peak_of(device)
    if peak is None:
        return None, f"no peak is listed for {device}"
    able = peak * batch["devices"] * batch["nodes"] * found["seconds_per_step"]["median"]
    return found["flops_per_step"] / able, f"of {peak / 1e12:.0f} TFLOP/s a device, dense bf16; operations as counted"


def peak_of(device: str) -> float | None:
    """Operations a second of a GPU by its name; `None` where it is not known."""
    if " MIG " in device:
        return None
    return next((peak for pattern, peak in PEAK.items() if re.search(pattern, device)), None)


# What is shown.


def show(folder: Path) -> None:
    """Prints a table of the results in a folder.

    Raises:
        DataFault: A file there is no result.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise DataFault(f"{path}: no JSON ({error}); measure anew, or take it away") from error
    if not found:
        command.say(f"no results in {folder}")
        return
    _print(table(found))


def table(results: list[dict[str, Any]]) -> Table:
    """A row a result; below it, why some have no MFU."""
    whys = dict.fromkeys(one["mfu"]["note"] for one in results if one["mfu"]["value"] is None)
    made = Table(
        "method, weights", "devices", "strategy", "s/step (least to greatest)", "studies/s", "tokens/s", "GiB, most",
        "TFLOP/step", "MFU", title="One optimizer step", caption="; ".join(f"no MFU: {why}" for why in whys),
    )  # fmt: skip
    for one in results:
        batch, seconds, share = one["batch"], one["seconds_per_step"], one["mfu"]["value"]
        memory = max(max(values) for values in one["peak_memory_bytes"].values())
        made.add_row(
            f"{one['method']}, {one['recipe']}: {_size(one)}{', random' if one['random_weights'] else ''}",
            f"{batch['devices'] * batch['nodes']} × {one['hardware']['device']}",
            f"{one['strategy']}, {one['precision']}",
            f"{seconds['median']:.3g} ({seconds['least']:.3g} to {seconds['greatest']:.3g})",
            f"{one['studies_per_second']:.3g}",
            f"{one['tokens_per_second']:,.0f}",
            f"{memory / GIB:.1f}",
            f"{one['flops_per_step'] / 1e12:.3g}",
            "none" if share is None else f"{100 * share:.1f} %",
        )
    return made


def _print(shown: Table) -> None:
    console = Console()
    (console if console.is_terminal else Console(width=150)).print(shown)


def _size(found: Mapping[str, Any]) -> str:
    """How many weights, in short."""
    weights = sum(found["parameters"].values())
    return f"{weights / 1e9:.1f}b" if weights >= 1e9 else f"{weights / 1e6:.1f}m"


if __name__ == "__main__":
    sys.exit(main())
