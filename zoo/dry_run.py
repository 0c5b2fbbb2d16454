"""What `--dry-run` prints: settings, sizes, an estimate of the memory, and what is missing. Nothing is allocated."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from torch import nn

from lit_modules.report_generator import Requirement
from zoo.config import Config
from zoo.strategies import BUCKET
from zoo.trainer import EffectiveBatch, data_needs, device_count, device_needs, effective_batch

GIB = 1024**3
# Bytes that a transformer layer keeps for the backward pass, per token and hidden channel in 16 bit, without
# checkpointing (Korthikanti et al. 2022, eq. 1, without the attention scores, which SDPA does not keep): 34.
KEPT, KEPT_CHECKPOINTED = 34, 2


@dataclass(frozen=True)
class Memory:
    """An estimate of what one device holds, in bytes, and, as `host`, its process in the machine's memory."""

    weights: int
    gradients: int = 0
    optimizer: int = 0
    buckets: int = 0
    activations: int = 0
    host: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.buckets + self.activations


def dry_run(config: Config) -> None:
    """Builds model and data without memory and prints what a fit would be."""
    console = Console(soft_wrap=True, highlight=False)
    model, data = config.build("model"), config.build("data")
    batch = effective_batch(config)
    with torch.device("meta"):
        model.configure_model()
    trainable, frozen = counts(model)
    memory = estimate(model, config, batch)
    console.print(
        f"[bold]{config.method}, recipe {config.recipe}[/]{''.join(f' with {name}' for name in config.ablations)}"
    )
    console.print(f"\n[bold]Settings that differ from the recipe[/]\n{escape(_changes(config))}")
    console.print(
        f"\n[bold]Model[/]\n  {trainable:,} trainable + {frozen:,} frozen = {trainable + frozen:,} parameters"
    )
    console.print(f"\n[bold]Effective batch[/]\n  {batch}")
    console.print(f"\n[bold]Memory of one device: an estimate[/]\n{_memory_lines(memory)}")
    console.print("\n[bold]Needed[/]")
    needed = [*data_needs(data), *model.requirements(), *device_needs(config), *memory_needs(config, memory)]
    if not needed:
        console.print("  nothing but this machine")
    for item in needed:
        console.print(f"  {'✓' if item.met else '✗'} {item.what}{'' if item.met else escape(f': {item.how}')}")
    for key in config.missing:
        if not any(key in item.how for item in needed):
            console.print(f"  ✗ {key}: give {key}=…")
    console.print("\nThe settings are valid.")


def counts(model: nn.Module) -> tuple[int, int]:
    """Trainable and frozen parameters."""
    sizes = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, trained in sizes if not trained)


def estimate(model: nn.Module, config: Config, batch: EffectiveBatch) -> Memory:
    """What one device holds in training; without training, the weights.

    AdamW keeps two fp32 moments; ZeRO-2 also an fp32 master copy, and spreads gradients and all of that over the
    devices. Offloaded, they lie in the machine's memory, with fp32 gradients, a copy of the weights on their way back
    and, where several batches make a step, their sum so far; the device keeps room for the largest gradient.
    Activations are those of the language model, the only part whose size a length decides.
    """
    trained = [weight.numel() for weight in model.parameters() if weight.requires_grad]
    trainable = sum(trained)
    half = "16" in str(config.values["trainer"]["precision"])
    zero = config.zero
    true_half = half and (zero or str(config.values["trainer"]["precision"]).endswith("true"))
    # `bits`: a method says so where a weight will be quantised as it is read.
    sizes = [
        (weight.numel(), getattr(weight, "bits", 16 if true_half else 8 * weight.element_size()))
        for weight in model.parameters()
    ]
    each = 2 if true_half else 4
    shares = batch.devices * batch.nodes if zero else 1
    buckets = 2 * min(BUCKET, trainable) * each if zero else 0
    weights = int(sum(count * bits for count, bits in sizes) / 8)
    if config.untrained:
        return Memory(weights)
    activations = _activations(model, config, batch.micro, 2 if half else 4)
    if config.values["trainer"]["strategy"] == "zero2_offload":
        copies = 2 if batch.accumulation > 1 else 1
        host = trainable * (16 + copies * each) // shares
        return Memory(weights, buckets=buckets + max(trained, default=0) * each, activations=activations, host=host)
    return Memory(weights, trainable * each // shares, trainable * (12 if zero else 8) // shares, buckets, activations)


def _activations(model: nn.Module, config: Config, micro: int, size: int) -> int:
    settings = config.values["model"]
    length = settings.get("max_length") or 0
    kept = KEPT_CHECKPOINTED if settings.get("gradient_checkpointing") else KEPT
    settings_of: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    languages = [each for each in settings_of if hasattr(each, "vocab_size") and hasattr(each, "num_hidden_layers")]
    if not languages:
        return 0
    language = max(languages, key=lambda found: found.vocab_size)
    layers, hidden = language.num_hidden_layers, language.hidden_size
    one_layer = KEPT * hidden  # recomputed at a time under checkpointing
    logits = language.vocab_size * 6  # in 16 and in 32 bit
    return micro * length * ((layers * kept * hidden + one_layer) * size // 2 + logits)


def memory_needs(config: Config, memory: Memory) -> list[Requirement]:
    """GPUs of that size, and the machine's memory beside them, where the settings ask for GPUs."""
    if config.values["trainer"]["accelerator"] != "gpu":
        return []
    sizes = [torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())]
    need = f"about {memory.total / GIB:.1f} GiB on each of them"
    found = f"the smallest has {min(sizes) / GIB:.1f} GiB" if sizes else "there is none here"
    needs = [Requirement(need, bool(sizes) and min(sizes) >= memory.total, found)]
    if memory.host:
        host, there = memory.host * device_count(config), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        need = f"about {host / GIB:.1f} GiB of the machine's memory"
        needs.append(Requirement(need, there >= host, f"it has {there / GIB:.1f} GiB"))
    return needs


def _changes(config: Config) -> str:
    rows = config.differences(config.base)
    lines = [f"  {key}: {old!r} → {new!r}  ({config.origins.get(key, 'default')})" for key, (old, new) in rows.items()]
    return "\n".join(lines) or "  none"


def _memory_lines(memory: Memory) -> str:
    parts = {
        "weights": memory.weights, "gradients": memory.gradients, "optimizer states": memory.optimizer,
        "communication buckets": memory.buckets, "activations (rough)": memory.activations, "together": memory.total,
    } | ({"and in the machine's": memory.host} if memory.host else {})  # fmt: skip
    unit, name_of_unit = (GIB, "GiB") if memory.total >= GIB else (GIB // 1024, "MiB")
    return "\n".join(f"  {name:<22}{size / unit:8.2f} {name_of_unit}" for name, size in parts.items())
