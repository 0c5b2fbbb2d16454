"""LVM-Med's ResNet-50: one feature vector of an image, from a network taught on medical images of many kinds.

Nguyen et al., "LVM-Med", arXiv:2306.11925; https://github.com/duyhominhnguyen/LVM-Med. Weights for non-commercial use
(CC BY-NC-ND 2.0 in its README, CC BY-NC-SA 4.0 in its licence file). ASaRG (arXiv:2507.16623, §3.1) takes the "final
layer before the output head"; that it is the ResNet-50, and so the mean over its last feature map, follows from the
0.37 % of LLaVA's parameters that the paper gives it (§5).

`resnet` is a hub id or a local folder in transformers' layout, or a file in torchvision's (`lvmmed_resnet.torch`, as
released), or `phantom:resnet`: the same class at a small size with fixed random weights, or `random:…` (see
`nets.backbones`). Nothing is fetched unless asked for.

Images are squashed to a square, as in LVM-Med's classification recipe; ASaRG does not say how large its were.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.study import SettingsFault
from lit_modules.nets.backbones import RANDOM, check_filled, is_local, is_made, located, plain_errors
from lit_modules.reg2rg_weights import load_into, read

PHANTOM = "phantom:resnet"
LVM_MED = "ngctnnnn/lvmmed_rn50"  # `ResNetConfig()` is its configuration

# ImageNet's.
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)


@dataclass(frozen=True)
class PhantomResNet:
    """The size of `phantom:resnet`.

    Attributes:
        dim: Length of the feature vector, which is the last of four stages' width; each stage doubles it.
        seed: Its weights depend on this alone, not on the global generator.
    """

    dim: int = 64
    seed: int = 0


def build_resnet_config(resnet: str, phantom: PhantomResNet) -> Any:
    """The configuration of `resnet`; `hidden_sizes[-1]` is the length of the feature vector.

    Raises:
        SettingsFault: There is no such phantom.
        FileNotFoundError: It cannot be read; the message says what to do.
    """
    from transformers import ResNetConfig

    resnet = resnet.removeprefix(RANDOM)
    if resnet == PHANTOM:
        sizes = [phantom.dim // 2**step for step in (3, 2, 1, 0)]
        return ResNetConfig(embedding_size=sizes[0], hidden_sizes=sizes, depths=[1] * 4)
    if resnet.startswith("phantom:"):
        raise SettingsFault(f"resnet={resnet}: there is {PHANTOM}")
    if resnet == LVM_MED or _names_a_file(resnet):
        return ResNetConfig()
    with plain_errors(resnet, how_to_get_resnet(resnet)):
        return ResNetConfig.from_pretrained(located(resnet))


def build_resnet(config: Any, resnet: str, phantom: PhantomResNet, dtype: torch.dtype = torch.float32) -> Any:
    """The network, frozen and in eval mode; on the meta device, no weights are read.

    Raises:
        SettingsFault: The weights do not fill the network.
        FileNotFoundError: They cannot be read; the message says what to do.
    """
    from transformers import ResNetModel

    network: Any = ResNetModel
    meta = torch.get_default_device().type == "meta"
    if is_made(resnet) or meta:
        # The phantom's weights must not depend on what was drawn before, nor change what is drawn after.
        with torch.random.fork_rng(enabled=not meta):
            if not meta:
                torch.manual_seed(phantom.seed)
            model = network(config)
    elif _names_a_file(resnet):
        if not _is_file(resnet):
            raise FileNotFoundError(f"{resnet} cannot be read: {how_to_get_resnet(resnet)}")
        model = network(config)
        load_into(model, from_torchvision(read(resnet)), resnet)
    else:
        load: Any = partial(network.from_pretrained, config=config, ignore_mismatched_sizes=True)
        with plain_errors(resnet, how_to_get_resnet(resnet)):
            model, found = load(located(resnet), output_loading_info=True)
        check_filled(resnet, {**found, "unexpected_keys": []}, "the ResNet")  # its classification head is unknown
    return model.to(dtype).eval().requires_grad_(False)


def resnet_pixels(image: np.ndarray, size: int = 224) -> np.ndarray:
    """A radiograph as the network takes it: squashed to a square (bilinear), `(channel, size, size)`, float32.

    Args:
        image: `(row, column)`, uint8.
        size: Pixels of a side.

    Raises:
        ValueError: The image is not grey, not 8-bit or empty.
    """
    if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"expected an 8-bit grey image (row, column), not {image.dtype} {image.shape}")
    view = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    return ((levels - _MEAN[:, None]) / _STD[:, None])[:, view]


def resnet_features(model: Any, pixels: Tensor) -> Tensor:
    """`(image, channel, row, column)` → `(image, dim)`: the mean over the last feature map."""
    return model(pixels.to(model.dtype)).pooler_output.flatten(1)


def resnet_at_hand(resnet: str) -> bool:
    """Whether `resnet` can be read without a download."""
    weights = ("model.safetensors", "pytorch_model.bin")
    return is_made(resnet) or _is_file(resnet) or any(is_local(resnet, name) for name in weights)


def how_to_get_resnet(resnet: str) -> str:
    """What to do when the weights of `resnet` are not at hand."""
    if Path(resnet).is_absolute() or resnet.startswith((".", "checkpoints/")) or _names_a_file(resnet):
        return "put lvmmed_resnet.torch there, as https://github.com/duyhominhnguyen/LVM-Med links it"
    return f"run `hf download {resnet}` while online, or set model.resnet to lvmmed_resnet.torch"


def _is_file(resnet: str) -> bool:
    return Path(located(resnet)).is_file()


def _names_a_file(resnet: str) -> bool:
    """Whether a file is meant, which need not be there yet: a dry run asks for its configuration alone."""
    return _is_file(resnet) or Path(resnet).suffix in (".torch", ".pth", ".pt", ".safetensors")


# torchvision's names → transformers'.

_STEM = {"conv1": "embedder.embedder.convolution", "bn1": "embedder.embedder.normalization"}
_BLOCK = re.compile(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)")
_PART = {"conv": "convolution", "bn": "normalization", "0": "convolution", "1": "normalization"}


def from_torchvision(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of torchvision's ResNet under the names of `ResNetModel`; the classification head goes.

    Raises:
        SettingsFault: A name is not of torchvision's ResNet.
    """
    renamed = {}
    for key, value in weights.items():
        head, _, leaf = key.rpartition(".")
        block = _BLOCK.fullmatch(key)
        if head in _STEM:
            renamed[f"{_STEM[head]}.{leaf}"] = value
        elif block:
            stage, layer, kind, number, leaf = block.groups()
            where = f"encoder.stages.{int(stage) - 1}.layers.{layer}"
            if kind == "downsample.":
                renamed[f"{where}.shortcut.{_PART[number]}.{leaf}"] = value
            else:
                renamed[f"{where}.layer.{int(number) - 1}.{_PART[kind]}.{leaf}"] = value
        elif head != "fc":
            raise SettingsFault(f"{key} is no weight of torchvision's ResNet")
    return renamed
