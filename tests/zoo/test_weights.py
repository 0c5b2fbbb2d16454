"""Where weights are looked for, what is refused as weights, and what the cache of labels holds."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from datamodules.study import DataFault
from zoo.metrics.pairs import MetricUnavailable, Tools
from zoo.metrics.weights import LabelCache, load_strict, locate, read_checkpoint, sha256_of

HUB = {"net.pth": ("owner/name", "deep/net.pth"), "vocab.txt": ("datasets/owner/words", "vocab.txt")}


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty hub cache, and nothing in the environment that names weights."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("ZOO_WEIGHTS", raising=False)
    return tmp_path / "hub"


def put(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def in_hub_cache(cache: Path, repository: str, file: str) -> Path:
    put(cache / repository / "refs" / "main", "abc")
    return put(cache / repository / "snapshots" / "abc" / file)


def test_the_first_place_in_order_wins(tmp_path, hub_cache, monkeypatch):
    def found() -> str:
        tools = Tools(weights=tmp_path / "given")
        files = locate("net", ["net.pth"], tools, elsewhere=[tmp_path / "package"], hub=HUB, how_to="?")
        return files["net.pth"].relative_to(tmp_path).parts[0]

    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path / "variable"))
    in_hub_cache(hub_cache, "models--owner--name", "deep/net.pth")
    assert found() == "hub"
    put(tmp_path / "package" / "net.pth")
    assert found() == "package"
    put(tmp_path / "variable" / "net" / "net.pth")
    assert found() == "variable"
    put(tmp_path / "given" / "net" / "net.pth")
    assert found() == "given"


def test_files_may_lie_in_different_places(tmp_path, hub_cache):
    put(tmp_path / "given" / "net" / "net.pth")
    words = in_hub_cache(hub_cache, "datasets--owner--words", "vocab.txt")
    files = locate("net", ["net.pth", "vocab.txt"], Tools(weights=tmp_path / "given"), hub=HUB, how_to="?")
    assert files == {"net.pth": tmp_path / "given" / "net" / "net.pth", "vocab.txt": words}


def test_what_is_missing_is_told_with_all_searched_places(tmp_path, hub_cache, monkeypatch):
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path / "variable"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    put(tmp_path / "given" / "net" / "net.pth")
    tools = Tools(weights=tmp_path / "given")
    with pytest.raises(MetricUnavailable) as error:
        locate(
            "net",
            ["net.pth", "vocab.txt"],
            tools,
            elsewhere=[tmp_path / "home" / "package"],
            hub=HUB,
            how_to="fetch it",
        )
    assert error.value.reason == "vocab.txt not found" and error.value.how_to == "fetch it"
    searched = error.value.searched
    assert searched[:2] == [str(tmp_path / place / "net" / "vocab.txt") for place in ("given", "variable")]
    assert searched[2] == "~/package/vocab.txt"  # published with a run: no user's name
    assert str(hub_cache) in searched[3] and "owner/words" in searched[3]
    assert "not asked" in searched[4] and len(searched) == 5


def test_the_hub_is_asked_only_online(hub_cache, monkeypatch):
    asked = []

    def download(name, file, repo_type):
        asked.append((name, file, repo_type))
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    for online in (False, True):
        with pytest.raises(MetricUnavailable) as error:
            locate("net", ["vocab.txt"], Tools(online=online), hub=HUB, how_to="?")
        assert asked == [("owner/words", "vocab.txt", "dataset")] * online
    assert "ConnectionError" in error.value.searched[-1]


def net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))


def test_weights_that_fit_are_loaded(tmp_path):
    source, target = net(), net()
    for name in ("new.pth", "old.pth"):
        torch.save(source.state_dict(), tmp_path / name, _use_new_zipfile_serialization=name == "new.pth")
        load_strict(target, read_checkpoint(tmp_path / name))
        assert torch.equal(target[0].weight, source[0].weight)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("0.bias"), "1 missing: 0.bias"),
        (lambda state: state.update(extra=torch.zeros(1)), "1 unexpected: extra"),
        (lambda state: state.update({"0.weight": torch.zeros(2, 4)}), r"0.weight \(2, 4\) instead of \(2, 3\)"),
        (lambda state: state.update({"1.bias": "text"}), "1 no tensor: 1.bias"),
        (lambda state: state["0.weight"].fill_(float("nan")), "1 not finite: 0.weight"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, words):
    state = net().state_dict()
    change(state)
    with pytest.raises(DataFault, match=words):
        load_strict(net(), state, "net.pth")


class Code:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_pickle",)


def test_code_in_a_pickle_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Code()))
    torch.save({"model_state_dict": Code()}, tmp_path / "zip.pth")
    for name in ("raw.pth", "zip.pth"):
        with pytest.raises(DataFault, match="without running code"):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "made_by_a_pickle").exists()


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
def test_garbage_is_no_checkpoint(tmp_path, name):
    (tmp_path / name).write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(DataFault, match=f"{name} is no checkpoint"):
        read_checkpoint(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(DataFault, match="holds a list"):
        read_checkpoint(tmp_path / "list.pth")


def test_a_changed_file_has_another_hash(tmp_path):
    file = put(tmp_path / "a", "abc")
    assert sha256_of(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    put(file, "abcd")
    assert sha256_of(file).startswith("88d4266fd4e6338d")


def labeller(seen: list[str]):
    def label(texts: list[str]) -> list[int]:
        seen.extend(texts)
        return [len(text) for text in texts]

    return label


def test_each_text_is_labelled_once(tmp_path, monkeypatch):
    monkeypatch.setattr(LabelCache, "_memory", {})
    seen: list[str] = []
    assert LabelCache("net", "f" * 64).labels(["bb", "a", "bb"], labeller(seen)) == [2, 1, 2]
    assert LabelCache("net", "f" * 64).labels(["ccc", "a"], labeller(seen)) == [3, 1]
    assert seen == ["bb", "a", "ccc"]
    LabelCache("net", "0" * 64).labels(["a"], labeller(seen))  # other weights
    assert seen == ["bb", "a", "ccc", "a"]
    assert list(tmp_path.iterdir()) == []  # no folder, no file


def test_labels_on_disk_outlive_the_process_and_hold_no_text(tmp_path, monkeypatch):
    seen: list[str] = []
    for texts in (["the patient's heart"], ["other", "the patient's heart"], ["other"]):
        monkeypatch.setattr(LabelCache, "_memory", {})  # as in a new process
        LabelCache("net", "f" * 64, tmp_path).labels(texts, labeller(seen))
    assert seen == ["the patient's heart", "other"]
    (file,) = (tmp_path / "labels").iterdir()
    assert file.name == "net-ffffffffffffffff.json"
    assert sorted(json.loads(file.read_text()).values()) == [5, 19] and "heart" not in file.read_text()


def test_two_processes_may_fill_one_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(LabelCache, "_memory", {})
    file = tmp_path / "labels" / "net-ffffffffffffffff.json"

    def slow(texts: list[str]) -> list[int]:
        put(file, '{"written by another meanwhile": 7}')
        return [len(text) for text in texts]

    LabelCache("net", "f" * 64, tmp_path).labels(["a"], slow)
    assert sorted(json.loads(file.read_text()).values()) == [1, 7]


def test_a_broken_or_unwritable_cache_costs_no_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(LabelCache, "_memory", {})
    file = put(tmp_path / "labels" / "net-ffffffffffffffff.json", '{"half')
    assert LabelCache("net", "f" * 64, tmp_path).labels(["a"], labeller([])) == [1]
    assert list(json.loads(file.read_text()).values()) == [1]
    blocked = put(tmp_path / "a file")
    with pytest.warns(UserWarning, match="labels are not kept"):
        assert LabelCache("net", "0" * 64, blocked).labels(["a"], labeller([])) == [1]
