"""Weights that are no weights: the file is named, with what to do; no network is left with random numbers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from datamodules.study import DataFault
from lit_modules.checkpoint_file import read_checkpoint
from lit_modules.nets.backbones import PhantomSize, build_config, build_language_model, build_tokenizer
from lit_modules.nets.clip_image import PhantomCLIP, build_vision_config, build_vision_model
from lit_modules.reg2rg_weights import read
from tests.datamodules.test_broken_files import cut, emptied, noise, pointer

OWN = Path(__file__).parents[2] / "checkpoints"
DAMAGES = (cut, noise, emptied, pointer)
NAMED = "(damaged or cut short .*; fetch it again|is empty; fetch it again|is a Git LFS pointer, .*git lfs pull)"


def language_model(folder: str):
    build_tokenizer(folder)
    return build_language_model(build_config(folder, PhantomSize(), 0), folder, torch.float32, PhantomSize())


def clip(folder: str):
    return build_vision_model(build_vision_config(folder, PhantomCLIP()), folder, PhantomCLIP())


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("own", "name", "build"),
    [
        ("phantom-gpt2", "model.safetensors", language_model),
        ("phantom-gpt2", "config.json", language_model),
        ("phantom-gpt2", "tokenizer.json", language_model),
        ("phantom-gpt2", "tokenizer_config.json", language_model),
        ("phantom-clip", "model.safetensors", clip),
        ("phantom-clip", "config.json", clip),
    ],
)
def test_a_broken_file_of_a_model_is_named(tmp_path, own, name, build, damage):
    folder = shutil.copytree(OWN / own, tmp_path / "a model")
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(ValueError, match=rf"a model/{name}: .*{NAMED}") as caught:
        build(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("own", "other", "build"),
    [("phantom-llama", "phantom-gpt2", language_model), ("phantom-clip", "phantom-gpt2", clip)],
)
def test_another_models_configuration_is_refused(tmp_path, own, other, build):
    folder = shutil.copytree(OWN / own, tmp_path / "a model")
    shutil.copy(OWN / other / "config.json", folder)
    with pytest.raises(ValueError, match="a model does not fill "):
        build(str(folder))


def test_a_configuration_of_another_size_is_refused(tmp_path):
    folder = shutil.copytree(OWN / "phantom-gpt2", tmp_path / "a model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": config["n_layer"] + 1}))
    with pytest.raises(ValueError, match="a model does not fill its model: transformer.h.* is missing"):
        language_model(str(folder))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", ["pth", "old.pth", "safetensors"])
def test_a_broken_file_of_weights_is_named(tmp_path, suffix, damage):
    path = tmp_path / f"weights.{suffix}"
    weights = {"a": torch.arange(5000.0)}
    if suffix == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=suffix == "pth")
    path.write_bytes(damage(path.read_bytes()))
    for read_it, kind in ((read, ValueError), (lambda name: read_checkpoint(Path(name)), DataFault)):
        with pytest.raises(kind, match=rf"weights.{suffix}: .*{NAMED}") as caught:
            read_it(str(path))
        assert "\n" not in str(caught.value)
