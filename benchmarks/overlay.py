"""Overlay-SFT's training beside TRL's SFTTrainer: the loss of each step, and what a step costs.

TRL is what the paper trains with, and no dependency of ours. It needs an environment of its own, a copy of ours:

    .uv/bin/uv venv /tmp/trl --python .venv/bin/python && .uv/bin/uv pip sync --python /tmp/trl requirements.lock
    .uv/bin/uv pip install --python /tmp/trl trl==1.16.0
    /tmp/trl/bin/python -m benchmarks.overlay [--families gemma3 …] [--steps 40] [--repeats 3] [--json FILE]

Both train one small model (random weights, `nets.phantom_vlm`) with the same adapters, schedule, clipping and order of
the phantom's films, in float32 and without dropout. TRL is given the drawn film as PNG, the prompt as the family's
authors write it and the report; it reads them with transformers' own processor. Ours is measured twice: from the same
PNGs (like TRL it unpacks and resizes them in the step), and from the store, as in real use. Nobody reads ahead.

A step is all from the end of one to the end of the next, the first left out: loading, forward, backward, optimiser,
and TRL's figures beside the loss (entropy, accuracy). Each run has a process of its own, on one thread; runs of the
three ways take turns, and the median of the repeats is shown: seconds of the processor, which a busy machine changes
less, and of the clock. Memory is the peak above what the imports take.
Models are small, so the share of image processing and of the loops is larger than with real ones.

On Mllama and PaliGemma TRL 1.16 fails, at a prompt and completion with an image. There the trained model's loss of a
batch is compared with those of its studies alone, each weighted by its tokens.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import multiprocessing
import os
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch.utils.data import DataLoader

from datamodules.candid_ptx import CandidPTX
from datamodules.study import Study
from lit_modules.nets.overlay import PROMPT_1, PROMPT_2
from lit_modules.nets.phantom_vlm import PhantomVLM
from lit_modules.nets.qlora import Adapters
from lit_modules.nets.vlm import VlmProcessor
from lit_modules.nets.vlm_encoding import IGNORED
from lit_modules.overlay_samples import OverlayPreprocessor
from lit_modules.overlay_sft import OverlaySFT

SIZE = PhantomVLM(hidden=128, mlp=256, image=168)
BATCH, FILMS = 2, 16
LR, WARMUP, CLIP = 2e-3, 0.03, 0.3  # a rate at which so small a model learns something in 40 steps
FAIL = ("mllama", "paligemma")  # TRL on these
EQUAL = 1e-5  # at most, between the losses of a step
CAPTION = "films, store: ours. TRL ÷: its time through each of ours. MB: TRL, films, store. *: from single studies"

_CHATML = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"
_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
TURNS: Mapping[str, str] = {  # as the authors' chat templates write them
    "gemma3": "<bos><start_of_turn>user\n<start_of_image>{}<end_of_turn>\n<start_of_turn>model\n",
    "qwen2_vl": _SYSTEM + _CHATML,
    "qwen2_5_vl": _SYSTEM + _CHATML,
    "qwen3_vl": _CHATML,
    "mllama": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|image|>{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "paligemma": "<image>{}",
}


@dataclass(frozen=True)
class Shown:
    """A study as it is shown.

    Attributes:
        study: Its id and report.
        png: The film, with the mask drawn on it where `guided`.
        guided: Whether Prompt 1 belongs to it.
    """

    study: Study
    png: bytes
    guided: bool

    @property
    def film(self) -> np.ndarray:
        """`(row, column, channel)`, uint8."""
        with Image.open(io.BytesIO(self.png)) as file:
            return np.array(file)


@dataclass
class Run:
    """What is noted of one training.

    Attributes:
        losses: Of each step.
        clock: When each step ended, `(step, 2)`: seconds of the clock, and of this process's work.
        memory: GB above what the imports take.
        apart: Of a batch's loss and the weighted one of its studies; `None` where it was not asked for.
        error: Why there are no losses, in one line.
    """

    losses: list[float]
    clock: list[tuple[float, float]]
    memory: float = 0.0
    apart: float | None = None
    error: str = ""

    def step_ended(self, loss: float | None = None) -> None:
        """Notes the time."""
        self.clock.append((time.perf_counter(), time.process_time()))
        if loss is not None:
            self.losses.append(loss)

    @property
    def seconds(self) -> np.ndarray:
        """Of a step: of the clock, and of the processor."""
        clock = np.array(self.clock)
        return (clock[-1] - clock[0]) / (len(clock) - 1)


# What both train, and on what.


def method(family: str, size: PhantomVLM = SIZE) -> OverlaySFT:
    """The method with its model and adapters; the weights are the same each time."""
    torch.manual_seed(0)
    module = OverlaySFT(
        f"phantom:{family}",
        size,
        lora=Adapters(dropout=0.0),
        quantization="none",
        gradient_checkpointing=False,
        dtype="float32",
        lr=LR,
        warmup_share=WARMUP,
    )
    module.configure_model()
    return module.train()


def dataset(root: Path, preprocessor: OverlayPreprocessor, stored: bool) -> CandidPTX:
    """The phantom below `root`; its films are read, or what the method made of them."""
    store = "auto" if stored else None
    data = CandidPTX(str(root), split_unit="patient", phantom=FILMS, micro_batch_size=BATCH, store=store)
    data.preprocessor = preprocessor
    return data


def shown(study: Study, preprocessor: OverlayPreprocessor) -> Shown:
    """A study that was read, as the method shows it."""
    film, guided = preprocessor.film(study)
    file = io.BytesIO()
    Image.fromarray(film).save(file, "png")
    return Shown(study, file.getvalue(), guided)


def in_order(root: Path, preprocessor: OverlayPreprocessor, steps: int) -> list[Shown]:
    """The films in the order in which the DataModule gives them for training."""
    data = dataset(root, preprocessor, stored=False)
    films = [shown(data.read(study), preprocessor) for study in data.studies("train")]
    batches = data.train_dataloader().batch_sampler
    found: list[Shown] = []
    while len(found) < steps * BATCH:
        found += [films[index] for batch in batches for index, _ in batch]
        batches.epoch += 1
    return found[: steps * BATCH]


# Ours.


class _Notes(L.Callback):
    """Notes the end of each step."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.run.step_ended(float(outputs["loss"]))


def train_ours(module: OverlaySFT, data: Any, steps: int) -> Run:
    """Lightning's Trainer with the method.

    Args:
        module: The method, whose weights change.
        data: A loader or a DataModule.
        steps: How many.
    """
    run = Run([], [])
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        gradient_clip_val=CLIP,
        limit_val_batches=0,
        callbacks=[_Notes(run)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    where = {"datamodule": data} if isinstance(data, L.LightningDataModule) else {"train_dataloaders": data}
    trainer.fit(module, **where)
    return run


def sample(preprocessor: OverlayPreprocessor, one: Shown) -> dict[str, Any]:
    """What the method makes of a film that is drawn already."""
    arrays = preprocessor.encoder.image_arrays(one.film)
    return preprocessor(one.study, {**arrays, "guided": np.array([one.guided], np.uint8)}, None)


def loader(preprocessor: OverlayPreprocessor, films: Sequence[Shown]) -> DataLoader:
    """Batches of films that are drawn already and resized in the step."""

    def collate(some: list[Shown]) -> dict[str, Any]:
        return preprocessor.collate([sample(preprocessor, one) for one in some])

    return DataLoader(films, BATCH, collate_fn=collate)  # type: ignore[arg-type]  # a list will do


@torch.no_grad()
def apart_from_single(module: OverlaySFT, films: Sequence[Shown]) -> float:
    """Of the loss of a batch, and the mean of its studies' own, weighted by how many tokens each learns."""
    preprocessor = module.preprocessor()
    samples = [sample(preprocessor, one) for one in films]
    tokens = [int((one["turn"]["labels"] != IGNORED).sum()) for one in samples]
    single = [float(module.loss(preprocessor.collate([one]))) for one in samples]
    return abs(float(module.loss(preprocessor.collate(samples))) - float(np.average(single, weights=tokens)))


# TRL's.


def stock(processor: VlmProcessor) -> Any:
    """transformers' own processor around the same tokenizer and image processor."""
    import transformers

    family, images = processor.family.model_type, processor.image_processor
    tokenizer = copy.deepcopy(processor.tokenizer)  # PaliGemma's adds tokens to it
    if family == "gemma3":
        assert processor.image_tokens is not None, "an image of Gemma 3 always has as many"
        return transformers.Gemma3Processor(images, tokenizer, image_seq_length=processor.image_tokens)
    if family == "mllama":
        return transformers.MllamaProcessor(images, tokenizer)
    if family == "paligemma":
        images.image_seq_length = processor.image_tokens
        return transformers.PaliGemmaProcessor(images, tokenizer)
    if family == "qwen3_vl":
        return transformers.Qwen3VLProcessor(images, tokenizer, transformers.Qwen3VLVideoProcessor())
    kind = transformers.Qwen2VLProcessor if family == "qwen2_vl" else transformers.Qwen2_5_VLProcessor
    return kind(images, tokenizer, transformers.Qwen2VLVideoProcessor())


def train_trl(module: OverlaySFT, films: Sequence[Shown], steps: int) -> Run:
    """TRL's SFTTrainer with the method's model: loss on the report alone, nothing cut.

    Args:
        module: The method, whose weights change.
        films: In order.
        steps: How many.
    """
    import datasets
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    run = Run([], [])

    class Notes(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            run.step_ended()

    processor = module.encoder.processor
    turn, end = TURNS[processor.family.model_type], processor.family.end_of_turn
    rows = [
        {
            "images": [{"bytes": one.png, "path": None}],
            "prompt": turn.format(PROMPT_1 if one.guided else PROMPT_2),
            "completion": f"{one.study.report}{end}",
        }
        for one in films
    ]
    text = datasets.Value("string")
    kinds = datasets.Features(images=datasets.List(datasets.Image()), prompt=text, completion=text)
    given = datasets.Dataset.from_list(rows, features=kinds)
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            folder,
            use_cpu=True,
            bf16=False,
            max_length=None,
            per_device_train_batch_size=BATCH,
            max_steps=steps,
            train_sampling_strategy="sequential",
            gradient_checkpointing=False,
            learning_rate=LR,
            lr_scheduler_type="linear",
            warmup_steps=WARMUP,
            weight_decay=0.0,
            max_grad_norm=CLIP,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            module.vlm, settings, train_dataset=given, processing_class=stock(processor), callbacks=[Notes()]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    run.losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return run


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
    context.set_forkserver_preload(
        ["datamodules.candid_ptx", "lit_modules.overlay_sft", "trl.trainer.sft_trainer", "deepspeed"]
    )
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
