"""The weights in `checkpoints/` are those that the manifest names, and hold nothing but tensors."""

import hashlib
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from safetensors import safe_open

FOLDER = Path(__file__).parents[1] / "checkpoints"
ENTRIES = OmegaConf.to_container(OmegaConf.load(FOLDER / "manifest.yaml"))
MANIFEST = {name: entry for name, entry in ENTRIES.items() if "made_by" in entry}  # the project's own


@pytest.mark.parametrize("name", MANIFEST)
def test_files_are_the_manifests(name: str) -> None:
    entry = MANIFEST[name]
    assert {"files", "licence", "made_by", "stands_in_for"} <= entry.keys()
    for file, facts in entry["files"].items():
        content = (FOLDER / name / file).read_bytes()
        assert len(content) == facts["bytes"]
        assert hashlib.sha256(content).hexdigest() == facts["sha256"]


def test_nothing_lies_beside_the_manifest() -> None:
    listed = {f"{name}/{file}" for name, entry in MANIFEST.items() for file in entry["files"]}
    there = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file() and path.name != "README.md"}
    assert there - {"manifest.yaml"} == listed


def test_weights_are_safetensors() -> None:
    weights = [path for path in FOLDER.rglob("*") if path.suffix in {".safetensors", ".pt", ".pth", ".bin", ".ckpt"}]
    assert weights
    for path in weights:
        with safe_open(path, "pt") as file:
            assert list(file.keys())


def test_the_folder_is_small_and_names_no_place_of_the_machine_that_made_it() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6, "every wheel and every clone carries it"
    place = re.compile(r"(?<![\w/.:])(?:~|/(?:home|mnt|root|scratch|tmp|Users|var|work))/")
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                text = str(file.metadata())
        else:
            text = path.read_text("utf-8")
        assert not place.search(text), path
