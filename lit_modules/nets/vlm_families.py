"""What differs between the families of vision-language models, and the published ones that are fine-tuned here.

Jia, Elboardy, Rashed, PMLR 317:150-158 (2026), Table 1: eleven models, to which PaliGemma (named in the text) is added.

A family is known by transformers' `model_type`. Its prompt is one turn of a user who shows one image, in the format
that the family's authors document. It stands here instead of being read from the tokenizer's chat template: two of
the published models bring none, others bring one that inserts the date, and the ids of training must not change when
a repository is edited.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

_LANGUAGE = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@dataclass(frozen=True)
class Family:
    """How a family is spoken to.

    Attributes:
        model_type: transformers' name.
        prompt: The turn: `{image}` is where image tokens go, `{prompt}` the user's text; specials are spelled out, so
            the tokenizer must add none.
        image_token: What is repeated in the image's place.
        end_of_turn: The token that ends an answer.
        token_types: The key that tells the model's image tokens (or PaliGemma's prefix) from the rest; `None`: none.
        image_type: What it says at an image token; 0 elsewhere in the prompt.
        answer_type: What it says at the answer.
        language: peft's `target_modules` for the language model's linear layers, without the vision tower's.
        sized: The film's size decides over the number of image tokens, so `max_pixels` can bound it.
    """

    model_type: str
    prompt: str
    image_token: str
    end_of_turn: str
    token_types: str | None = None
    image_type: int = 0
    answer_type: int = 0
    language: str = _LANGUAGE
    sized: bool = False

    def pieces(self, prompt: str) -> tuple[str, str]:
        """What stands before the image's tokens and after them."""
        before, after = self.prompt.split("{image}")
        return before, after.replace("{prompt}", prompt)


_CHATML = "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{prompt}<|im_end|>\n<|im_start|>assistant\n"
_ASSISTANT = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"  # Qwen2 and 2.5 always begin so


def _qwen(model_type: str, prompt: str) -> Family:
    return Family(
        model_type,
        prompt,
        image_token="<|image_pad|>",
        end_of_turn="<|im_end|>",
        token_types="mm_token_type_ids",
        image_type=1,
        sized=True,
    )


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "gemma3": Family(
            "gemma3",
            "<bos><start_of_turn>user\n\n\n<start_of_image>{image}<end_of_image>\n\n{prompt}<end_of_turn>\n"
            "<start_of_turn>model\n",
            image_token="<image_soft_token>",
            end_of_turn="<end_of_turn>",
            token_types="token_type_ids",
            image_type=1,  # without it, image tokens silently lose their view of one another
        ),
        "qwen2_vl": _qwen("qwen2_vl", _ASSISTANT + _CHATML),
        "qwen2_5_vl": _qwen("qwen2_5_vl", _ASSISTANT + _CHATML),
        "qwen3_vl": _qwen("qwen3_vl", _CHATML),
        "mllama": Family(
            "mllama",
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{image}{prompt}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            image_token="<|image|>",
            end_of_turn="<|eot_id|>",
        ),
        "paligemma": Family(
            "paligemma",
            "{image}<bos>{prompt}\n",
            image_token="<image>",
            end_of_turn="<eos>",
            token_types="token_type_ids",
            answer_type=1,  # the prefix is read in both directions, the answer from left to right
        ),
        "phi3_v": Family(
            "phi3_v",
            "<s><|user|>\n{image}<s>\n{prompt}<|end|>\n<|assistant|>\n",  # the original begins each piece with <s>
            image_token="<|image|>",
            end_of_turn="<|end|>",
            language=r".*model\.layers\.\d+\..*\.(qkv_proj|o_proj|gate_up_proj|down_proj)",
            sized=True,
        ),
    }
)


@dataclass(frozen=True)
class PublishedVLM:
    """One row of Table 1.

    Attributes:
        abbreviation: The paper's.
        hub: Its id on the Hugging Face hub.
        family: See `FAMILIES`.
        licence: Of its weights.
        gated: The licence must be accepted on the hub before a download.
        parameters: As published, in billions.
        config: What its `config.json` says beyond transformers' defaults, so that a dry run on the meta device needs
            no download. Checked by the number of parameters that it makes, and by nothing else: what makes none (rotary
            scaling, special ids) is from memory. Weights are always read with the `config.json` beside them.
    """

    abbreviation: str
    hub: str
    family: str
    licence: str
    gated: bool
    parameters: float
    config: Mapping[str, Any] = field(repr=False, hash=False)


_GEMMA = "Gemma Terms of Use"
_HAI = "Health AI Developer Foundations Terms of Use"
_SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
    "vision_use_head": False,
}


def _gemma3(**text: Any) -> dict[str, Any]:
    rope = {"rope_theta": 1e6, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    text |= {"model_type": "gemma3_text", "vocab_size": 262208, "sliding_window": 1024, **rope}
    return {"vision_config": _SO400M | {"image_size": 896}, "text_config": text, "eos_token_id": [1, 106]}


_GEMMA_4B = _gemma3(
    hidden_size=2560, intermediate_size=10240, num_hidden_layers=34, num_attention_heads=8, num_key_value_heads=4
)
_GEMMA_27B = _gemma3(
    hidden_size=5376,
    intermediate_size=21504,
    num_hidden_layers=62,
    num_attention_heads=32,
    num_key_value_heads=16,
    head_dim=128,
    query_pre_attn_scalar=168,
)
_MROPE = {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
_QWEN_7B = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    **_MROPE,
}
_QWEN_32B = {
    "vocab_size": 152064,
    "hidden_size": 5120,
    "intermediate_size": 27648,
    "num_hidden_layers": 64,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    **_MROPE,
}


def _qwen25_vision(width: int, mlp: int) -> dict[str, Any]:
    return {"hidden_size": 1280, "intermediate_size": mlp, "out_hidden_size": width}


def _qwen3(**text: Any) -> dict[str, Any]:
    section = {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    text |= {"vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8, "max_position_embeddings": 262144}
    text |= {"rope_theta": 5e6, "rope_scaling": section}
    return {"vision_config": {"out_hidden_size": text["hidden_size"]}, "text_config": text}


_LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_PALIGEMMA = {
    "vision_config": _SO400M | {"image_size": 448, "vocab_size": 257152},
    "text_config": {
        "model_type": "gemma",
        "vocab_size": 257216,
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
    },
    "image_token_index": 257152,
}
_LLAMA_LICENCE = "Llama 3.2 Community License (its multimodal models are not licensed to people in the EU)"

_ALL = (
    PublishedVLM("GE04", "google/gemma-3-4b-pt", "gemma3", _GEMMA, True, 4.30, _GEMMA_4B),
    PublishedVLM("MG04", "google/medgemma-4b-it", "gemma3", _HAI, True, 4.30, _GEMMA_4B),
    PublishedVLM("MG27", "google/medgemma-27b-it", "gemma3", _HAI, True, 27.4, _GEMMA_27B),
    PublishedVLM("PV3.5-04", "microsoft/Phi-3.5-vision-instruct", "phi3_v", "MIT", False, 4.15, {}),
    PublishedVLM("PV3-04", "microsoft/Phi-3-vision-128k-instruct", "phi3_v", "MIT", False, 4.15, {}),
    PublishedVLM(
        "QW2-07",
        "Qwen/Qwen2-VL-7B-Instruct",
        "qwen2_vl",
        "Apache-2.0",
        False,
        8.29,
        {"vision_config": {"hidden_size": 3584}, "text_config": _QWEN_7B},
    ),
    PublishedVLM(
        "QW2.5-07",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "qwen2_5_vl",
        "Apache-2.0",
        False,
        8.29,
        {"vision_config": _qwen25_vision(3584, 3420), "text_config": _QWEN_7B},
    ),
    PublishedVLM(
        "QW2.5-32",
        "Qwen/Qwen2.5-VL-32B-Instruct",
        "qwen2_5_vl",
        "Apache-2.0",
        False,
        33.5,
        {"vision_config": _qwen25_vision(5120, 3456), "text_config": _QWEN_32B},
    ),
    PublishedVLM(
        "QW3-08",
        "Qwen/Qwen3-VL-8B-Instruct",
        "qwen3_vl",
        "Apache-2.0",
        False,
        8.77,
        _qwen3(hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32),
    ),
    PublishedVLM(
        "QW3-32",
        "Qwen/Qwen3-VL-32B-Instruct",
        "qwen3_vl",
        "Apache-2.0",
        False,
        33.4,
        _qwen3(hidden_size=5120, intermediate_size=25600, num_hidden_layers=64, num_attention_heads=64),
    ),
    PublishedVLM(
        "LM11",
        "meta-llama/Llama-3.2-11B-Vision-Instruct",
        "mllama",
        _LLAMA_LICENCE,
        True,
        10.67,
        {"vision_config": {"image_size": 560}, "text_config": {"rope_parameters": _LLAMA_3_ROPE}},
    ),
    PublishedVLM("PaliGemma", "google/paligemma-3b-mix-448", "paligemma", _GEMMA, True, 2.92, _PALIGEMMA),
)
VLMS: Mapping[str, PublishedVLM] = MappingProxyType({vlm.hub: vlm for vlm in _ALL})
