"""QLoRA: low-rank adapters on a language model whose frozen weights lie in 4 bits (Dettmers et al., arXiv:2305.14314).

Weights of linear layers are NF4 with doubly quantised scales; what is computed with them is bfloat16, and the output
head stays as it is. transformers quantises while it reads, bitsandbytes computes. Adapters are float32: bfloat16 has
too few digits for their small steps.

Differs from peft's preparation in: what is not quantised stays in bfloat16. As float32 the embeddings and the head
would take 1.3 GB more in Gemma-3-4B and 3 GB more in a 32B model.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch

from datamodules.study import SettingsFault
from lit_modules.nets.lora import LoRA

Quantization = Literal["nf4", "none"]
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on import it misses a package that it has no need of


@dataclass(frozen=True)
class Adapters(LoRA):
    """Low-rank adapters. The paper gives no values: these are Google's, from the notebook that fine-tunes MedGemma.

    Attributes:
        r: Rank.
        alpha: Scale; updates are multiplied by `alpha / r`.
        dropout: On the adapters' input, in training.
        parts: `all` linear layers but the output head (QLoRA §4), or those of the `language` model alone, which leaves
            the image encoder and what joins the two as they are.
    """

    r: int = 16
    alpha: int = 16
    dropout: float = 0.05
    parts: Literal["all", "language"] = "all"


def bitsandbytes_there() -> bool:
    """Whether bitsandbytes is installed; there is none for some platforms."""
    return importlib.util.find_spec("bitsandbytes") is not None


def quantization_config(quantization: Quantization) -> Any:
    """What `from_pretrained` quantises by; `None` for nothing.

    Raises:
        SettingsFault: bitsandbytes is not installed.
    """
    if quantization == "none":
        return None
    if not bitsandbytes_there():
        raise SettingsFault("nf4 needs bitsandbytes: pip install bitsandbytes, or set model.quantization=none")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_storage=torch.uint8,
    )


def as_if_quantised(model: Any) -> None:
    """On the meta device, says for each weight that `nf4` would quantise how many `bits` it would take.

    NF4 and a scale of 8 bits for 64 weights, with one of 32 bits for 256 scales (§3).
    """
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            weight: Any = module.weight
            weight.bits = 4 + 8 / 64 + 32 / (64 * 256)


def adapt(model: Any, adapters: Adapters, language: str) -> Any:
    """Freezes a model and puts trainable adapters into it; before the first step it says what it said.

    Args:
        model: Quantised or not.
        adapters: See `Adapters`.
        language: Regular expression that the whole name of a linear layer of the language model matches.

    Returns:
        The model in peft's wrapping; `save_pretrained` writes the adapters alone.
    """
    from peft import LoraConfig, get_peft_model

    model.requires_grad_(False)
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapters.r,
        lora_alpha=adapters.alpha,
        lora_dropout=adapters.dropout,
        target_modules="all-linear" if adapters.parts == "all" else language,
    )
    with warnings.catch_warnings():  # peft asks transformers by a name that is about to change
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, settings)


def repair_on_cpu(model: Any) -> None:
    """Keeps bitsandbytes 0.50 from repacking 4-bit weights in place on CPUs with AVX512-BF16.

    It does so in evaluation, and the next training step then fails at a layer with a bias.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
