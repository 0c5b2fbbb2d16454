"""Integrated gradients over CLIP's patch tokens: complete, silent where nothing changed, and of the model at hand."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, GPT2Config, GPT2LMHeadModel

from lit_modules.nets.beam_search import beam_search
from lit_modules.nets.clip_image import PHANTOM, PhantomCLIP, build_vision_config, build_vision_model, clip_embeddings
from lit_modules.nets.patch_attribution import (
    Attribution,
    image_embeds,
    patch_attribution,
    patch_tokens,
    sentence_log_probability,
)
from lit_modules.nets.prefix_mapper import PrefixMapper, PrefixMapperSettings

TINY = PhantomCLIP(hidden=32, layers=2, heads=4, mlp=64, patch=8, image=32, dim=16)
MAPPER = PrefixMapperSettings(prefix_size=32, dim=32, prefix_length=6, clip_length=4, layers=2, heads=4)
IDS = torch.tensor([7, 21, 3, 3, 13])


def tiny_clip() -> Any:
    """As drawn, its attention is flat, and its positions are next to nothing beside the patches: both are raised."""
    clip = build_vision_model(build_vision_config(PHANTOM, TINY), PHANTOM, TINY)
    clip.vision_model.embeddings.position_embedding.weight.mul_(20)
    for name, weights in clip.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            weights.mul_(4)
    return clip


@pytest.fixture(scope="module")
def clip() -> Any:
    return tiny_clip()


@pytest.fixture(scope="module")
def gpt() -> GPT2LMHeadModel:
    torch.manual_seed(1)
    size = {"vocab_size": 64, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    config = GPT2Config(**size, initializer_range=0.2, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval().requires_grad_(False)


def text_score(gpt: GPT2LMHeadModel, seed: int = 2, ids: Tensor = IDS) -> Callable[[Tensor], Tensor]:
    """The chain from a study's two embeddings to the text's log-probability; its mapper depends on the seed."""
    torch.manual_seed(seed)
    mapper = PrefixMapper(MAPPER)
    return lambda embeddings: sentence_log_probability(gpt, mapper(embeddings.flatten(1)), ids)


@pytest.fixture(scope="module")
def pixels() -> tuple[Tensor, Tensor]:
    """`(views, baselines)`: noise with a black margin above it, and a mask with one box of 2 x 2 patches."""
    views = torch.full((2, 3, 32, 32), -1.7)
    baselines = views.clone()
    views[0, :, 8:] += 3 * torch.rand(24, 32, generator=torch.Generator().manual_seed(3))
    views[1, :, 8:24, 16:] += 3
    return views, baselines


def correlation(one: Tensor, other: Tensor) -> float:
    return float(np.corrcoef(one.flatten(), other.flatten())[0, 1])


def test_the_pieces_are_clips_own_forward(clip, pixels) -> None:
    assert torch.equal(image_embeds(clip, patch_tokens(clip, pixels[0])), clip(pixel_values=pixels[0]).image_embeds)
    config = CLIPVisionConfig(num_hidden_layers=1)  # else the size of ViT-B/32
    full = CLIPVisionModelWithProjection(config).eval().requires_grad_(False)
    views = torch.randn(2, 3, 224, 224)
    assert torch.equal(image_embeds(full, patch_tokens(full, views)), full(pixel_values=views).image_embeds)


def test_patches_add_up_to_what_the_study_gained(clip, gpt, pixels) -> None:
    score = text_score(gpt)
    found = {steps: patch_attribution(clip, *pixels, score, steps) for steps in (1, 4, 32)}
    ends = [score(clip_embeddings(clip, views)[None]).item() for views in pixels]
    gained = ends[0] - ends[1]
    for attribution in found.values():
        assert [attribution.score, attribution.baseline_score] == pytest.approx(ends, abs=1e-4)
        assert attribution.maps.sum().item() + attribution.remainder == pytest.approx(gained, abs=1e-4)
    first, second, third = (abs(attribution.remainder) / abs(gained) for attribution in found.values())
    assert first > 1, "else one step would do, and more of them would show nothing"
    assert first > second > third and third < 0.05


def test_patches_like_the_baseline_get_exactly_nothing(clip, gpt, pixels) -> None:
    maps = patch_attribution(clip, *pixels, text_score(gpt)).maps
    changed = torch.zeros(2, 4, 4, dtype=torch.bool)
    changed[0, 1:] = True
    changed[1, 1:3, 2:] = True
    assert torch.equal(maps != 0, changed)
    views, baselines = torch.randn(2, 2, 3, 224, 224)
    views[:, :, :64], views[:, :, :, 96:160] = baselines[:, :, :64], baselines[:, :, :, 96:160]
    full = CLIPVisionModelWithProjection(CLIPVisionConfig(num_hidden_layers=1)).eval().requires_grad_(False)
    maps = patch_attribution(full, views, baselines, lambda embeddings: embeddings[..., 0].sum(1), steps=2).maps
    assert maps.shape == (2, 7, 7)
    assert not maps[:, :2].any() and not maps[:, :, 3:5].any() and maps[:, 2:, :3].all()


def only_sees(patch: int) -> Any:
    """A CLIP whose every token attends to one patch alone, which its position marks in the last channel."""
    clip = tiny_clip()
    body = clip.vision_model
    body.pre_layrnorm = nn.Identity()
    body.embeddings.patch_embedding.weight[-1] = 0  # no pixel reaches the mark
    body.embeddings.position_embedding.weight[:, -1] = 0
    body.embeddings.class_embedding[-1] = 0
    body.embeddings.position_embedding.weight[1 + patch, -1] = 100
    for layer in body.encoder.layers:
        attention = layer.self_attn
        for weights in (attention.q_proj.weight, attention.k_proj.weight):
            weights.zero_()
        attention.q_proj.bias.fill_(100)
        attention.k_proj.weight[:, -1] = 100
    return clip


@pytest.mark.parametrize("patch", [0, 6, 15])
def test_what_depends_on_one_patch_is_attributed_to_it_alone(patch: int) -> None:
    clip = only_sees(patch)
    views, baselines = torch.randn(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    embeds = clip(pixel_values=views).image_embeds
    elsewhere = views.clone()
    row, column = 8 * (patch // 4), 8 * (patch % 4)
    elsewhere[:, :, :row] = elsewhere[:, :, row + 8 :] = 0
    elsewhere[..., :column] = elsewhere[..., column + 8 :] = 0
    assert torch.equal(clip(pixel_values=elsewhere).image_embeds, embeds), "the planted CLIP sees its patch alone"

    # And the score sees the second view alone.
    found = patch_attribution(clip, views, baselines, lambda embeddings: embeddings[:, 1, :4].sum(1))
    assert found.maps.nonzero().tolist() == [[1, patch // 4, patch % 4]]
    assert found.maps.sum().item() == pytest.approx(found.score - found.baseline_score, abs=1e-4)


def test_another_mapper_or_another_text_gives_another_map(clip, gpt, pixels) -> None:
    """The sanity check of Adebayo et al., arXiv:1810.03292, §3: a map that ignores the weights explains nothing."""
    maps = [patch_attribution(clip, *pixels, text_score(gpt, seed)).maps for seed in range(4)]
    torch.testing.assert_close(patch_attribution(clip, *pixels, text_score(gpt, 0)).maps, maps[0])
    between = [correlation(maps[i], maps[j]) for i in range(4) for j in range(i)]
    assert max(between) < 0.9 and abs(np.mean(between)) < 0.5
    other = patch_attribution(clip, *pixels, text_score(gpt, 0, torch.tensor([40, 5, 13]))).maps
    assert correlation(other, maps[0]) < 0.9


def test_inference_callers_get_the_same_map_and_no_gradient_is_left(clip, gpt, pixels) -> None:
    torch.manual_seed(5)
    mapper, gpt = PrefixMapper(MAPPER), deepcopy(gpt).requires_grad_(True)  # not frozen

    def explain(views: Tensor, baselines: Tensor, ids: Tensor) -> Attribution:
        score = lambda embeddings: sentence_log_probability(gpt, mapper(embeddings.flatten(1)), ids)  # noqa: E731
        return patch_attribution(clip, views, baselines, score, steps=3)

    expected = explain(*pixels, IDS)
    with torch.inference_mode():
        inferred = explain(*(view.clone() for view in pixels), IDS.clone())
    with torch.no_grad():
        without = explain(*pixels, IDS)
    for found in (inferred, without):
        torch.testing.assert_close(found.maps, expected.maps)
        assert found.remainder == pytest.approx(expected.remainder, abs=1e-5)
    assert not expected.maps.requires_grad
    assert not any(p.requires_grad for p in clip.parameters())
    assert all(p.grad is None for module in (clip, gpt, mapper) for p in module.parameters())


def test_baselines_of_another_shape_are_refused(clip, pixels) -> None:
    with pytest.raises(ValueError, match="must have the shape of the views"):
        patch_attribution(clip, pixels[0], pixels[1][:1], lambda embeddings: embeddings.sum((1, 2)))


def test_log_probability_is_what_the_search_found(gpt) -> None:
    prefix = torch.randn(3, 6, 32, generator=torch.Generator().manual_seed(6))
    found = beam_search(gpt, prefix, beams=3, max_new_tokens=7)
    for study, length in enumerate(found.lengths[:, 0].tolist()):
        log_probability = sentence_log_probability(gpt, prefix, found.ids[study, 0, :length])
        assert log_probability.shape == (3,)
        assert log_probability[study].item() == pytest.approx(found.scores[study, 0].item() * length, abs=1e-4)


def test_texts_of_one_length_have_probabilities_that_add_up_to_one(gpt) -> None:
    prefix = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(7))
    begun = sentence_log_probability(gpt, prefix, IDS[:1]).exp()
    ended = sum(sentence_log_probability(gpt, prefix, torch.tensor([IDS[0], last])).exp() for last in range(64))
    torch.testing.assert_close(ended, begun)
    with pytest.raises(ValueError, match="without a token"):
        sentence_log_probability(gpt, prefix, IDS[:0])
