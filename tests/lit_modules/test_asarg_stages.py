"""ASaRG's two stages: what a checkpoint holds, and what the second begins with."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.study import DataFault, SettingsFault
from lit_modules.asarg import Asarg
from tests.lit_modules.asarg_tiny import FEATURES, FUSION, PROJECTOR, SMALL, learning, saved, small


def test_a_checkpoint_of_stage_2_holds_the_projector_and_names_the_rest() -> None:
    model = small(trained="projector")
    checkpoint = saved(model)
    assert set(checkpoint["state_dict"]) == PROJECTOR | {f"fusion.{name}" for name in model.fusion.state_dict()}
    assert checkpoint["frozen_files"] == {"llava.": "phantom:llava"}
    small(trained="projector").on_load_checkpoint(checkpoint)
    for lacking in ("fusion.embed_maps.weight", "llava.model.multi_modal_projector.linear_1.bias"):
        kept = {key: value for key, value in checkpoint["state_dict"].items() if key != lacking}
        with pytest.raises(SettingsFault, match=f"1 weights are missing \\({lacking}"):
            model.on_load_checkpoint({"state_dict": kept})


@pytest.fixture
def stage_1(tmp_path: Path) -> tuple[Path, Mapping[str, Tensor]]:
    """A checkpoint of stage 1, unlike what any other model starts with."""
    model = small(fusion=FEATURES)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.125)
    checkpoint = saved(model)
    assert not any(".vision_tower." in key for key in checkpoint["state_dict"])
    torch.save(checkpoint, tmp_path / "best.ckpt")
    return tmp_path / "best.ckpt", checkpoint["state_dict"]


def test_stage_2_begins_from_stage_1_and_only_the_maps_part_is_new(stage_1) -> None:
    path, weights = stage_1
    fresh, model = small(trained="projector"), small(trained="projector", init_from=str(path))
    assert model.requirements() == [replace(model.requirements()[0], met=True)]
    new = set()
    for key, value in model.state_dict().items():
        if key in weights:
            assert torch.equal(value, weights[key]), key
        else:
            assert torch.equal(value, fresh.state_dict()[key]), key
            new.add(key)
    assert {key for key in new if ".vision_tower." not in key} == {
        f"fusion.{part}_maps.{kind}" for part in ("embed", "mix") for kind in ("weight", "bias")
    }
    assert saved(model)["frozen_files"] == {"llava.": str(path)}
    assert learning(model) == PROJECTOR | {key for key in model.state_dict() if key.startswith("fusion.")}


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"phantom": replace(SMALL["phantom"], hidden=48)}, "llava.lm_head.weight does not fit"),
        ({"fusion": replace(FUSION, depth=4)}, "fusion.classes does not fit"),
        ({"fusion": replace(FUSION, features="add", maps="none")}, "fusion.alpha does not fit"),
    ],
)
def test_another_models_checkpoint_is_refused(stage_1, other: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsFault, match=f"is of another model: {named}"):
        small(**other, init_from=str(stage_1[0]))


def test_a_projector_alone_brings_what_it_was_trained_on(stage_1, tmp_path: Path) -> None:
    """Stage 2's checkpoint lacks the language model: it comes from stage 1's, or nothing begins."""
    second = small(trained="projector", init_from=str(stage_1[0]))
    with torch.no_grad():
        second.fusion.embed_maps.weight.add_(0.5)
    torch.save(saved(second), tmp_path / "stage_2.ckpt")
    third = small(trained="projector", init_from=str(tmp_path / "stage_2.ckpt"))
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in third.state_dict().items())
    stage_1[0].unlink()
    with pytest.raises(FileNotFoundError, match="best.ckpt: no such checkpoint, which model.init_from was trained on"):
        small(trained="projector", init_from=str(tmp_path / "stage_2.ckpt"))


def test_a_missing_or_broken_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "stage_1.ckpt"
    with pytest.raises(FileNotFoundError, match="stage_1.ckpt: no such checkpoint, given as model.init_from"):
        small(init_from=str(path))
    (need,) = Asarg(**SMALL, init_from=str(path)).requirements()
    assert not need.met and "train the stage before" in need.how
    path.write_bytes(b"no checkpoint")
    with pytest.raises(DataFault, match="stage_1.ckpt: cannot be read as a checkpoint"):
        small(init_from=str(path))
