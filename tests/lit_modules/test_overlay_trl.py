"""Each step's loss is the one that TRL's SFTTrainer has, where TRL works; TRL is no dependency, so this is optional."""

import numpy as np
import pytest

from benchmarks.overlay_training import (
    BATCH,
    EQUAL,
    FAIL,
    TURNS,
    Run,
    Shown,
    apart_from_single,
    loader,
    method,
    shown,
    train_ours,
    train_trl,
)
from lit_modules.nets.phantom_vlm import PhantomVLM
from lit_modules.overlay_sft import OverlaySFT
from tests.lit_modules.overlay_tiny import film

pytest.importorskip("trl", reason="needs TRL in a copy of the environment: see benchmarks/overlay.py")
STEPS = 8
TINY = PhantomVLM(image=56)


def films(module: OverlaySFT) -> list[Shown]:
    """With a mask and without, of long and of short reports."""
    studies = [film(seed, empty=seed % 3 == 2) for seed in range(STEPS * BATCH)]
    return [shown(study, module.preprocessor()) for study in studies]


def learnt(module: OverlaySFT) -> Run:
    return train_ours(module, loader(module.preprocessor(), films(module)), STEPS)


@pytest.mark.parametrize("family", sorted(TURNS.keys() - set(FAIL)))
def test_each_steps_loss_is_trls(family: str) -> None:
    module = method(family, TINY)
    theirs = train_trl(module, films(module), STEPS).losses
    ours = learnt(method(family, TINY)).losses
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=EQUAL)
    assert len(ours) == STEPS and ours[-1] < ours[0] - 0.1


@pytest.mark.parametrize(("family", "message"), [("mllama", "size of tensor"), ("paligemma", "images")])
def test_a_batchs_loss_is_its_studies_where_trl_fails(family: str, message: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=message):
        train_trl(module := method(family, TINY), films(module), STEPS)
    learnt(module := method(family, TINY))
    assert apart_from_single(module, films(module)) < EQUAL
