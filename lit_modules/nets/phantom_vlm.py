"""Tiny editions of every family of vision-language models: the real classes, fixed random weights, made in memory.

`phantom:<model_type>` names one. Widths are multiples of 64, as 4-bit layers need on a CPU. A film becomes an image of
at most `image` x `image` pixels, as large a grid of patches in each family as its own rules allow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lit_modules.nets.backbones import word_tokenizer


@dataclass(frozen=True)
class PhantomVLM:
    """The size of a `phantom:` vision-language model.

    Attributes:
        hidden: Width of the language model's tokens, a multiple of 64.
        layers: Its layers, at least 2.
        heads: Attention heads, of both sides.
        mlp: Hidden width of the feed-forward layers, of both sides; a multiple of 64.
        vision_hidden: Width of the vision tower's tokens, a multiple of 64.
        vision_layers: Its layers, at least 2.
        patch: Pixels of a patch's side.
        image: Pixels of the image's side, a multiple of four patches.
        seed: Its weights depend on this alone, not on the global generator.
    """

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    mlp: int = 128
    vision_hidden: int = 64
    vision_layers: int = 2
    patch: int = 14
    image: int = 112
    seed: int = 0


PHANTOM = PhantomVLM()

# Tokens.

_QWEN = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_SPECIALS: Mapping[str, tuple[str, ...]] = {
    "gemma3": (
        "<pad>",
        "<eos>",
        "<bos>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<start_of_image>",
        "<end_of_image>",
        "<image_soft_token>",
    ),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "mllama": (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|finetune_right_pad_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
        "<|image|>",  # the last: as on the hub, no logit belongs to it
    ),
    "paligemma": ("<pad>", "<eos>", "<bos>", "<image>"),
    "phi3_v": ("<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>", "<|image|>"),
}
_ROLES = ("bos_token", "eos_token", "pad_token", "image_token", "video_token", "boi_token", "eoi_token")
_NAMED: Mapping[str, tuple[str | None, ...]] = {  # as the stock processors look for them, in the order of `_ROLES`
    "gemma3": ("<bos>", "<eos>", "<pad>", "<image_soft_token>", None, "<start_of_image>", "<end_of_image>"),
    "qwen2_vl": (None, "<|im_end|>", "<|endoftext|>", "<|image_pad|>", "<|video_pad|>"),
    "qwen2_5_vl": (None, "<|im_end|>", "<|endoftext|>", "<|image_pad|>", "<|video_pad|>"),
    "qwen3_vl": (None, "<|im_end|>", "<|endoftext|>", "<|image_pad|>", "<|video_pad|>"),
    "mllama": ("<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>", "<|image|>"),
    "paligemma": ("<bos>", "<eos>", "<pad>", "<image>"),
    "phi3_v": ("<s>", "<|endoftext|>", "<|endoftext|>", "<|image|>"),
}


def phantom_tokenizer(model_type: str) -> Any:
    """Words of the phantom's radiographs and of the prompts, bytes for whatever else, and the family's specials.

    It adds nothing to a text: the family's prompt spells its specials out.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = word_tokenizer(_pieces())
    tokenizer.add_special_tokens(list(_SPECIALS[model_type]))
    named = {role: token for role, token in zip(_ROLES, _NAMED[model_type], strict=False) if token}
    roles = {role: named.pop(role) for role in _ROLES[:3] if role in named}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", extra_special_tokens=named, model_max_length=2**20, **roles
    )


def _pieces() -> list[str]:
    """Words with and without a space before them."""
    from datamodules.phantom import pneumothorax_wording, radiograph_wording
    from lit_modules.nets.overlay import PROMPT_1, PROMPT_2

    said = re.findall(r"[^\W\d_]+", f"{PROMPT_1} {PROMPT_2} You are a helpful assistant. system user model assistant")
    words = sorted({*radiograph_wording.vocabulary(), *pneumothorax_wording.vocabulary(), *said})
    return [*(f"▁{word}" for word in words), *(word for word in words if len(word) > 1)]


# Images.


def phantom_image_processor(model_type: str, phantom: PhantomVLM) -> Any:
    """The family's own image processor at the phantom's size."""
    from transformers import Gemma3ImageProcessor, MllamaImageProcessor, Qwen2VLImageProcessor, SiglipImageProcessor

    from lit_modules.nets.phi3_vision_image import Phi3VisionImageProcessor

    square = {"height": phantom.image, "width": phantom.image}
    if model_type == "gemma3":
        return Gemma3ImageProcessor(size=square)
    if model_type == "paligemma":
        return SiglipImageProcessor(size=square)
    if model_type == "mllama":
        return MllamaImageProcessor(size={"height": phantom.image // 2, "width": phantom.image // 2})
    if model_type == "phi3_v":
        return Phi3VisionImageProcessor(num_crops=4, crop=phantom.image // 2, patch=phantom.patch)
    area = {"shortest_edge": (2 * phantom.patch) ** 2, "longest_edge": phantom.image**2}
    grey: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if model_type == "qwen3_vl" else {}
    return Qwen2VLImageProcessor(size=area, patch_size=phantom.patch, **grey)


# Models.


def phantom_config(model_type: str, phantom: PhantomVLM, tokenizer: Any) -> Any:
    """The family's configuration at the phantom's size; widths of its parts agree as the real ones do."""
    from transformers import AutoConfig

    if model_type == "phi3_v":
        from lit_modules.nets.phi3_vision import phantom_phi3_config

        return phantom_phi3_config(phantom, tokenizer)
    return AutoConfig.for_model(model_type, **_CONFIGS[model_type](phantom, tokenizer))


# A published model at its true size, with random weights and the phantom's tokens (`random:…`).


def true_size(config: Any) -> PhantomVLM:
    """The size of a published model's images, as `phantom_image_processor` takes it."""
    vision = config.vision_config
    parts = 2 if config.model_type in ("mllama", "phi3_v") else 1  # tiles or crops along a side
    # Qwen takes a film as it is, up to 16,384 tokens of 2 x 2 patches each.
    image = parts * vision.image_size if hasattr(vision, "image_size") else 256 * vision.patch_size
    return PhantomVLM(patch=vision.patch_size, image=image)


def with_ids_of(tokenizer: Any, config: Any) -> Any:
    """A published configuration whose special tokens have the ids of the family's phantom tokenizer."""
    phantom = phantom_config(config.model_type, PHANTOM, tokenizer)
    for there, small in ((config, phantom), (config.text_config, phantom.text_config)):
        for name, value in small.to_dict().items():
            if name.endswith(("_token_id", "_token_index")) and value is not None:
                setattr(there, name, value)
    return config


def _text(phantom: PhantomVLM, tokenizer: Any, **more: Any) -> dict[str, Any]:
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "bos", "eos")}
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": phantom.hidden,
        "intermediate_size": phantom.mlp,
        "num_hidden_layers": phantom.layers,
        "num_attention_heads": phantom.heads,
        "num_key_value_heads": max(1, phantom.heads // 2),
        "max_position_embeddings": 4096,
        **ids,
        **more,
    }


def _siglip(phantom: PhantomVLM) -> dict[str, Any]:
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": phantom.vision_hidden,
        "intermediate_size": phantom.mlp,
        "num_hidden_layers": phantom.vision_layers,
        "num_attention_heads": phantom.heads,
        "patch_size": phantom.patch,
        "image_size": phantom.image,
        "vision_use_head": False,
    }


def _gemma3(phantom: PhantomVLM, tokenizer: Any) -> dict[str, Any]:
    width = phantom.hidden // phantom.heads
    kinds = ["sliding_attention"] * (phantom.layers - 1) + ["full_attention"]
    text = _text(phantom, tokenizer, head_dim=width, query_pre_attn_scalar=width, layer_types=kinds)
    return {
        "vision_config": _siglip(phantom),
        "text_config": text | {"model_type": "gemma3_text"},
        "mm_tokens_per_image": (phantom.image // phantom.patch // 2) ** 2,
        **_ids(tokenizer, image_token_index="image", boi_token_index="boi", eoi_token_index="eoi"),
    }


def _paligemma(phantom: PhantomVLM, tokenizer: Any) -> dict[str, Any]:
    text = _text(phantom, tokenizer, head_dim=phantom.hidden // phantom.heads)
    return {
        "vision_config": _siglip(phantom),
        "text_config": text | {"model_type": "gemma"},
        "projection_dim": phantom.hidden,
        "hidden_size": phantom.hidden,
        **_ids(tokenizer, image_token_index="image"),
    }


def _mllama(phantom: PhantomVLM, tokenizer: Any) -> dict[str, Any]:
    vision = {
        "hidden_size": phantom.vision_hidden,
        "intermediate_size": phantom.mlp,
        "num_hidden_layers": phantom.vision_layers,
        "num_global_layers": 1,
        "attention_heads": phantom.heads,
        "patch_size": phantom.patch,
        "image_size": phantom.image // 2,
        "intermediate_layers_indices": [0],
        "vision_output_dim": 2 * phantom.vision_hidden,
    }
    text = _text(phantom, tokenizer, vocab_size=len(tokenizer) - 1, cross_attention_layers=[1])
    return {"vision_config": vision, "text_config": text, **_ids(tokenizer, image_token_index="image")}


def _qwen(phantom: PhantomVLM, tokenizer: Any, **vision: Any) -> dict[str, Any]:
    half = phantom.hidden // phantom.heads // 2
    section = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]  # time, row, column, as 16:24:24 of 64
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section}
    vision |= {"depth": phantom.vision_layers, "num_heads": phantom.heads, "patch_size": phantom.patch}
    return {
        "vision_config": vision,
        "text_config": _text(phantom, tokenizer, rope_parameters=rope),
        "image_token_id": tokenizer.image_token_id,
        "video_token_id": tokenizer.video_token_id,
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    }


def _qwen2(phantom: PhantomVLM, tokenizer: Any) -> dict[str, Any]:
    mlp = phantom.mlp // phantom.vision_hidden
    return _qwen(phantom, tokenizer, embed_dim=phantom.vision_hidden, hidden_size=phantom.hidden, mlp_ratio=mlp)


def _qwen25(phantom: PhantomVLM, tokenizer: Any) -> dict[str, Any]:
    vision = {"hidden_size": phantom.vision_hidden, "intermediate_size": phantom.mlp}
    vision |= {"out_hidden_size": phantom.hidden, "window_size": 4 * phantom.patch}
    return _qwen(phantom, tokenizer, **vision, fullatt_block_indexes=[phantom.vision_layers - 1])


def _qwen3(phantom: PhantomVLM, tokenizer: Any) -> dict[str, Any]:
    vision = {"hidden_size": phantom.vision_hidden, "intermediate_size": phantom.mlp}
    vision |= {"out_hidden_size": phantom.hidden, "num_position_embeddings": (phantom.image // phantom.patch) ** 2}
    config = _qwen(phantom, tokenizer, **vision, deepstack_visual_indexes=[0])
    config["text_config"] |= {"head_dim": phantom.hidden // phantom.heads}
    config["text_config"]["rope_parameters"] |= {"mrope_interleaved": True}
    return config


def _ids(tokenizer: Any, **names: str) -> dict[str, int]:
    return {key: getattr(tokenizer, f"{name}_token_id") for key, name in names.items()}


_CONFIGS: Mapping[str, Callable[[PhantomVLM, Any], dict[str, Any]]] = {
    "gemma3": _gemma3,
    "qwen2_vl": _qwen2,
    "qwen2_5_vl": _qwen25,
    "qwen3_vl": _qwen3,
    "mllama": _mllama,
    "paligemma": _paligemma,
}
