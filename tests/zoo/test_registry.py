"""The registry says nothing that the code says otherwise, and everything that a user must know before a download."""

import re
from pathlib import Path

import pytest

from lit_modules.nets import llava, lvm_med
from lit_modules.nets.clip_image import VIT_B_32
from lit_modules.nets.vlm_families import VLMS
from zoo.config import compose, import_target
from zoo.metrics.chexbert import CHEXBERT
from zoo.metrics.radbert_ct import RADBERT_CT
from zoo.registry.manifest import registry

ENTRIES = registry()
HUBS = {entry.hub for entry in ENTRIES.values()}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_an_entry_is_whole(entry):
    assert entry.what and entry.licence
    assert sum(map(bool, (entry.hub, entry.url, entry.by_hand, entry.place == "here" and entry.files))) == 1
    assert entry.place in ("cache", "weights", "here") and (entry.files or entry.patterns or entry.by_hand)
    assert entry.revision is None or re.fullmatch("[0-9a-f]{40}", entry.revision), "a branch's content can change"
    assert all(file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256) for file in entry.files.values())
    assert set(entry.needs) <= ENTRIES.keys()
    assert bool(entry.convert) == bool(entry.converted_to)
    if entry.convert:
        assert callable(import_target(entry.convert)) and entry.converted_to == f"{entry.name}.safetensors"
    if entry.method:
        assert compose(entry.method, entry.recipe, allow_missing=True)


def test_what_the_recipes_name_can_be_had():
    places = {
        f"weights/{Path(file).name}" for entry in ENTRIES.values() if entry.place == "weights" for file in entry.files
    }
    for method in ("reg2rg", "regionformer", "asarg"):
        model = compose(method, "paper", allow_missing=True).values["model"]
        named = [value for value in model.values() if isinstance(value, str) and "/" in value]
        assert named and set(named) <= HUBS | places, method


def test_what_the_code_names_is_there():
    assert {llava.HUB, llava.ORIGINAL, llava.TOWER, lvm_med.LVM_MED, VIT_B_32} <= HUBS
    for labeller in (CHEXBERT, RADBERT_CT):
        repository, file = labeller.hub[labeller.checkpoint]
        assert any(entry.hub == repository and file in entry.files for entry in ENTRIES.values())


@pytest.mark.parametrize("model", VLMS.values(), ids=lambda model: model.abbreviation)
def test_vision_language_models_are_all_there_with_their_gate(model):
    (entry,) = [entry for entry in ENTRIES.values() if entry.hub == model.hub]
    assert bool(entry.gate) == model.gated
    assert model.abbreviation in entry.what
