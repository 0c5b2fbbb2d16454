"""The attention view and LeGrad against the reference implementation's own pictures, and what they cannot show."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from lit_modules.nets.attention_view import attention_grid, legrad_grid, nearest_grid
from lit_modules.nets.prefix_mapper import PrefixMapper, PrefixMapperSettings

TINY_GPT = {"vocab_size": 64, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
SETTINGS = PrefixMapperSettings(prefix_size=32, dim=32, layers=3)


def chain() -> tuple[PrefixMapper, GPT2LMHeadModel]:
    config = GPT2Config(**TINY_GPT, initializer_range=0.2, bos_token_id=0, eos_token_id=0)
    return PrefixMapper(SETTINGS), GPT2LMHeadModel(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def recorded(shared: Path) -> dict[str, Tensor]:
    arrays = np.load(shared / "golden" / "regionformer" / "attention_maps.npz")
    return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


@pytest.fixture(scope="module")
def reference(recorded) -> tuple[PrefixMapper, GPT2LMHeadModel]:
    mapper, gpt = chain()
    for name, module in (("clip_project", mapper), ("gpt", gpt)):
        prefix = f"w.{name}."
        weights = {key.removeprefix(prefix): value for key, value in recorded.items() if key.startswith(prefix)}
        module.load_state_dict(weights, strict=True)
    return mapper, gpt


@pytest.fixture
def drawn() -> tuple[PrefixMapper, GPT2LMHeadModel, Tensor, Tensor]:
    torch.manual_seed(0)
    return *chain(), torch.randn(2, 32), torch.randint(1, 64, (2, 6))


def test_grids_equal_the_reference(recorded) -> None:
    assert [nearest_grid(n) for n in range(1, 65)] == [tuple(row) for row in recorded["nearest_grid"].tolist()]


def test_attention_equals_the_reference(recorded, reference) -> None:
    mapper, _ = reference
    weights = mapper.with_attention(recorded["prefix"])[1]
    head_mean = torch.cat([layer.mean(1) for layer in weights])
    torch.testing.assert_close(head_mean, recorded["attn_headmean"].float(), rtol=1e-3, atol=1e-4)
    (grid,) = attention_grid(weights, 40)
    torch.testing.assert_close(grid, recorded["heat_5x8"], rtol=0, atol=1e-4)
    picture = Image.fromarray((grid * 255).byte().numpy()).resize((61, 47), Image.Resampling.BILINEAR)
    wrong = np.abs(np.asarray(picture).astype(int) - recorded["heat_resized_W61_H47_uint8"].numpy())
    assert wrong.max() <= 1


def test_legrad_equals_the_reference(recorded, reference) -> None:
    (grid,) = legrad_grid(*reference, recorded["prefix"], recorded["hyp_ids"])
    torch.testing.assert_close(grid, recorded["legrad_heat_5x8"], rtol=0, atol=1e-4)
    (other,) = legrad_grid(*reference, recorded["prefix"], recorded["hyp_ids"], of_text=True)
    assert (other - grid).abs().max() > 0.1


@pytest.mark.parametrize("of_text", [False, True])
def test_legrad_is_the_gradient_of_transformers_own_loss(drawn, of_text: bool) -> None:
    mapper, gpt, embedding, ids = drawn
    grids = legrad_grid(mapper, gpt, embedding, ids, of_text)
    for study in range(2):  # each on its own
        prefix, weights = mapper.with_attention(embedding[study, None])
        embeds = torch.cat((prefix, gpt.get_input_embeddings()(ids[study, None])), 1)
        before = torch.full((1, 40), -100 if of_text else 0)
        loss = gpt(inputs_embeds=embeds, labels=torch.cat((before, ids[study, None]), 1)).loss
        sign = -1 if of_text else 1
        gradients = [(sign * gradient).clamp(min=0) for gradient in torch.autograd.grad(loss, weights)]
        token = sum(gradient[0, :, 40:, :40].mean((0, 1)) for gradient in gradients)
        token = (token - token.min()) / (token.max() - token.min())
        torch.testing.assert_close(grids[study].flatten(), token, rtol=0, atol=1e-3)


def test_the_grid_has_no_place_in_the_image(drawn) -> None:
    """Another order of the embedding's tokens: the same prefix, hence the same text, and a permuted picture."""
    mapper, gpt, embedding, ids = drawn
    prefix, weights = mapper.with_attention(embedding)
    grids = attention_grid(weights, 40), legrad_grid(mapper, gpt, embedding, ids)
    order = torch.randperm(40)
    with torch.no_grad():
        for name in ("weight", "bias"):
            laid_out = getattr(mapper.linear, name)
            laid_out.copy_(laid_out.unflatten(0, (40, 32))[order].flatten(0, 1))
    other_prefix, other_weights = mapper.with_attention(embedding)
    torch.testing.assert_close(other_prefix, prefix, rtol=1e-4, atol=1e-4)
    permuted = attention_grid(other_weights, 40), legrad_grid(mapper, gpt, embedding, ids)
    for grid, other in zip(grids, permuted, strict=True):
        torch.testing.assert_close(other.flatten(1), grid.flatten(1)[:, order], rtol=0, atol=5e-3)
        assert not torch.allclose(other, grid, atol=0.1)


def test_inference_callers_get_the_same_grid_and_no_gradient_is_left(drawn) -> None:
    mapper, gpt, embedding, ids = drawn
    gpt.requires_grad_(True)  # not even where nobody froze it
    expected = legrad_grid(mapper, gpt, embedding, ids)
    with torch.inference_mode():
        torch.testing.assert_close(legrad_grid(mapper, gpt, embedding.clone(), ids.clone()), expected)
    with torch.no_grad():
        torch.testing.assert_close(legrad_grid(mapper.requires_grad_(False), gpt, embedding, ids), expected)
    assert not expected.requires_grad
    assert all(p.grad is None for p in (*mapper.parameters(), *gpt.parameters()))
