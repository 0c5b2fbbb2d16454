"""ASaRG's fusion against the formulas written out with plain concatenations, and against the paper's budgets."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_modules.nets.feature_fusion import FeatureFusion, FusionSettings

LLAVA = 7_062_902_784  # parameters of LLaVA-1.5-7B
RESNET = 25_557_032  # of LVM-Med's ResNet-50, with its head
SMALL = FusionSettings(maps="none", width=16, image_tokens=9, depth=4, feature_dim=6, classes=5, grid=4)
FEATURES = FusionSettings(maps="none")
BATCH = 3


def small(**changes: Any) -> FeatureFusion:
    torch.manual_seed(0)
    return FeatureFusion(replace(SMALL, **changes)).double()


def given(fusion: FeatureFusion) -> tuple[Tensor, Tensor, Tensor]:
    settings, rng = fusion.settings, torch.Generator().manual_seed(1)
    image = torch.randn(BATCH, settings.image_tokens, settings.width, generator=rng, dtype=torch.float64)
    features = torch.rand(BATCH, settings.feature_dim, generator=rng, dtype=torch.float64)
    maps = torch.rand(BATCH, settings.classes, settings.grid, settings.grid, generator=rng, dtype=torch.float64)
    return image, features, maps


def repeated(fusion: FeatureFusion, features: Tensor, tokens: int) -> Tensor:
    return fusion.embed_features(features)[:, None].repeat(1, tokens, 1)


def naive_mix(fusion: FeatureFusion, features: Tensor) -> Tensor:
    """Equation 6 as the paper words it: repeat, concatenate along the embedding, one linear layer."""
    depth = fusion.settings.depth
    pair = torch.cat((fusion.classes.repeat(BATCH, 1, 1), repeated(fusion, features, depth)), 2)
    return pair @ fusion.mix.weight.T + fusion.mix.bias


def count(**changes: Any) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in FeatureFusion(replace(FEATURES, **changes)).parameters())


# The paper's budgets (§5): +0.06 % for features, +0.09 % with maps, +0.43 % with the features' network.


@pytest.mark.parametrize(
    ("changes", "parameters", "tokens"),
    [
        ({"features": "none"}, 0, 576),
        ({}, 4_458_496, 832),
        ({"maps": "concat"}, 6_611_200, 1088),
        ({"maps": "concat", "classes": 20}, 6_562_048, 1088),
        ({"maps": "concat", "classes": 159}, 6_597_632, 1088),
        ({"maps": "concat", "map_tokens": "spatial", "grid": 16}, 6_774_784, 1088),
        ({"maps": "concat", "map_tokens": "spatial", "grid": 24}, 6_774_784, 1408),
        ({"maps": "concat", "maps_partner": "mixed"}, 6_611_200, 1088),
        ({"maps": "concat", "maps_partner": "mixed", "keep_mix": False}, 6_611_200, 832),
        ({"maps": "concat", "keep_mix": False}, 4_250_880, 832),
        ({"features": "replace"}, 262_144 + 2_098_176 + 148_032, 576),
        ({"features": "mix"}, 4_458_496 + 2_098_176 + 148_032, 576),
        ({"features": "add"}, 4_458_496 + 148_032 + 1, 576),
        ({"features": "add", "depth": 576}, 4_786_177, 576),
    ],
)
def test_sizes(changes: dict[str, Any], parameters: int, tokens: int) -> None:
    assert count(**changes) == parameters
    settings = replace(FEATURES, **changes)
    assert settings.image_tokens + settings.added_tokens == tokens
    with torch.device("meta"):
        image, features, maps = torch.empty(2, 576, 1024), torch.empty(2, 2048), torch.empty(2, settings.classes, 1, 1)
        fused = FeatureFusion(settings)(image, features, maps.expand(-1, -1, settings.grid, settings.grid))
    assert fused.shape == (2, tokens, 1024)


def test_the_papers_budgets() -> None:
    features, both = count(), count(maps="concat")
    assert (round(100 * features / LLAVA, 2), round(100 * both / LLAVA, 2)) == (0.06, 0.09)
    assert round(100 * (both / features - 1)) == 48  # "around 50 %"
    assert abs(100 * (features + RESNET) / LLAVA - 0.43) < 0.01


# The formulas.


def test_without_extras_clips_tokens_pass_untouched() -> None:
    fusion = small(features="none")
    image, *_ = given(fusion)
    assert fusion(image) is image


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"maps": "concat"},
        {"maps": "concat", "maps_partner": "mixed"},
        {"maps": "concat", "keep_mix": False},
        {"maps": "concat", "map_tokens": "spatial", "grid": 3},
        {"maps": "concat", "map_tokens": "spatial", "grid": 2, "maps_partner": "mixed"},
    ],
)
def test_concatenation_equals_the_naive_form(changes: dict[str, Any]) -> None:
    fusion = small(**changes)
    image, features, maps = given(fusion)
    settings, expected = fusion.settings, [image]
    if settings.keep_mix:
        expected.append(naive_mix(fusion, features))
    if settings.maps == "concat":
        kernel, bias = fusion.embed_maps.weight[:, :, 0], fusion.embed_maps.bias
        flat = maps.reshape(BATCH, settings.classes, -1)
        if settings.map_tokens == "width":
            tokens = torch.einsum("tc,bcw->btw", kernel, flat) + bias[None, :, None]
        else:
            tokens = torch.einsum("wc,bct->btw", kernel, flat) + bias
        alone = settings.maps_partner == "features"
        partner = repeated(fusion, features, tokens.shape[1]) if alone else naive_mix(fusion, features)
        expected.append(torch.cat((partner, tokens), 2) @ fusion.mix_maps.weight.T + fusion.mix_maps.bias)
    torch.testing.assert_close(fusion(image, features, maps), torch.cat(expected, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("depth", [4, 9])
def test_mixing_and_addition_equal_the_naive_form(depth: int) -> None:
    mixing, adding = small(features="mix", depth=depth), small(features="add", alpha=0.7, depth=depth)
    for fusion in (mixing, adding):
        image, features, _ = given(fusion)
        fitted = naive_mix(fusion, features)
        if depth != SMALL.image_tokens:
            adapter = fusion.to_image_tokens
            assert isinstance(adapter, nn.Conv1d)
            fitted = torch.einsum("td,bdw->btw", adapter.weight[:, :, 0], fitted) + adapter.bias[None, :, None]
        if fusion is mixing:
            expected = torch.cat((image, fitted), 2) @ mixing.mix_image.weight.T + mixing.mix_image.bias
        else:
            expected = image + 0.7 * fitted
        torch.testing.assert_close(fusion(image, features), expected, rtol=1e-6, atol=1e-7)  # 0.7 is kept in float32


def test_replacement_takes_the_statistics_of_the_style() -> None:
    for content in ("features", "classes"):
        fusion = small(features="replace", adain_content=content, depth=9)
        image, features, _ = given(fusion)
        fused = fusion(image, features)
        style = fusion.classes.expand(BATCH, -1, -1) if content == "features" else repeated(fusion, features, 9)
        torch.testing.assert_close(fused.mean(-1), style.mean(-1))
        torch.testing.assert_close(fused.std(-1, correction=0), style.std(-1, correction=0), rtol=1e-3, atol=1e-4)
        assert torch.equal(fused, fusion(torch.zeros_like(image), features)), "CLIP's tokens are not used"


def test_replacement_loses_the_image() -> None:
    """Why the variant cannot learn: an image's tokens are copies of one vector, up to scale and shift."""
    fusion = small(features="replace", depth=9)
    image, features, _ = given(fusion)
    tokens = fusion(image, features)[0]
    assert torch.linalg.matrix_rank(tokens, rtol=1e-9) == 2


def test_the_images_share_of_the_mix_is_one_shift_for_all_tokens() -> None:
    fusion = small()
    image, features, _ = given(fusion)
    mixed = fusion(image, features)[:, SMALL.image_tokens :]
    difference = mixed[0] - mixed[1]
    torch.testing.assert_close(difference, difference[:1].expand(SMALL.depth, -1), rtol=1e-9, atol=1e-12)
    assert difference.abs().max() > 1e-3


def test_bytes_and_fractions_are_the_same_maps() -> None:
    fusion = small(maps="concat")
    image, features, maps = given(fusion)
    stored = (maps * 255).round().to(torch.uint8)
    torch.testing.assert_close(fusion(image, features, stored), fusion(image, features, stored.double() / 255))


def test_shuffled_maps_change_the_maps_tokens_alone() -> None:
    fusion = small(maps="concat")
    image, features, maps = given(fusion)
    plain, shuffled = fusion(image, features, maps), fusion(image, features, maps.flip(1))
    first = SMALL.image_tokens + SMALL.depth
    assert torch.equal(plain[:, :first], shuffled[:, :first])
    assert not torch.allclose(plain[:, first:], shuffled[:, first:], atol=1e-3)


def test_tokens_keep_the_images_precision() -> None:
    fusion = FeatureFusion(replace(SMALL, maps="concat"))
    image, features, maps = given(fusion)
    assert fusion(image.bfloat16(), features.half(), maps.half()).dtype == torch.bfloat16


# Learning.


@pytest.mark.parametrize(
    "changes",
    [
        {"features": "replace"},
        {"features": "mix"},
        {"features": "add", "alpha": 1.0},
        {"maps": "concat"},
        {"maps": "concat", "keep_mix": False},
        {"maps": "concat", "keep_mix": False, "maps_partner": "mixed"},
        {"features": "mix", "maps": "concat"},
    ],
)
def test_every_parameter_learns(changes: dict[str, Any]) -> None:
    fusion = small(**changes)
    image, features, maps = given(fusion)
    fusion(image, features, maps).square().sum().backward()
    learning = {name for name, parameter in fusion.named_parameters() if parameter.grad is not None}
    assert learning == {name for name, _ in fusion.named_parameters()}
    assert all(parameter.grad.any() for parameter in fusion.parameters())


def test_addition_from_zero_moves_alpha_first() -> None:
    fusion = small(features="add")
    image, features, _ = given(fusion)
    assert torch.equal(fusion(image, features), image), "LLaVA's own tokens at the start"
    optimizer = torch.optim.SGD(fusion.parameters(), 0.1)
    for moving in (False, True):
        optimizer.zero_grad()
        fusion(image, features).square().sum().backward()
        assert fusion.alpha.grad and bool(fusion.mix.weight.grad.any()) == moving
        optimizer.step()


def test_weights_of_the_first_stage_fill_the_second_but_for_its_maps() -> None:
    first, second = small(), small(maps="concat")
    missing, unexpected = second.load_state_dict(first.state_dict(), strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing} == {"embed_maps", "mix_maps"}


# Refusals.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": "none", "maps": "concat"}, "set features=concat"),
        ({"maps": "concat", "grid": 3}, "3 x 3 cells is no row of width 16"),
        ({"maps": "concat", "maps_partner": "mixed", "features": "replace"}, "set maps_partner=features"),
        ({"maps": "concat", "maps_partner": "mixed", "map_tokens": "spatial", "grid": 3}, "9 map tokens meet 4"),
        ({"maps": "concat", "keep_mix": False, "features": "add"}, "set keep_mix=True"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_missing_and_misshapen_inputs_are_refused() -> None:
    fusion = small(maps="concat")
    image, features, maps = given(fusion)
    with pytest.raises(ValueError, match=r"expected features \(3, 6\), not None"):
        fusion(image, None, maps)
    with pytest.raises(ValueError, match=r"expected maps \(3, 5, 4, 4\), not None"):
        fusion(image, features)
    with pytest.raises(ValueError, match=r"expected maps \(3, 5, 4, 4\), not \(3, 4, 4, 4\)"):
        fusion(image, features, maps[:, :4])
