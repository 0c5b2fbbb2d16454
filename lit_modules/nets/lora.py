"""Which weights of a language model are trained, and how low-rank ones are folded in to generate.

LoRA: Hu et al., arXiv:2106.09685; Reg2RG's r = 8, alpha = 32, dropout 0.1 (paper §IV-B) on the query and value
projections, which is peft's default for LLaMA and what the authors' released keys show.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

Tuning = Literal["lora", "full", "frozen"]
_TARGETS = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation (paper §IV-B).

    Attributes:
        r: Rank.
        alpha: Scale; updates are multiplied by `alpha / r`.
        dropout: On the adapters' input, in training.
    """

    r: int = 8
    alpha: int = 32
    dropout: float = 0.1


def tune(model: Any, tuning: Tuning, lora: LoRA) -> Any:
    """Marks what is trained: everything, nothing, or low-rank adapters (the model comes back wrapped by peft)."""
    if tuning != "lora":
        return model.requires_grad_(tuning == "full")
    from peft import LoraConfig, get_peft_model

    kind = model.config.model_type
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_TARGETS.get(kind),
        fan_in_fan_out=kind == "gpt2",  # its projections are stored transposed
    )
    with warnings.catch_warnings():  # peft asks transformers by a name that is about to change
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, settings)


def without_adapters(model: Any) -> Any:
    """The language model itself, as transformers built it; adapters stay in its layers."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Adapters folded into the weights they adapt, for as long as the context lasts; then the very same weights again.

    Subtracting the update afterwards would leave rounding behind, so the weights are set aside and put back.
    In bfloat16 the folded weights are rounded, which changes logits by about as much as bfloat16 itself does.
    """
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    kept = [layer.get_base_layer().weight.data for layer in layers]
    try:
        for layer, weight in zip(layers, kept, strict=True):
            layer.get_base_layer().weight.data = weight.clone()
            layer.merge()
        yield
    finally:
        for layer, weight in zip(layers, kept, strict=True):
            layer.get_base_layer().weight.data = weight
            layer.merged_adapters.clear()
