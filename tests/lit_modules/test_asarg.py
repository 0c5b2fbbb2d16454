"""ASaRG as a whole: the paper's sizes, what is trained in each stage, and what it is given of a study."""

import json
import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from datamodules.cxas_classes import PAPER, SUPERCLASSES
from datamodules.study import DataFault, SettingsFault, Study
from lit_modules import asarg_samples
from lit_modules.asarg import Asarg, Decoding, Fusion
from lit_modules.nets.llava import IGNORED
from lit_modules.nets.lvm_med import PhantomResNet
from tests.lit_modules.asarg_tiny import FEATURES, FUSION, MASKS, PROJECTOR, SMALL, batch_of, film, learning, small

# The paper's sizes.


@pytest.mark.parametrize(
    ("settings", "trained", "frozen"),
    [
        # LLaVA-1.5-7B has 7,063,427,072 parameters in the hub's form, 303,507,456 of them CLIP's.
        ({"fusion": Fusion(features="none", maps="none")}, 6_759_919_616, 303_507_456),
        ({"fusion": Fusion(maps="none")}, 6_759_919_616 + 4_458_496, 303_507_456),
        ({"trained": "projector"}, 20_979_712 + 6_611_200, 7_063_427_072 - 20_979_712),
        ({"trained": "projector", "classes": "superclasses"}, 20_979_712 + 6_562_048, 7_063_427_072 - 20_979_712),
    ],
)
def test_sizes_are_the_papers(settings: dict[str, Any], trained: int, frozen: int) -> None:
    """Stage 1 trains all but CLIP; stage 2 27.6 M parameters, of which 6,611,200 are ASaRG's own."""
    with torch.device("meta"):
        model = Asarg(**settings)
        model.configure_model()
    sizes = {True: 0, False: 0}
    for parameter in model.parameters():
        sizes[parameter.requires_grad] += parameter.numel()
    assert (sizes[True], sizes[False]) == (trained, frozen)


def test_too_many_positions_are_refused() -> None:
    with torch.device("meta"), pytest.raises(SettingsFault, match="4096 positions: set model.max_length=4096"):
        Asarg(max_length=5000).configure_model()


# Training.


def test_stage_2_trains_the_projector_and_what_is_fused_into_it() -> None:
    model = small(trained="projector")
    assert learning(model) == PROJECTOR | {f"fusion.{name}" for name, _ in model.fusion.named_parameters()}
    assert all(weight.grad is None for weight in model.parameters() if not weight.requires_grad)


def test_stage_1_trains_all_but_clip() -> None:
    model = small(fusion=FEATURES)
    everything = {name for name, _ in model.named_parameters()}
    assert learning(model) == {name for name in everything if ".vision_tower." not in name}


def test_activation_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for recompute in (False, True):
        model = small(gradient_checkpointing=recompute, trained="projector")
        learning(model)
        gradients.append([weight.grad for weight in model.parameters() if weight.requires_grad])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("changes", "added"),
    [
        ({"features": "none", "maps": "none"}, 0),
        ({"features": "replace", "maps": "none"}, 0),
        ({"features": "replace", "maps": "none", "adain_content": "classes"}, 0),
        ({"features": "mix", "maps": "none"}, 0),
        ({"features": "add", "maps": "none"}, 0),
        ({"features": "add", "maps": "concat", "alpha": 1.0}, 8),
        ({"features": "concat", "maps": "none"}, 8),
        ({"features": "concat", "maps": "concat"}, 16),
        ({"maps_partner": "mixed", "keep_mix": False}, 8),
        ({"map_tokens": "spatial"}, 8 + 64),
    ],
)
def test_every_way_to_fuse_gives_a_loss_and_a_report(changes: dict[str, Any], added: int) -> None:
    model = small(fusion=replace(FUSION, **changes))
    batch = batch_of(model, film())
    assert (batch["prompt"] == model.llava_config.image_token_id).sum() == 16 + added
    assert model.loss(batch).isfinite()
    assert [report.study_id for report in model.generate(batch)] == ["s0"]


def test_a_loss_is_averaged_over_the_batchs_tokens() -> None:
    """Studies of two lengths, padded to the longer: as each alone, weighted by its tokens."""
    model, studies = small(), [film(0), film(1, report="A large effusion on the left side.")]
    alone = [batch_of(model, study) for study in studies]
    counts = [int((batch["labels"] != IGNORED).sum()) for batch in alone]
    assert counts[0] != counts[1]
    with torch.no_grad():
        expected = sum(model.loss(batch) * n for batch, n in zip(alone, counts, strict=True)) / sum(counts)
        torch.testing.assert_close(model.loss(batch_of(model, *studies)), expected, rtol=1e-5, atol=1e-6)


def test_an_answer_that_is_too_long_is_cut_and_named() -> None:
    prompt = batch_of(small(), film())["prompt"].shape[1]
    model = small(max_length=prompt + 6)
    batch = batch_of(model, film(0, report="A long text. " * 9), film(1, report="No."))
    assert batch["cut"] == ["s0"] and batch["tokens"].shape[1] == prompt + 6
    with pytest.warns(UserWarning, match=f"model.max_length={prompt + 6} tokens: s0"):
        model.loss(batch)


@pytest.mark.parametrize("steps", [100, 50, 7])
def test_the_rate_is_llavas(steps: int) -> None:
    """As transformers, which LLaVA's scripts train with, warms up and decays at a ratio of 0.03."""
    model = Asarg(**SMALL)
    model._trainer = SimpleNamespace(num_training_batches=steps, max_epochs=1, max_steps=-1, accumulate_grad_batches=1)
    rates = [model._rate(step) for step in range(steps + 1)]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    theirs = get_cosine_schedule_with_warmup(optimizer, -(-3 * steps // 100), steps).lr_lambdas[0]
    assert rates == pytest.approx([theirs(step) for step in range(steps + 1)])
    assert rates[0] == 0 and max(rates) == 1 and rates[-1] == pytest.approx(0)
    model._trainer.num_training_batches = float("inf")  # as it is when the optimizer is built
    assert model._rate(0) == 0


# What it is given.


def test_the_baseline_needs_neither_features_nor_masks(monkeypatch) -> None:
    monkeypatch.setattr(asarg_samples, "build_resnet", lambda *_: pytest.fail("no features are fused"))
    asarg_samples._resnet.cache_clear()
    model = small(fusion=replace(FUSION, features="none", maps="none"), resnet="nowhere/resnet.torch")
    source = model.preprocessor()
    assert source.settings() == {"arrays": "asarg", "size": 64}
    assert set(source.arrays(film(masks=None))) == {"view"}
    batch = batch_of(model, film(masks=None))
    assert batch["features"] is None and batch["maps"] is None and model.loss(batch).isfinite()
    assert model.requirements() == []


def test_features_alone_need_no_masks() -> None:
    source = small(fusion=FEATURES).preprocessor()
    assert set(source.settings()) == {"arrays", "size", "resnet"}
    arrays = source.arrays(film(masks=None))
    assert arrays["features"].shape == (64,) and arrays["features"].dtype == np.float16 and "maps" not in arrays


def test_the_store_knows_the_networks_content_and_the_maps_form() -> None:
    settings = [
        json.dumps(small(**changes).preprocessor().settings(), sort_keys=True)
        for changes in (
            {}, {"phantom_resnet": PhantomResNet(64, seed=1)}, {"classes": "cxas"}, {"frame": "padded_square"},
            {"fusion": FEATURES},
        )
    ]  # fmt: skip
    assert len(set(settings)) == 5
    same = ({"shuffle_maps": 3}, {"max_length": 500}, {"trained": "projector"}, {"fusion": replace(FUSION, depth=4)})
    for changes in same:
        assert json.dumps(small(**changes).preprocessor().settings(), sort_keys=True) == settings[0]


def test_a_study_without_masks_is_a_fault_that_says_what_to_do() -> None:
    with pytest.raises(DataFault, match=r"s0 has no segmentation masks: give them .data.masks, --masks., or fuse none"):
        small().preprocessor().arrays(film(masks=None))


def test_maps_lie_by_the_papers_numbers() -> None:
    maps = small().preprocessor().arrays(film())["maps"]
    assert maps.shape == (212, 8, 8) and maps.dtype == np.uint8
    filled = [PAPER[number] for number in np.flatnonzero(maps.any((1, 2)))]
    assert set(filled) == {"heart", "heart atrium left", "lung", "Effusion"}
    assert np.array_equal(maps[PAPER.index("heart")], 255 * MASKS["heart"][6::12, 4::9])


def test_superclasses_are_unions() -> None:
    model = small(classes="superclasses")
    maps = model.preprocessor().arrays(film())["maps"]
    named = dict(zip(SUPERCLASSES, maps, strict=True))
    assert {name for name, values in named.items() if values.any()} == {"heart region", "pathology", "vessels"}
    union = MASKS["heart"] | MASKS["heart atrium left"]
    assert np.array_equal(named["heart region"], 255 * union[6::12, 4::9])
    assert model.loss(batch_of(model, film())).isfinite()


def test_shuffled_maps_change_evaluation_alone_and_alike_for_all_studies() -> None:
    numbered = {"maps": np.arange(212, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)}

    def order(seed: int | None, study: Study, rng: random.Random | None) -> list[int]:
        source = small(shuffle_maps=seed).preprocessor()
        return source(study, {**source.arrays(study), **numbered}, rng)["maps"][:, 0, 0].tolist()

    plain = list(range(212))
    assert order(None, film(), None) == plain == order(0, film(), random.Random(0))
    shuffled = order(0, film(), None)
    assert sorted(shuffled) == plain != shuffled
    assert order(0, film(1), None) == shuffled != order(1, film(), None)


def test_training_asks_in_many_ways_and_evaluation_in_one() -> None:
    source = small().preprocessor()
    arrays = source.arrays(film())
    asked = {tuple(source(film(), arrays, random.Random(seed))["prompt"]) for seed in range(20)}
    assert len(asked) > 5
    assert source(film(), arrays, None)["prompt"] == source(film(1), arrays, None)["prompt"]


# Reports.


@pytest.mark.parametrize("beams", [1, 2])
def test_a_batch_says_what_each_study_says_alone(beams: int) -> None:
    model = small(decoding=Decoding(max_new_tokens=8, beams=beams))
    with torch.no_grad():
        for weight in model.parameters():  # large ones, so that what is said depends on what is read
            if weight.ndim > 1:
                weight.mul_(6)
    studies = [film(seed, masks={"heart": MASKS["heart"], "lung": MASKS["lung"] * (seed % 2)}) for seed in range(4)]
    source = model.preprocessor()
    samples = [source(study, source.arrays(study), random.Random(study.id)) for study in studies]
    assert len({len(sample["prompt"]) for sample in samples}) > 2, "so that some are padded"
    batch = source.collate(samples)
    for row, sample in enumerate(samples):
        assert batch["prompt"][row][batch["prompt_mask"][row] == 1].tolist() == sample["prompt"]
        assert batch["tokens"][row][batch["mask"][row] == 1].tolist() == sample["tokens"]
    together = model.generate(batch)
    alone = [model.generate(source.collate([sample]))[0] for sample in samples]
    assert [report.raw for report in together] == [report.raw for report in alone]
    assert [report.study_id for report in together] == ["s0", "s1", "s2", "s3"]
    assert len({report.raw for report in together}) > 1


def test_drawn_reports_depend_on_the_seed_and_greedy_ones_do_not() -> None:
    def written(seed: int, **decoding: Any) -> str:
        model = small(decoding=Decoding(max_new_tokens=12, **decoding))
        torch.manual_seed(seed)
        return model.generate(batch_of(model, film()))[0].raw

    assert written(0, sample=True, temperature=1.0) != written(1, sample=True, temperature=1.0)
    assert written(0) == written(1)


def test_an_embedding_is_what_the_language_model_is_shown() -> None:
    model = small()
    batch = batch_of(model, film(0), film(1))
    with torch.no_grad():
        found = model.embed(batch)
        shown = model._encoded(batch)
    assert found.shape == (2, 32) and all(tokens.shape == (16 + 8 + 8, 32) for tokens in shown)
    torch.testing.assert_close(found[1], shown[1].sum(0) / 32)
    assert not torch.allclose(found[0], found[1])
