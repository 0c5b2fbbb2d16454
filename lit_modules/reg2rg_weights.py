"""Reads the authors' released weights into `Reg2RG`.

* `RadFM_vit3d.pth`: the volume encoder, a flat state dict.
* `RadFM_perceiver_fc.pth`: `{"perceiver": …, "fc": …}`. `fc` projects to another language model's width (5120); the
  authors do not load it, and neither do we.
* `pytorch_model.bin`: a whole trained model, 710 entries, in bfloat16.

The same content as `.safetensors` is read too.

Every weight of a file must be asked for and every weight asked for must be there. Files are read with
`weights_only=True`: a pickle that holds code is refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from datamodules.files import unreadable
from datamodules.study import SettingsFault
from lit_modules.nets.backbones import located

_BROKEN = (OSError, EOFError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, SafetensorError)
EMBEDDING = "embedding_layer.weight"  # the language model's own embedding, kept twice
_BASE = "lang_model.base_model.model.model.embed_tokens.weight"


def load_weights(model: nn.Module, vision: str | None, adapter: str | None, whole: str | None) -> None:
    """Reads what is given into a built `Reg2RG`; with `whole`, nothing else is read.

    Raises:
        FileNotFoundError: A file is not there.
        SettingsFault: A file holds code, or a weight is missing, unknown or of another shape; the message names it.
    """
    if whole:
        load_into(model, from_authors(read(whole), set(model.state_dict())), whole)
        return
    if vision:
        load_into(model.get_submodule("embedding_layer.vision_encoder"), read(vision), vision)
    if adapter:
        parts = read(adapter)
        if "latents" in parts:  # the resampler's own state dict, as `checkpoints/phantom-vit3d` has it
            parts = {"perceiver": parts}
        if not isinstance(parts.get("perceiver"), Mapping):
            raise SettingsFault(f"{adapter}: no entry 'perceiver'; expected the authors' RadFM_perceiver_fc.pth")
        load_into(model.get_submodule("embedding_layer.perceiver"), parts["perceiver"], adapter)


def read(path: str) -> dict:
    """The mapping in a file, without running anything that it holds."""
    path = located(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; put the authors' weights there")
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_head(path) == b"PK")
    except pickle.UnpicklingError as error:
        if "truncated" in str(error) or not _head(path).startswith((b"PK", b"\x80")):  # neither zip nor pickle
            raise SettingsFault(unreadable(Path(path), "no weights", "as weights")) from None
        raise SettingsFault(f"{path}: refused, for it holds more than weights (a pickle may run code)") from None
    except _BROKEN as error:
        raise SettingsFault(unreadable(Path(path), error, "as weights")) from None
    if not isinstance(content, Mapping):
        raise SettingsFault(f"{path}: holds no weights by name, but a {type(content).__name__}")
    return dict(content)


def _head(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(2)  # of a zip archive "PK"; files from before torch 1.6 are none, and cannot be mapped


def from_authors_file(path: str, wanted: set[str]) -> dict[str, Tensor]:
    """The weights of the authors' `pytorch_model.bin` under our names; the checkpoint registry writes them as ours."""
    return from_authors(read(path), wanted)


def from_authors(weights: Mapping[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """The authors' names → ours.

    Rotary tables and the embedding's second copy go; names from before peft 0.7 are brought up to date.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in weights.items():
        if key.endswith(".rotary_emb.inv_freq"):
            continue
        if key == EMBEDDING:
            if _BASE in weights and not torch.equal(value, weights[_BASE]):
                raise SettingsFault(
                    f"{EMBEDDING} differs from the language model's own embedding; it should be the same"
                )
            key = _BASE
        head, dot, leaf = key.rpartition(".")
        if key not in wanted and f"{head}.base_layer.{leaf}" in wanted:
            key = f"{head}.base_layer.{leaf}"
        renamed[key] = value
    return renamed


def load_into(module: nn.Module, weights: Mapping[str, Tensor], path: str) -> None:
    """Copies weights by name, all of them and nothing else."""
    there = module.state_dict()
    faults = [f"{key} is missing" for key in there if key not in weights]
    faults += [f"{key} is unknown" for key in weights if key not in there]
    for key in there.keys() & weights.keys():
        value = weights[key]
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if shape != tuple(there[key].shape):
            faults.append(f"{key} is {shape}, not {tuple(there[key].shape)}")
    if faults:
        more = f", and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise SettingsFault(f"{path} does not fit this configuration: {', '.join(sorted(faults)[:5])}{more}")
    module.load_state_dict(weights, strict=True)
