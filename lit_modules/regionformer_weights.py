"""Reads a checkpoint as RegionFormer's code writes it: a plain state dict of a frozen GPT-2 and the trained mapper.

Compared with LightVED-prhlt/RegionFormer at 84205cc; no trained checkpoint is published. Under its transformers
(4.10.2) the file has 272 entries: 149 of GPT-2 (`gpt.`), 24 constants that GPT-2 kept among its weights then (the
causal mask and its fill value, a layer each), and 99 of the mapper (`clip_project.`).

Every weight of a file must be asked for and every weight asked for must be there. Files are read with
`weights_only=True`: a pickle that holds code is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from datamodules.study import SettingsFault
from lit_modules.nets.prefix_mapper import PrefixMapperSettings
from lit_modules.reg2rg_weights import load_into, read

GPT, MAPPER = "gpt.", "clip_project."
HEADS = 8  # fixed in the authors' code; no shape shows it
_CONSTANT = re.compile(r"gpt\.transformer\.h\.\d+\.attn\.(bias|masked_bias)")
_LAYER = re.compile(r"transformer\.layers\.(\d+)\.")
_HEAD, _EMBEDDING = "lm_head.weight", "transformer.wte.weight"


def read_checkpoint(path: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of GPT-2 and of the mapper in the authors' file, under their own modules' names.

    Raises:
        FileNotFoundError: There is no such file.
        SettingsFault: It holds code, or is no such checkpoint; the message says why.
    """
    gpt, mapper = split(read(path), path)
    if _HEAD in gpt and _EMBEDDING in gpt and not torch.equal(gpt[_HEAD], gpt[_EMBEDDING]):
        raise SettingsFault(f"{path}: gpt.{_HEAD} differs from gpt.{_EMBEDDING}; GPT-2 has one for both")
    return gpt, mapper


def split(weights: Mapping[str, Tensor], path: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The authors' names → those of GPT-2 and those of the mapper; constants go. `path` is named in messages.

    Raises:
        SettingsFault: It is no checkpoint of RegionFormer with the transformer mapper.
    """
    kept = {key: value for key, value in weights.items() if not _CONSTANT.fullmatch(key)}
    gpt = {key.removeprefix(GPT): value for key, value in kept.items() if key.startswith(GPT)}
    mapper = {key.removeprefix(MAPPER): value for key, value in kept.items() if key.startswith(MAPPER)}
    other = sorted(kept.keys() - {GPT + key for key in gpt} - {MAPPER + key for key in mapper})
    if other:
        raise SettingsFault(f"{path}: {other[0]} is neither of GPT-2 (gpt.) nor of the mapper (clip_project.)")
    if not gpt or not mapper:
        raise SettingsFault(f"{path}: nothing under {'clip_project.' if gpt else 'gpt.'}; expected the authors' file")
    if "model.0.weight" in mapper:
        raise SettingsFault(f"{path} was trained with --mapping_type mlp; the paper's is transformer")
    return gpt, mapper


def mapper_settings(mapper: Mapping[str, Tensor], path: str) -> PrefixMapperSettings:
    """The size of the mapper that these weights are of, read off their shapes.

    Raises:
        SettingsFault: A weight that shows it is missing or has an impossible shape.
    """
    try:
        prefix_length, dim = mapper["prefix_const"].shape
        laid_out, prefix_size = mapper["linear.weight"].shape
        hidden, _ = mapper["transformer.layers.0.mlp.fc1.weight"].shape
    except KeyError as error:
        raise SettingsFault(f"{path}: clip_project.{error.args[0]} is missing") from None
    except ValueError:
        raise SettingsFault(f"{path}: a weight of clip_project. is no matrix where it should be one") from None
    if laid_out % dim:
        raise SettingsFault(f"{path}: clip_project.linear.weight has {laid_out} rows, no multiple of {dim}")
    layers = {int(match[1]) for key in mapper if (match := _LAYER.match(key))}
    return PrefixMapperSettings(
        prefix_size=prefix_size,
        dim=dim,
        prefix_length=prefix_length,
        clip_length=laid_out // dim,
        layers=max(layers) + 1,
        heads=HEADS,
        mlp_ratio=hidden / dim,
    )


def load_checkpoint(path: str, gpt: nn.Module, mapper: nn.Module) -> None:
    """Copies the authors' file into a built GPT-2 (`GPT2LMHeadModel`) and `PrefixMapper`, all of it and nothing else.

    Raises:
        FileNotFoundError: There is no such file.
        SettingsFault: It holds code, or a weight is missing, unknown or of another shape; the message names it.
    """
    for module, weights, prefix in zip((gpt, mapper), read_checkpoint(path), (GPT, MAPPER), strict=True):
        load_into(module, weights, f"{path} ({prefix})")
