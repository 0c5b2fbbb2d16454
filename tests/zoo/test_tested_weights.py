"""`checkpoints/tested.safetensors`: the tested weights alone, each tensor once, whole or not at all."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import zoo.trainer
from tests.zoo.toy import fit
from zoo.command import EnvironmentFault
from zoo.config import compose
from zoo.run_directory import RunDirectory
from zoo.trainer import write_tested


@pytest.fixture
def run(toy):
    return RunDirectory.create(compose("toy", "phantom"))


def checkpoint(run, weights, frozen_files=None):
    run.best.parent.mkdir()
    torch.save({"state_dict": weights, "frozen_files": frozen_files or {}, "optimizer_states": [1]}, run.best)
    return run.best


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_a_run_ends_with_the_weights_that_it_tested(toy):
    assert fit("run.mode=max", "model.lr=0.1") == 0
    (path,) = toy.glob("runs/*/checkpoints/tested.safetensors")
    best, last = (torch.load(path.with_name(f"{name}.ckpt"), weights_only=True) for name in ("best", "last"))
    weights = load_file(path)
    assert weights.keys() == best["state_dict"].keys()
    assert all(torch.equal(weights[name], weight) for name, weight in best["state_dict"].items())
    assert not torch.equal(weights["layers.0.weight"], last["state_dict"]["layers.0.weight"])
    config = compose("toy", "phantom", (), ["run.mode=max", "model.lr=0.1"])
    assert metadata(path) == {"format": "pt", "method": "toy", "recipe": "phantom", "config_hash": config.hash(),
                              "frozen_files": "{}", "tied": "{}"}  # fmt: skip


def test_tied_weights_are_kept_once_and_parts_of_one_storage_each(run):
    flat = torch.arange(12.0)
    weights = {
        "words.weight": flat[:6].view(2, 3), "head.weight": flat[:6].view(2, 3), "other": flat[6:].view(2, 3),
        "turned": flat[6:].view(2, 3).T, "empty": torch.zeros(0), "none": torch.zeros(0),
    }  # fmt: skip
    path = write_tested(run, checkpoint(run, weights, {"llm.": "gpt2"}), compose("toy", "phantom"))
    assert path == run.tested
    kept, told = load_file(path), metadata(path)
    assert json.loads(told["frozen_files"]) == {"llm.": "gpt2"}
    assert json.loads(told["tied"]) == {"head.weight": "words.weight"}
    assert kept.keys() == weights.keys() - {"head.weight"}
    assert all(torch.equal(kept[name], weights[name]) for name in kept)


def test_what_a_file_of_this_machine_brings_is_named_by_its_content(run, tmp_path):
    stage = tmp_path / "jane" / "best.ckpt"
    stage.parent.mkdir()
    stage.write_bytes(b"stage 1")
    frozen = {"llava.": str(stage), "clip.": str(stage.parent), "llm.": "gpt2", "own.": "checkpoints/phantom-gpt2"}
    told = metadata(write_tested(run, checkpoint(run, {"w": torch.ones(1)}, frozen), compose("toy", "phantom")))
    kept = json.loads(told["frozen_files"])
    assert kept["llava."] == f"best.ckpt sha256:{hashlib.sha256(b'stage 1').hexdigest()}"
    assert [kept[key] for key in ("clip.", "llm.", "own.")] == ["jane", "gpt2", "checkpoints/phantom-gpt2"]


def test_what_is_large_lies_once_in_the_checkpoint(run, monkeypatch):
    monkeypatch.setattr(zoo.trainer, "TESTED_LIMIT", 40)
    place = checkpoint(run, {"fits": torch.zeros(10)})
    assert write_tested(run, place, compose("toy", "phantom")) == run.tested
    run.tested.unlink()
    torch.save({"state_dict": {"too": torch.zeros(10), "large": torch.zeros(1)}, "frozen_files": {}}, place)
    assert write_tested(run, place, compose("toy", "phantom")) == place
    assert not run.tested.exists()


def test_a_full_disk_leaves_the_file_before(run, monkeypatch):
    place = checkpoint(run, {"weight": torch.zeros(10)})
    write_tested(run, place, compose("toy", "phantom"))
    before = run.tested.read_bytes()
    torch.save({"state_dict": {"weight": torch.ones(10)}, "frozen_files": {}}, place)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zoo.run_directory.os, "fsync", full)
    with pytest.raises(EnvironmentFault, match="tested.safetensors: No space left"):
        write_tested(run, place, compose("toy", "phantom"))
    assert run.tested.read_bytes() == before
