"""What training begins with: the methods' own checkpoints in every form, names of the registry, the authors' file."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

import zoo
from datamodules.study import SettingsFault
from lit_modules.nets.backbones import PhantomSize
from lit_modules.nets.clip_image import PhantomCLIP
from lit_modules.nets.perceiver import PerceiverSettings
from lit_modules.nets.vit3d import Encoder3D
from lit_modules.reg2rg import Decoding, Reg2RG
from lit_modules.reg2rg_weights import from_authors_file
from lit_modules.regionformer import Mapper, RegionFormer
from tests.lit_modules.reg2rg_tiny import golden_model
from zoo.config import compose
from zoo.registry.load import build_model
from zoo.registry.manifest import FOLDER, registry

BASELINES = [entry for entry in registry().values() if entry.place == "here" and entry.method]
SAID = {name: entry.get("says") for name, entry in yaml.safe_load((FOLDER / "manifest.yaml").read_text()).items()}


def regionformer(**other):
    model = RegionFormer(
        **{
            "llm": "phantom:gpt2",
            "phantom": PhantomSize(hidden=32, layers=1, heads=2, mlp=64),
            "clip": "phantom:clip",
            "phantom_clip": PhantomCLIP(hidden=32, layers=1, heads=2, mlp=64, patch=16, image=32),
            "mapper": Mapper(prefix_length=2, clip_length=2, layers=1, heads=2),
        }
        | other
    )
    model.configure_model()
    return model


def reg2rg(**other):
    encoder = Encoder3D(16, 8, patch_size=8, patch_frames=4, dim=24, depth=1, heads=2, mlp_dim=32)
    model = Reg2RG(
        llm="checkpoints/phantom-llama",
        size=(16, 16, 8),
        vision=encoder,
        mask_encoder=Encoder3D(16, 8, patch_size=8, patch_frames=4, dim=24, depth=1, heads=2, mlp_dim=32, channels=1),
        perceiver=PerceiverSettings(depth=1, latents=4, heads=2, dim_head=8),
        gradient_checkpointing=False,
        dtype="float32",
        decoding=Decoding(max_new_tokens=4),
        **other,
    )
    model.configure_model()
    return model


def trained(model):
    """As if it had learnt something."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight))
    return model


def saved(model, place, form):
    """The checkpoint as a run writes it, in one of its forms."""
    content = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(content)
    weights, frozen = content["state_dict"], json.dumps(content["frozen_files"])
    told = {"format": "pt", "method": "x", "recipe": "phantom", "frozen_files": frozen, "tied": "{}"}
    if form == "ckpt":
        torch.save(content, place / "best.ckpt")
        return place / "best.ckpt"
    save_file({name: value.contiguous() for name, value in weights.items()}, place / "model.safetensors", told)
    return place if form == "export" else place / "model.safetensors"


def same(one, other):
    mine, others = one.state_dict(), other.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)


@pytest.mark.parametrize("build", [regionformer, reg2rg])
@pytest.mark.parametrize("form", ["ckpt", "safetensors", "export"])
def test_training_begins_where_a_run_ended(tmp_path, build, form):
    model = trained(build())
    place = saved(model, tmp_path, form)
    begun = build(init_from=str(place))
    assert same(begun, model) and not same(build(), model)
    assert {n for n, p in begun.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    assert begun.frozen_files() == model.frozen_files()
    assert all(need.met for need in begun.requirements())


def test_another_models_weights_are_refused(tmp_path):
    place = str(saved(regionformer(), tmp_path, "ckpt"))
    with pytest.raises(SettingsFault, match="best.ckpt is of another model: size mismatch for clip_project"):
        regionformer(init_from=place, input="image")
    with pytest.raises(SettingsFault, match="best.ckpt: this checkpoint is of another model"):
        regionformer(init_from=place, mapper=Mapper(prefix_length=2, clip_length=2, layers=2, heads=2))
    with pytest.raises(SettingsFault, match="holds other weights"):
        regionformer(init_from=place, phantom=PhantomSize(hidden=32, layers=1, heads=2, mlp=64, seed=1))


@pytest.mark.parametrize("build", [regionformer, reg2rg])
def test_training_goes_on_from_what_was_gone_on_from(tmp_path, build):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    place = saved(trained(build()), first, "ckpt")
    model = trained(build(init_from=str(place)))
    on_top = saved(model, second, "safetensors")
    place.unlink()  # all that the second lacks is in published files
    assert same(build(init_from=str(on_top)), model)


def test_frozen_weights_of_another_checkpoint_come_from_there_or_are_missed(tmp_path):
    """A whole model, and on top of it one that holds what it trained alone."""
    whole = trained(reg2rg())
    with torch.no_grad():
        for weight in whole.parameters():
            weight.add_(0.01)  # the frozen ones too
    told = {"method": "reg2rg", "recipe": "paper", "frozen_files": "{}", "tied": "{}"}
    below = tmp_path / "whole.safetensors"
    save_file({name: value.contiguous() for name, value in whole.state_dict().items()}, below, told)
    model = trained(reg2rg(init_from=str(below)))
    assert set(model.frozen_files().values()) == {str(below)}
    on_top = saved(model, tmp_path, "ckpt")
    third = reg2rg(init_from=str(on_top))
    assert same(third, model) and set(third.frozen_files().values()) == {str(on_top)}
    content = torch.load(on_top, weights_only=True)
    torch.save(content | {"frozen_files": {"lang_model.": "whole.safetensors sha256:00"}}, on_top)
    with pytest.raises(SettingsFault, match="was trained on frozen weights of whole.safetensors"):
        reg2rg(init_from=str(on_top))


def test_the_authors_file_converted_begins_as_the_file_itself(golden, tmp_path, monkeypatch):
    model, _, _ = golden_model(golden, tmp_path)
    wanted = model.state_dict()
    weights = from_authors_file(str(tmp_path / "pytorch_model.bin"), set(wanted))
    assert weights.keys() == wanted.keys()
    monkeypatch.chdir(tmp_path)
    Path("weights").mkdir()
    told = {"method": "reg2rg", "recipe": "paper", "frozen_files": "{}", "tied": "{}"}
    save_file({name: value.contiguous() for name, value in weights.items()}, "weights/reg2rg@authors.safetensors", told)
    Path("pytorch_model.bin").unlink()
    settings = vars(model.settings) | {"init_from": "reg2rg@authors", "vision_weights": "not/there.pth"}
    begun = Reg2RG(**settings)
    begun.configure_model()
    assert same(begun, model), "neither the language model's own weights nor the encoder's are asked for"


@pytest.mark.parametrize("entry", BASELINES, ids=lambda entry: entry.name)
def test_the_repositorys_baselines_say_what_they_said_and_are_trained_on(entry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = zoo.load(entry.name)
    settings = ["data.root=drawn", "data.num_workers=0", f"model.init_from={entry.name}"]
    config = compose(entry.method, entry.recipe, (), settings)
    data, source = config.build("data"), model.preprocessor()
    data.draw_phantom(1, 1)
    study = data.read(data.studies("test")[0])
    with torch.inference_mode():
        (report,) = model.generate(source.collate([source(study, source.arrays(study), None)]))
    assert not model.training and report.text == SAID[entry.name]
    assert same(build_model(config), model)
