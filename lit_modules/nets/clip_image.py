"""CLIP's image side: from an 8-bit grey image (or mask) to one embedding of length 1.

Radford et al., arXiv:2103.00020, as OpenAI's package prepares images: the shorter side becomes 224 pixels (bicubic),
the middle is cut out, three equal channels are normalised. Pixel for pixel what torchvision makes of a Pillow image;
transformers' own processor cuts one pixel off where a margin is odd.

The cut drops what lies outside the central square, and with it boxes near the edges: such a mask comes out black, as
for a sentence without boxes. That is the paper's behaviour (`fit="crop"`). `fit="pad"` pads to a square first and loses
nothing.

`clip` is a hub id or a local folder (real weights), or `phantom:clip`: the same class at a small size with fixed random
weights, or `random:…` (see `nets.backbones`). Nothing is fetched unless asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from datamodules.masks import Box
from datamodules.study import SettingsFault
from lit_modules.nets.backbones import RANDOM, check_filled, is_local, is_made, located, plain_errors

Fit = Literal["crop", "pad"]

PHANTOM = "phantom:clip"
VIT_B_32 = "openai/clip-vit-base-patch32"  # `CLIPVisionConfig()` is its configuration

_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def clip_view(image: np.ndarray, fit: Fit = "crop", size: int = 224) -> np.ndarray:
    """What CLIP sees of an image or of a mask, `(size, size)`, uint8.

    Args:
        image: `(row, column)`, uint8.
        fit: `crop` keeps the central square; `pad` adds black to both ends of the shorter side.
        size: Pixels of a side.

    Raises:
        ValueError: The image is not grey, not 8-bit or empty.
        SettingsFault: There is no such `fit`.
    """
    if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"expected an 8-bit grey image (row, column), not {image.dtype} {image.shape}")
    if fit not in ("crop", "pad"):
        raise SettingsFault(f"fit={fit}: there are crop and pad")
    if fit == "pad":
        image = _squared(image)
    rows, columns = image.shape
    short = min(rows, columns)
    # int() on the long side and round() to even on the margin are torchvision's.
    width, height = (size if length == short else int(size * length / short) for length in (columns, rows))
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def _squared(image: np.ndarray) -> np.ndarray:
    rows, columns = image.shape
    side = max(rows, columns)
    square = np.zeros((side, side), np.uint8)
    top, left = (side - rows) // 2, (side - columns) // 2
    square[top : top + rows, left : left + columns] = image
    return square


def view_frame(width: int, height: int, fit: Fit = "crop") -> Box:
    """The part of an image that `clip_view` shows, as fractions of its width and height; padding reaches out of it."""
    side = min(width, height) if fit == "crop" else max(width, height)
    across, down = side / width / 2, side / height / 2
    return (0.5 - across, 0.5 - down, 0.5 + across, 0.5 + down)


def clip_pixels(image: np.ndarray, fit: Fit = "crop", size: int = 224) -> np.ndarray:
    """`clip_view` in three equal channels, normalised, `(channel, size, size)`, float32."""
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    table = (levels - _MEAN[:, None]) / _STD[:, None]
    return table[:, clip_view(image, fit, size)]


def clip_embeddings(model: Any, pixels: Tensor) -> Tensor:
    """`(image, channel, size, size)` → `(image, dim)` of length 1, float32."""
    return F.normalize(model(pixel_values=pixels).image_embeds.float(), dim=-1)


@dataclass(frozen=True)
class PhantomCLIP:
    """The size of `phantom:clip`.

    Attributes:
        hidden: Width of a token.
        layers: Transformer layers.
        heads: Attention heads.
        mlp: Hidden width of the feed-forward layers.
        patch: Pixels of a patch's side.
        image: Pixels of the image's side.
        dim: Width of an embedding.
        seed: Its weights depend on this alone, not on the global generator.
    """

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    mlp: int = 128
    patch: int = 32
    image: int = 224
    dim: int = 64
    seed: int = 0


def build_vision_config(clip: str, phantom: PhantomCLIP) -> Any:
    """The configuration of CLIP's image side.

    Raises:
        SettingsFault: There is no such phantom.
        FileNotFoundError: It cannot be read; the message says what to do.
    """
    from transformers import CLIPVisionConfig

    clip = clip.removeprefix(RANDOM)
    if clip == PHANTOM:
        return CLIPVisionConfig(
            hidden_size=phantom.hidden,
            num_hidden_layers=phantom.layers,
            num_attention_heads=phantom.heads,
            intermediate_size=phantom.mlp,
            patch_size=phantom.patch,
            image_size=phantom.image,
            projection_dim=phantom.dim,
        )
    if clip.startswith("phantom:"):
        raise SettingsFault(f"clip={clip}: there is {PHANTOM}")
    if clip == VIT_B_32:
        return CLIPVisionConfig()
    with plain_errors(clip, how_to_get_clip(clip)):
        return CLIPVisionConfig.from_pretrained(located(clip))


def build_vision_model(config: Any, clip: str, phantom: PhantomCLIP, dtype: torch.dtype = torch.float32) -> Any:
    """CLIP's image side with its projection, frozen and in eval mode; on the meta device, no weights are read.

    Raises:
        SettingsFault: The weights do not fill the model.
        FileNotFoundError: They cannot be read; the message says what to do.
    """
    from transformers import CLIPVisionModelWithProjection

    tower: Any = CLIPVisionModelWithProjection
    meta = torch.get_default_device().type == "meta"
    if is_made(clip) or meta:
        # The phantom's weights must not depend on what was drawn before, nor change what is drawn after.
        with torch.random.fork_rng(enabled=not meta):
            if not meta:
                torch.manual_seed(phantom.seed)
            model = tower(config).to(dtype)
        return model.eval().requires_grad_(False)
    load: Any = partial(tower.from_pretrained, config=config, dtype=dtype, ignore_mismatched_sizes=True)
    with plain_errors(clip, how_to_get_clip(clip)):
        model, found = load(located(clip), output_loading_info=True)
    check_filled(clip, {**found, "unexpected_keys": []}, "CLIP's image side")  # its text side is unknown
    return model.eval().requires_grad_(False)


def clip_at_hand(clip: str) -> bool:
    """Whether `clip` can be read without a download."""
    weights = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    return is_made(clip) or any(is_local(clip, name) for name in weights)


def how_to_get_clip(clip: str) -> str:
    """What to do when the weights of `clip` are not at hand."""
    if Path(clip).is_absolute() or clip.startswith((".", "checkpoints/")):
        return "give a folder with config.json and model.safetensors"
    return f"run `hf download {clip}` while online, or set model.clip to a local folder"


# OpenAI's names → transformers'.

_OUTER = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",  # their spelling
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_model.post_layernorm.weight",
    "ln_post.bias": "vision_model.post_layernorm.bias",
}
_INNER = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")


def from_openai(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image side of OpenAI's weights under the names of `CLIPVisionModelWithProjection`, float32.

    Args:
        weights: A whole CLIP (the image side under `visual.`; the text side is left out), or its image side alone.

    Raises:
        SettingsFault: A name is not of CLIP's vision transformer.
    """
    if any(key.startswith("visual.") for key in weights):
        weights = {key.removeprefix("visual."): value for key, value in weights.items() if key.startswith("visual.")}
    renamed: dict[str, Tensor] = {}
    for key, value in weights.items():
        block = _BLOCK.fullmatch(key)
        if key in _OUTER:
            renamed[_OUTER[key]] = value.float()
        elif key == "proj":
            renamed["visual_projection.weight"] = value.float().T.contiguous()
        elif block and block[2] == "attn.in_proj":
            thirds = zip(("q_proj", "k_proj", "v_proj"), value.float().chunk(3), strict=True)
            renamed |= {f"{_layer(block[1])}.self_attn.{name}.{block[3]}": part.clone() for name, part in thirds}
        elif block and block[2] in _INNER:
            renamed[f"{_layer(block[1])}.{_INNER[block[2]]}.{block[3]}"] = value.float()
        else:
            raise SettingsFault(f"{key} is no weight of CLIP's vision transformer in OpenAI's names")
    return renamed


def _layer(number: str) -> str:
    return f"vision_model.encoder.layers.{number}"
