"""`zoo.load`: a trained model of a run, a checkpoint, an export or a name, the same each time."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import zoo
from datamodules.study import DataFault
from tests.zoo.toy import fit
from zoo.command import UsageError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of the toy."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CONFIGS", str(Path(__file__).parent / "toy_configs"))
        patch.chdir(place)
        assert fit("model.lr=0.1", "run.mode=max") == 0
    return next((place / "runs").iterdir())


@pytest.fixture
def exported(trained, tmp_path):
    """The layout that `zoo.export` writes."""
    folder = tmp_path / "exported"
    folder.mkdir()
    shutil.copy(trained / "config.yaml", folder)
    shutil.copy(trained / "checkpoints" / "tested.safetensors", folder / "model.safetensors")
    return folder


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_every_form_of_a_run_gives_the_same_model(toy, trained, exported):
    tested = trained / "checkpoints" / "tested.safetensors"
    right = load_file(tested)
    lone = toy / "lone.safetensors"
    shutil.copy(tested, lone)
    forms = (trained, tested, trained / "checkpoints" / "best.ckpt", exported, exported / "model.safetensors", lone)
    for place in forms:
        model = zoo.load(place)
        assert same(weights(model), right), place
        assert not model.training and any(weight.requires_grad for weight in model.parameters())


def test_settings_are_the_runs_unless_given(toy, trained):
    assert zoo.load(str(trained)).lr == 0.1
    model = zoo.load(trained, lr=0.5, betas=[0.5, 0.75])
    assert model.lr == 0.5 and tuple(model.betas) == (0.5, 0.75)
    with pytest.raises(UsageError, match="did you mean model.lr"):
        zoo.load(trained, lrr=1)
    with pytest.raises(DataFault, match="cannot load this checkpoint"):
        zoo.load(trained, net={"width": 16})


def test_names_of_the_registry(toy, trained, exported, monkeypatch):
    own = {"what": "toy", "licence": "x", "method": "toy", "recipe": "phantom"}
    entries = {"toy@authors": own | {"hub": "a/b", "place": "weights", "files": {"all.bin": {}}, "convert": "x:y"},
               "part": {"what": "a part", "licence": "x", "files": {}}}  # fmt: skip
    (toy / "registry").mkdir()
    (toy / "registry" / "manifest.yaml").write_text(yaml.safe_dump(entries))
    monkeypatch.setattr("zoo.registry.manifest.FOLDER", toy / "registry")
    with pytest.raises(UsageError, match="python -m zoo.download toy@authors"):
        zoo.load("toy@authors")
    with pytest.raises(UsageError, match="no model that reports"):
        zoo.load("part")
    with pytest.raises(UsageError, match="did you mean toy@authors"):
        zoo.load("toy@author")


def test_what_is_broken_or_strange_is_named(toy, trained, exported):
    (exported / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(DataFault, match="cannot load this checkpoint"):
        zoo.load(exported)
    (exported / "config.yaml").unlink()
    with pytest.raises(UsageError, match="holds no config.yaml"):
        zoo.load(exported)
    save_file({"weight": torch.zeros(1)}, toy / "strange.safetensors")
    with pytest.raises(UsageError, match="does not say which method"):
        zoo.load(toy / "strange.safetensors")
    save_file({"weight": torch.zeros(1)}, toy / "other.safetensors", {"method": "toy", "recipe": "phantom"})
    with pytest.raises(DataFault, match="of another model"):
        zoo.load(toy / "other.safetensors")
