"""The trainings that `benchmarks.overlay` measures and `tests/lit_modules/test_overlay_trl.py` compares: Overlay-SFT's
own, and that of TRL's SFTTrainer, of the same model on the same films.
"""

from __future__ import annotations

import copy
import io
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from PIL import Image
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
