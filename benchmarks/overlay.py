"""Overlay-SFT's training beside TRL's SFTTrainer: the loss of each step, and what a step costs.

TRL is what the paper trains with, and no dependency of ours. It needs an environment of its own, a copy of ours:

    .uv/bin/uv venv /tmp/trl --python .venv/bin/python && .uv/bin/uv pip sync --python /tmp/trl requirements.lock
    .uv/bin/uv pip install --python /tmp/trl trl==1.16.0
    /tmp/trl/bin/python -m benchmarks.overlay [--families gemma3 …] [--steps 40] [--repeats 3] [--json FILE]

It took nine minutes on two cores that had three times as much to do, of which it had about half a core.

Both train one small model (random weights, `nets.phantom_vlm`) with the same adapters, schedule, clipping and order of
the phantom's films, in float32 and without dropout. TRL is given the drawn film as PNG, the prompt as the family's
authors write it and the report; it reads them with transformers' own processor. Ours is measured twice: from the same
PNGs (like TRL it unpacks and resizes them in the step), and from the store, as in real use. Nobody reads ahead.

A step is all from the end of one to the end of the next, the first left out: loading, forward, backward, optimiser,
and TRL's figures beside the loss (entropy, accuracy). Each run has a process of its own, on one thread; runs of the
three ways take turns, and the median of the repeats is shown: seconds of the processor, which a busy machine changes
less, and of the clock. Memory is the peak above what the imports take; the films are in it, in TRL's case one for each
row. Models are small, so the share of image processing and of the loops is larger than with real ones, and the memory
says nothing of theirs.

On Mllama and PaliGemma TRL 1.16 fails, at a prompt and completion with an image. There the trained model's loss of a
batch is compared with those of its studies alone, each weighted by its tokens.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import resource
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.overlay_training import (
    BATCH,
    EQUAL,
    FAIL,
    SIZE,
    TURNS,
    Run,
    apart_from_single,
    dataset,
    in_order,
    loader,
    method,
    train_ours,
    train_trl,
)

CAPTION = "films, store: ours. TRL ÷: its time through each of ours. MB: TRL, films, store. *: from single studies"

# Each way in a process of its own.


def from_store(root: Path, family: str, steps: int) -> Run:
    """Ours, as in real use."""
    module = method(family)
    return train_ours(module, dataset(root, module.preprocessor(), stored=True), steps)


def from_films(root: Path, family: str, steps: int) -> Run:
    """Ours, from the films that TRL is given."""
    module = method(family)
    preprocessor = module.preprocessor()
    films = in_order(root, preprocessor, steps)
    run = train_ours(module, loader(preprocessor, films), steps)
    return replace(run, apart=apart_from_single(module, films[: 4 * BATCH]))


def trl(root: Path, family: str, steps: int) -> Run:
    """TRL's; where it is known to fail, why it does."""
    module = method(family)
    films = in_order(root, module.preprocessor(), steps)
    try:
        return train_trl(module, films, steps)
    except Exception as error:
        if family not in FAIL:
            raise
        line = str(error).strip().splitlines()[0]
        return Run([], [], error=f"{type(error).__name__}: {line}")


WAYS: Mapping[str, Callable[[Path, str, int], Run]] = {"films": from_films, "store": from_store, "trl": trl}


def prepare(root: Path, families: Sequence[str]) -> None:
    """Draws the phantom and builds each family's store, so that no run waits for them."""
    for family in families:
        dataset(root, method(family).preprocessor(), stored=True).prepare_data()


def alone(context: Any, way: Callable[[], Run]) -> Run:
    """Runs it in a process of its own, which has the imports already."""
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_measured, way).result()


def _measured(way: Callable[[], Run]) -> Run:
    import logging

    from transformers.utils import logging as transformers_logging

    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    before = _peak()
    run = way()
    return replace(run, memory=_peak() - before)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure(root: Path, families: Sequence[str], steps: int, repeats: int) -> dict[str, dict[str, list[Run]]]:
    """Runs of each family and way."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.overlay_training", "trl.trainer.sft_trainer", "deepspeed"])
    found: dict[str, dict[str, list[Run]]] = {family: {way: [] for way in WAYS} for family in families}
    with Progress(transient=True) as progress:
        task = progress.add_task("", total=len(families) * repeats * len(WAYS))
        for family in families:
            for repeat in range(repeats):
                for name, way in WAYS.items():
                    progress.update(task, description=f"{family}, {name}, {repeat + 1} of {repeats}", advance=1)
                    failed = found[family][name] and found[family][name][0].error
                    if not failed:
                        found[family][name].append(alone(context, partial(way, root, family, steps)))
    return found


# Table.


def compared(runs: Mapping[str, list[Run]]) -> tuple[bool, str]:
    """Whether all runs' losses are TRL's or, where it fails, those of the studies alone; and how far apart they are."""
    ours = [run for way in ("films", "store") for run in runs[way]]
    if runs["trl"][0].error:
        first = np.array(ours[0].losses)
        apart = max(run.apart or 0.0 for run in ours)
        apart = max(apart, *(float(np.abs(first - run.losses).max()) for run in ours))
        return apart <= EQUAL, f"{apart:.0e}*"
    theirs = np.array(runs["trl"][0].losses)
    apart = max(float(np.abs(theirs - run.losses).max()) for run in [*ours, *runs["trl"]])
    return apart <= EQUAL, f"{apart:.0e}"


def row_of(family: str, runs: Mapping[str, list[Run]]) -> dict[str, Any]:
    """A family's figures, plain JSON; a way that failed has none."""
    equal, apart = compared(runs)
    row: dict[str, Any] = {"family": family, "equal": equal, "apart": apart, "trl_fails": runs["trl"][0].error}
    row["losses"] = runs["films"][0].losses
    for way, several in runs.items():
        if not several[0].error:
            wall, processor = np.median([run.seconds for run in several], axis=0).tolist()
            memory = max(run.memory for run in several)
            row[way] = {"seconds": wall, "processor_seconds": processor, "gigabytes": memory}
    return row


def table_of(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Processor milliseconds of a step, those of the clock in brackets."""
    heads = ("family", "loss", "apart", "TRL", "films", "store", "TRL ÷", "MB")
    table = Table(*heads, title=title, caption=CAPTION, box=SIMPLE_HEAD, padding=0)
    for row in rows:
        cells, ways = [], ("trl", "films", "store")
        for way in ways:
            figures = row.get(way)
            milliseconds = figures and [1e3 * figures[key] for key in ("processor_seconds", "seconds")]
            cells.append("{:.0f} ({:.0f})".format(*milliseconds) if milliseconds else "fails")
        times = [row["trl"]["processor_seconds"] / row[way]["processor_seconds"] for way in ways[1:] if "trl" in row]
        memory = ", ".join(f"{1e3 * row[way]['gigabytes']:.0f}" if way in row else "–" for way in ways)
        losses = f"{row['losses'][0]:.3f} → {row['losses'][-1]:.3f}"
        apart = f"{'' if row['equal'] else 'NOT EQUAL: '}{row['apart']}"
        table.add_row(row["family"], losses, apart, *cells, ", ".join(f"{one:.2f}" for one in times) or "–", memory)
    return table


def main(argv: list[str] | None = None) -> int:
    """Prints the table; 1 where losses are not equal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overlay", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--families", nargs="+", choices=TURNS, default=list(TURNS), metavar="FAMILY", help=str([*TURNS])
    )
    parser.add_argument("--steps", type=int, default=40, help="of each training, at least 2 (default: 40)")
    parser.add_argument("--repeats", type=int, default=3, help="of each training (default: 3)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args(argv)
    if importlib.util.find_spec("trl") is None:
        parser.error("TRL is not there: run it as the head of this file says")
    if options.steps < 2 or options.repeats < 1:
        parser.error("--steps 2 or more, --repeats 1 or more")
    os.environ["OMP_NUM_THREADS"] = "1"  # before the processes begin
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "candid-ptx"
        prepare(root, options.families)
        load = os.getloadavg()[0]
        found = measure(root, options.families, options.steps, options.repeats)
    rows = [row_of(family, runs) for family, runs in found.items()]
    console, title = Console(), f"Overlay-SFT: ms of the processor (of the clock) a step, {options.steps} steps"
    console.print(table_of(rows, title))
    for row in rows:
        if row["trl_fails"]:
            console.print(f"TRL fails on {row['family']}: {row['trl_fails']}", markup=False)
    console.print(machine(load))
    if options.json:
        options.json.write_text(json.dumps({"size": asdict(SIZE), "batch": BATCH, "rows": rows}, indent=1))
    return int(not all(row["equal"] for row in rows))


def machine(load: float) -> str:
    """What it was measured on, and how busy that was."""
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "lightning", "trl"))
    busy = f"{load:.1f} processes at work on {os.cpu_count()} cores when it began, {os.getloadavg()[0]:.1f} at its end"
    return f"one thread; {busy}; {versions}"


if __name__ == "__main__":
    raise SystemExit(main())
