"""LLaVA with further image tokens: as the stock model where there are none, right in training and in every decoding."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from lit_modules.nets.backbones import PhantomSize
from lit_modules.nets.clip_image import PhantomCLIP
from lit_modules.nets.feature_fusion import FeatureFusion, FusionSettings
from lit_modules.nets.llava import (
    HUB,
    IGNORED,
    ORIGINAL,
    PHANTOM,
    answer_loss,
    build_llava,
    build_llava_config,
    encode,
    forward,
    generate,
    image_tokens,
    vision_tokens,
)

TEXT = PhantomSize(hidden=48, layers=2, heads=4, mlp=64, positions=256)
EYES = PhantomCLIP(hidden=36, layers=3, heads=4, mlp=48, patch=8, image=32, dim=8)
SETTINGS = FusionSettings(width=36, image_tokens=16, depth=4, feature_dim=6, classes=5, grid=6)
PLAIN = FusionSettings(features="none", maps="none", width=36, image_tokens=16)
WORDS, BATCH = 90, 3
DECODING = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": 2}


def tiny() -> LlavaForConditionalGeneration:
    """Weights are large, so that texts depend on what was read."""
    config = build_llava_config(PHANTOM, TEXT, EYES, WORDS)
    model = build_llava(config, PHANTOM, torch.float32, TEXT).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(8)
    return model


@pytest.fixture(scope="module")
def llava() -> LlavaForConditionalGeneration:
    return tiny()


@pytest.fixture(scope="module")
def fusion() -> FeatureFusion:
    torch.manual_seed(0)
    return FeatureFusion(SETTINGS)


@pytest.fixture(scope="module")
def given() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randn(BATCH, 3, 32, 32, generator=rng)
    return pixels, torch.rand(BATCH, 6, generator=rng), torch.rand(BATCH, 5, 6, 6, generator=rng)


@pytest.fixture(scope="module")
def encoded(llava, fusion, given) -> list[Tensor]:
    with torch.no_grad():
        return encode(llava, fusion, *given)


def prompts(llava: Any, places: int) -> tuple[Tensor, Tensor]:
    """Questions of 2, 5 and 3 words after the image, padded on the left."""
    rng, image = torch.Generator().manual_seed(1), llava.config.image_token_id
    rows = [[1, 7, *[image] * places, *torch.randint(4, WORDS, (n,), generator=rng).tolist()] for n in (2, 5, 3)]
    longest = max(map(len, rows))
    tokens = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return tokens, mask


# The stock model.


def test_without_extras_it_is_the_stock_model(llava, given) -> None:
    tokens, mask = prompts(llava, 16)
    alone = encode(llava, FeatureFusion(PLAIN), given[0])
    assert image_tokens(llava.config) == 16 and all(one.shape == (16, 48) for one in alone)
    with torch.no_grad():
        stock = llava(input_ids=tokens, attention_mask=mask, pixel_values=given[0])
        assert torch.equal(torch.cat(alone), torch.cat(stock.image_hidden_states.split(1)))
        assert torch.equal(llava.lm_head(forward(llava, alone, tokens, mask)), stock.logits)
    decoding = {**DECODING, "suppress_tokens": [llava.config.image_token_id]}
    theirs = llava.generate(input_ids=tokens, attention_mask=mask, pixel_values=given[0], **decoding)
    assert torch.equal(generate(llava, alone, tokens, mask, **DECODING), theirs[:, tokens.shape[1] :])


def test_vision_tokens_come_before_clips_last_layer(llava, given) -> None:
    tower = llava.model.vision_tower
    with torch.no_grad():
        hidden = tower.pre_layrnorm(tower.embeddings(given[0]))
        for layer in tower.encoder.layers[:-1]:
            hidden = layer(hidden, attention_mask=None)
        torch.testing.assert_close(vision_tokens(llava, given[0]), hidden[:, 1:], rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_stock_models(llava, encoded) -> None:
    tokens, mask = prompts(llava, 24)
    labels = tokens.masked_fill(mask == 0, IGNORED)
    labels[:, :-3] = IGNORED
    labels[0, -3] = IGNORED
    hidden = forward(llava, encoded, tokens, mask)
    stock = llava.loss_function(llava.lm_head(hidden), labels, vocab_size=llava.config.text_config.vocab_size)
    torch.testing.assert_close(answer_loss(llava, encoded, tokens, mask, labels), stock)
    nothing = answer_loss(llava, encoded, tokens, mask, torch.full_like(labels, IGNORED))
    assert nothing.item() == 0


# Training.


def test_gradients_reach_what_is_trained_and_nothing_else(fusion, given) -> None:
    llava = tiny().requires_grad_(False)
    llava.model.multi_modal_projector.requires_grad_(True)
    tokens, mask = prompts(llava, 24)
    answer_loss(llava, encode(llava, fusion, *given), tokens, mask, tokens.masked_fill(mask == 0, IGNORED)).backward()
    learning = {name for name, weight in llava.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert learning == {f"model.multi_modal_projector.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    assert all(weight.grad is not None and weight.grad.any() for weight in fusion.parameters())
    fusion.zero_grad()


def test_clip_is_frozen_and_the_rest_is_not() -> None:
    llava = tiny()
    frozen = {name for name, weight in llava.named_parameters() if not weight.requires_grad}
    assert frozen == {name for name, _ in llava.named_parameters() if ".vision_tower." in name}


def test_activation_checkpointing_changes_no_gradient(fusion, given) -> None:
    tokens, mask = prompts(tiny(), 24)
    labels = tokens.masked_fill(mask == 0, IGNORED)
    grads = []
    for checkpointing in (False, True):
        llava = tiny().train()
        if checkpointing:
            llava.gradient_checkpointing_enable({"use_reentrant": False})
        answer_loss(llava, encode(llava, fusion, *given), tokens, mask, labels).backward()
        grads.append([weight.grad for weight in llava.parameters() if weight.requires_grad])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed)
    fusion.zero_grad()


# Decoding.


def test_the_extras_are_read(llava, fusion, given, encoded) -> None:
    pixels, features, maps = given
    tokens, mask = prompts(llava, 24)
    plain = generate(llava, encoded, tokens, mask, **DECODING)
    with torch.no_grad():
        others = [
            encode(llava, fusion, pixels.flip(0), features, maps),
            encode(llava, fusion, pixels, features.flip(0), maps),
            encode(llava, fusion, pixels, features, maps.flip(1)),
        ]
    for other in others:
        assert not torch.equal(generate(llava, other, tokens, mask, **DECODING), plain)


def test_greedy_equals_full_passes_and_no_cache(llava, encoded) -> None:
    tokens, mask = prompts(llava, 24)
    written = generate(llava, encoded, tokens, mask, **DECODING)
    assert torch.equal(generate(llava, encoded, tokens, mask, use_cache=False, **DECODING), written)
    for study in range(BATCH):
        one = tokens[study : study + 1, mask[study] == 1]
        for expected in written[study].tolist():
            with torch.no_grad():
                hidden = forward(llava, encoded[study : study + 1], one, torch.ones_like(one))
                logits = llava.lm_head(hidden[0, -1])
            logits[llava.config.image_token_id] = -torch.inf
            token = int(logits.argmax())
            assert token == expected
            if token == 2:
                break
            one = torch.cat((one, torch.tensor([[token]])), 1)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_writes_what_each_study_writes_alone(llava, encoded, beams: int) -> None:
    tokens, mask = prompts(llava, 24)
    decoding = {**DECODING, "num_beams": beams}
    written = generate(llava, encoded, tokens, mask, **decoding)
    assert len({tuple(row) for row in written.tolist()}) == BATCH
    for study in range(BATCH):
        one = tokens[study : study + 1, mask[study] == 1]
        alone = generate(llava, encoded[study : study + 1], one, torch.ones_like(one), **decoding)[0].tolist()
        row = written[study].tolist()
        assert row[: len(alone)] == alone and set(row[len(alone) :]) <= {0}


def test_beams_leave_what_was_encoded_as_it_was(llava, encoded) -> None:
    tokens, mask = prompts(llava, 24)
    decoding = {**DECODING, "num_beams": 3}
    first = generate(llava, encoded, tokens, mask, **decoding)
    assert len(encoded) == BATCH
    assert torch.equal(generate(llava, encoded, tokens, mask, **decoding), first)
    several = generate(llava, encoded, tokens, mask, num_return_sequences=2, **decoding)
    assert torch.equal(several[::2, : first.shape[1]], first)


def test_a_seed_decides_what_is_sampled(llava, encoded) -> None:
    tokens, mask = prompts(llava, 24)
    decoding = {**DECODING, "do_sample": True, "temperature": 3.0, "top_k": 0}
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(generate(llava, encoded, tokens, mask, **decoding))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    torch.manual_seed(3)
    cold = generate(llava, encoded, tokens, mask, **{**decoding, "temperature": 1e-4})
    assert torch.equal(cold, generate(llava, encoded, tokens, mask, **DECODING))


def test_places_and_tokens_must_agree_in_every_study(llava, encoded) -> None:
    tokens, mask = prompts(llava, 24)
    tokens[0, -1], tokens[1, 2] = llava.config.image_token_id, 5
    with pytest.raises(ValueError, match=r"have \[25, 23, 24\] places for image tokens, but there are \[24, 24, 24\]"):
        forward(llava, encoded, tokens, mask)
    with pytest.raises(ValueError, match="places for image tokens"):
        generate(llava, encoded[:2], *prompts(llava, 24), **DECODING)


# Sizes.


@pytest.mark.parametrize(("name", "parameters"), [(HUB, 7_063_427_072), (ORIGINAL, 7_062_902_784)])
def test_the_published_sizes_need_no_download(name: str, parameters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = build_llava_config(name, TEXT, EYES, 0)
    assert image_tokens(config) == config.image_seq_length == 576
    with torch.device("meta"):
        llava = build_llava(config, name, torch.bfloat16, TEXT)
        assert sum(weight.numel() for weight in llava.parameters()) == parameters
        if name == ORIGINAL:
            for settings, length in ((FusionSettings(maps="none"), 832), (FusionSettings(), 1088)):
                fused = FeatureFusion(settings)
                one = encode(
                    llava, fused, torch.empty(1, 3, 336, 336), torch.empty(1, 2048), torch.empty(1, 212, 32, 32)
                )
                assert [tuple(image.shape) for image in one] == [(length, 4096)]


def test_the_phantom_has_fixed_weights() -> None:
    config = build_llava_config(PHANTOM, TEXT, EYES, WORDS)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = build_llava(config, PHANTOM, torch.float32, TEXT)
    assert torch.equal(torch.random.get_rng_state(), before), "building it draws nothing from the global generator"
    torch.manual_seed(2)
    again = build_llava(config, PHANTOM, torch.float32, TEXT)
    other = build_llava(config, PHANTOM, torch.float32, PhantomSize(seed=5))
    assert type(first) is LlavaForConditionalGeneration
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    with pytest.raises(ValueError, match="llava=phantom:tiny: there is phantom:llava"):
        build_llava_config("phantom:tiny", TEXT, EYES, WORDS)
