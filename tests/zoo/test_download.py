"""`zoo.download` and the hub's real client against a stand-in of the hub: what breaks, lies, is gated or missing."""

import fcntl
import hashlib
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import close_session
from safetensors import safe_open

from tests.zoo.hub_stand_in import COMMIT, Hub, serve
from zoo.download import main
from zoo.registry import transfer

WEIGHTS = os.urandom(3 << 20)  # three of the blocks that it is read in
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
REPOSITORY = {"what": "a model", "licence": "MIT", "hub": "someone/model", "revision": None, "place": "cache"}


@pytest.fixture
def hub():
    yield from serve(Hub({"model.safetensors": WEIGHTS, "config.json": b"{}"}, large={"model.safetensors"}))


@pytest.fixture
def second():
    yield from serve(Hub({"model.safetensors": WEIGHTS, "config.json": b"{}"}, large={"model.safetensors"}))


@pytest.fixture
def place(tmp_path, monkeypatch, hub):
    """An empty working folder with a registry, a hub and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoo.registry.manifest.FOLDER", tmp_path / "registry")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("zoo.registry.hub.default_endpoint", lambda: hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # as the command does before the client is there
    monkeypatch.setattr(transfer, "PAUSE", 0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    close_session()  # the client reads the proxies once
    return tmp_path


def register(place, **entries):
    (place / "registry").mkdir(exist_ok=True)
    (place / "registry" / "manifest.yaml").write_text(yaml.safe_dump(entries))


def model(**other):
    files = {"model.safetensors": {"bytes": None, "sha256": SHA256}, "config.json": {"bytes": None, "sha256": None}}
    return {"model": REPOSITORY | {"files": files} | other}


def left(place):
    """All files but the registry's own."""
    return [path for path in place.rglob("*") if path.is_file() and "registry" not in path.parts]


def test_files_go_where_the_hubs_client_finds_them_by_the_id_alone(place, hub):
    register(place, **model(revision=COMMIT))
    assert main(["model"]) == 0
    for name, content in hub.files.items():
        assert Path(try_to_load_from_cache("someone/model", name)).read_bytes() == content
    assert main(["model"]) == 0
    assert len(hub.transfers("model.safetensors")) == 1, "what is there and right is not fetched again"


def test_a_broken_transfer_is_gone_on_with(place, hub):
    register(place, **model())
    hub.breaks["model.safetensors"] = [1 << 20, 1 << 19]
    assert main(["model", "--to", "here"]) == 0
    assert (place / "here" / "model" / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.transfers("model.safetensors") == [None, f"bytes={1 << 20}-", f"bytes={(1 << 20) + (1 << 19)}-"]


def test_a_download_goes_on_in_another_process(place, hub, capsys):
    register(place, **model())
    hub.breaks["model.safetensors"] = [1 << 20] + [0] * 4
    assert main(["model", "--to", "here"]) == 4
    assert f"{1 << 20} bytes are kept, run again" in capsys.readouterr().err
    assert main(["model", "--to", "here"]) == 0
    assert hub.transfers("model.safetensors")[-1] == f"bytes={1 << 20}-"
    assert not list(place.rglob("*.partial"))


@pytest.mark.parametrize("wrong", ["content", "manifest", "small file"])
def test_a_wrong_sum_is_refused_and_nothing_is_kept(place, hub, capsys, wrong):
    entry = model()
    if wrong == "content":  # not what the hub itself says
        entry["model"]["files"]["model.safetensors"]["sha256"] = None
        hub.told["model.safetensors"] = "0" * 64
    elif wrong == "manifest":
        entry["model"]["files"]["model.safetensors"]["sha256"] = "1" * 64
    else:
        hub.told["config.json"] = "2" * 40
    register(place, **entry)
    assert main(["model", "--to", "here"]) == 3
    assert "is right" in capsys.readouterr().err
    name = "config.json" if wrong == "small file" else "model.safetensors"
    assert not [path for path in left(place) if path.name.startswith(name)]


def test_the_next_mirror_is_asked(place, hub, second, capsys):
    register(place, **model())
    second.told["model.safetensors"] = "0" * 64  # it lies about one file, and lacks the other
    del second.files["config.json"]
    assert main(["model", "--mirror", second.url]) == 0
    assert second.asked and Path(try_to_load_from_cache("someone/model", "model.safetensors")).read_bytes() == WEIGHTS
    hub.files.clear()
    second.files["config.json"] = b"{}"
    assert main(["model", "--to", "new", "--mirror", second.url]) == 3
    said = capsys.readouterr().err
    assert "sha256" in said and "lacks a file" in said, "what each place said"


def test_a_gate_is_named_with_what_to_do(place, hub, capsys):
    register(place, **model(gate="the Model Licence"))
    hub.gated = True
    assert main(["model"]) == 4
    assert (
        "accept the Model Licence at https://huggingface.co/someone/model, `hf auth login`" in capsys.readouterr().err
    )
    assert not left(place)


def test_a_missing_revision_and_a_missing_file_are_named(place, hub, capsys):
    register(place, **model(revision="d" * 40))
    assert main(["model"]) == 3
    assert f"someone/model has no revision {'d' * 40}" in capsys.readouterr().err
    del hub.files["config.json"]
    register(place, **model())
    assert main(["model"]) == 3
    assert "lacks a file" in capsys.readouterr().err


def test_a_token_stays_with_the_hub(place, hub, second, monkeypatch):
    """Large files come from another host, which must not see who asks."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    register(place, **model())
    hub.elsewhere = second.url
    assert main(["model", "--to", "here"]) == 0
    assert {token for *_, token in hub.asked} == {"Bearer hf_secret"}
    assert [(method, token) for method, *_, token in second.asked] == [("GET", None)]


def test_patterns_choose_among_the_repositorys_files(place, hub):
    hub.files |= {"tokenizer.model": b"t", "original/consolidated.safetensors": b"o", "flax.msgpack": b"f"}
    register(place, model=REPOSITORY | {"patterns": ["*.json", "*.safetensors", "*.model"]})
    assert main(["model", "--to", "here"]) == 0
    found = {path.name for path in (place / "here" / "model").iterdir()}
    assert found == {"config.json", "model.safetensors", "tokenizer.model"}


def test_a_copy_is_carried_to_a_machine_without_a_network(place, hub, capsys):
    entry = model()
    entry["model"]["files"]["model.safetensors"]["sha256"] = None  # the sum that the hub told travels with the copy
    register(place, **entry)
    assert main(["model", "--to", "stick"]) == 0
    asked = len(hub.asked)
    assert main(["model", "--from", "stick"]) == 0
    assert (place / "weights" / "model" / "model.safetensors").read_bytes() == WEIGHTS
    assert subprocess.run(["sha256sum", "-c", "model.sha256"], cwd=place / "stick", capture_output=True).returncode == 0
    (place / "stick" / "model" / "model.safetensors").write_bytes(WEIGHTS[:-1] + b"x")
    (place / "weights" / "model" / "model.safetensors").unlink()
    assert main(["model", "--from", "stick"]) == 3
    assert "sha256" in capsys.readouterr().err
    assert len(hub.asked) == asked, "no server was asked"


def test_offline_the_cache_is_enough(place, hub, monkeypatch, capsys):
    register(place, **model())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["model"]) == 4
    assert "--from FOLDER" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert main(["model"]) == 0
    asked = len(hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["model"]) == 0
    assert len(hub.asked) == asked


def test_an_address_is_fetched_in_whole_where_no_sum_is_known(place, hub, capsys):
    entry = {"what": "a file", "licence": "MIT", "place": "weights", "url": f"{hub.url}/model.safetensors"}
    register(place, loose=entry | {"files": {"model.safetensors": {}}})
    (place / "weights").mkdir()
    (place / "weights" / "model.safetensors.partial").write_bytes(b"of another version")
    hub.breaks["model.safetensors"] = [1 << 20]
    assert main(["loose"]) == 0
    assert (place / "weights" / "model.safetensors").read_bytes() == WEIGHTS
    assert f"no sum is published to compare with; its sha256 is {SHA256}" in capsys.readouterr().out


def test_only_safe_addresses_are_asked(place, capsys):
    register(
        place,
        loose={"what": "a", "licence": "b", "place": "weights", "url": "http://example.org/x", "files": {"x": {}}},
    )
    assert main(["loose"]) == 3
    assert "only https is safe" in capsys.readouterr().err


class Code:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_a_pickle_that_holds_code_is_thrown_away_with_the_reason(place, hub, capsys):
    torch.save({"weight": torch.zeros(1), "more": Code()}, place / "evil")
    hub.files |= {"evil.pth": (place / "evil").read_bytes(), "old.pth": pickle.dumps(Code())}
    for name in ("evil.pth", "old.pth"):
        for where in ("cache", "weights"):
            register(place, model=REPOSITORY | {"place": where, "files": {name: {}}})
            assert main(["model"]) == 3
            said = capsys.readouterr().err
            assert "refused" in said and "was thrown away" in said
    assert "mkdir" not in said and not (place / "ran").exists()
    assert not [path for path in place.rglob("*.pth") if path.exists()]


def test_what_is_asked_for_must_be_in_the_registry(place, capsys):
    register(place, **model(), other={"what": "x", "licence": "y", "by_hand": "fetch it with its own program"})
    assert main(["modle"]) == 2
    assert "did you mean model?" in capsys.readouterr().err
    assert main(["other"]) == 2
    assert "fetch it with its own program" in capsys.readouterr().err
    assert main(["--list"]) == 0
    assert "model" in capsys.readouterr().out


def test_two_processes_do_not_write_one_file(place, hub, capsys):
    register(place, **model())
    partial = place / "here" / "model" / "model.safetensors.partial"
    partial.parent.mkdir(parents=True)
    with partial.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(["model", "--to", "here"]) == 4
    assert "another process fetches this file" in capsys.readouterr().err
    assert main(["model", "--to", "here"]) == 0


def test_a_disk_that_is_too_small_is_named_before_anything_is_written(place, hub, monkeypatch, capsys):
    register(place, **model())
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert main(["model", "--to", "here"]) == 4
    assert "GB are to come" in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    heavy = "{'torch', 'huggingface_hub', 'omegaconf', 'rich'}"
    code = f"import sys, zoo.download as d; d.main(['--help']); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip().endswith("[]"), done.stderr


def test_a_converted_file_says_what_it_was_made_of(place, hub, toy, capsys):
    from tests.zoo.toy import ToyGenerator

    built = ToyGenerator()
    built.configure_model()
    torch.save(built.state_dict(), place / "authors")
    content = (place / "authors").read_bytes()
    hub.files["all.bin"] = content
    entry = {"method": "toy", "recipe": "phantom", "place": "weights", "files": {"all.bin": {}}}
    entry |= {"convert": "tests.zoo.test_download:as_they_are", "converted_to": "toy@authors.safetensors"}
    register(place, **{"toy@authors": REPOSITORY | entry})
    assert main(["toy@authors"]) == 0
    with safe_open(place / "weights" / "toy@authors.safetensors", "pt") as file:
        told = file.metadata()
        assert all(torch.equal(file.get_tensor(name), value) for name, value in built.state_dict().items())
    assert told["sha256"] == hashlib.sha256(content).hexdigest()
    assert told["source"] == f"someone/model/all.bin at {COMMIT}" and told["licence"] == "MIT"
    shutil.rmtree(place / "weights" / "toy@authors")
    hub.files.clear()
    assert main(["toy@authors"]) == 0, "the converted file is enough"
    (place / "weights" / "toy@authors.safetensors").unlink()
    torch.save({"layers.0.weight": torch.zeros(2, 2)}, place / "other")
    hub.files["all.bin"] = (place / "other").read_bytes()
    assert main(["toy@authors"]) == 3
    assert "is no toy of its recipe phantom" in capsys.readouterr().err


def as_they_are(path, wanted):
    return torch.load(path, weights_only=True)
