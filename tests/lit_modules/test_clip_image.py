"""CLIP's preprocessing and image side against OpenAI's own pixels and embeddings."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from lit_modules.nets.clip_image import (
    PHANTOM,
    VIT_B_32,
    PhantomCLIP,
    build_vision_config,
    build_vision_model,
    clip_embeddings,
    clip_pixels,
    clip_view,
    from_openai,
)

SIZES = ["W300_H331", "W331_H300", "W260_H260", "W420_H250", "W200_H180"]
TINY = PhantomCLIP(hidden=32, layers=2, heads=4, mlp=128, patch=8, image=32, dim=16)


@pytest.fixture(scope="module")
def prepared(shared: Path) -> dict[str, np.ndarray]:
    return dict(np.load(shared / "golden" / "regionformer" / "clip_preprocess.npz"))


@pytest.fixture(scope="module")
def tiny(shared: Path) -> dict[str, torch.Tensor]:
    arrays = np.load(shared / "golden" / "regionformer" / "clip_tiny.npz")
    return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


@pytest.mark.parametrize("kind", ["img", "mask"])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_torchvisions(prepared, kind: str, size: str) -> None:
    view = clip_view(prepared[f"{kind}_{size}.in"])
    wrong = np.abs(view.astype(int) - prepared[f"{kind}_{size}.out_u8"])
    assert wrong.max() <= 1, "a version of Pillow may round otherwise, not more"
    assert (wrong > 0).mean() < 0.01


@pytest.mark.parametrize("kind", ["img", "mask"])
def test_normalised_pixels_equal_torchvisions(prepared, kind: str) -> None:
    pixels = clip_pixels(prepared[f"{kind}_W300_H331.in"])
    assert pixels.shape == (3, 224, 224) and pixels.dtype == np.float32
    np.testing.assert_allclose(pixels[:, 100], prepared[f"{kind}_W300_H331.out_norm_row100"], rtol=0, atol=0.016)
    same = clip_view(prepared[f"{kind}_W300_H331.in"])[100] == prepared[f"{kind}_W300_H331.out_u8"][100]
    exact = prepared[f"{kind}_W300_H331.out_norm_row100"]
    np.testing.assert_allclose(pixels[:, 100][:, same], exact[:, same], rtol=1e-6, atol=1e-6)


def test_cropping_loses_a_box_at_the_edge_and_padding_keeps_it() -> None:
    mask = np.zeros((400, 300), np.uint8)
    mask[:30, 100:200] = 255  # an apex of a portrait image
    nothing = clip_pixels(np.zeros((400, 300), np.uint8))
    assert np.array_equal(clip_pixels(mask), nothing)
    padded = clip_view(mask, "pad")
    lit = np.argwhere(padded > 127)
    assert not np.array_equal(clip_pixels(mask, "pad"), nothing)
    # 400 pixels become 224, and 50 columns of black stand on either side.
    np.testing.assert_allclose(lit.min(0), [0, 150 * 0.56], atol=1)
    np.testing.assert_allclose(lit.max(0), [30 * 0.56 - 1, 250 * 0.56 - 1], atol=1)


def test_padding_changes_no_square_image() -> None:
    square = np.random.default_rng(0).integers(0, 256, (90, 90), np.uint8)
    assert np.array_equal(clip_view(square, "pad"), clip_view(square))
    assert np.array_equal(clip_view(square, size=90), square), "nor does a square of the right size change at all"


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint16), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4), np.uint8)]
)
def test_other_images_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="8-bit grey"):
        clip_pixels(image)


def test_an_unknown_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="fit=squash: there are crop and pad"):
        clip_view(np.zeros((4, 4), np.uint8), "squash")  # type: ignore[arg-type]


def test_openai_weights_under_transformers_names(tiny) -> None:
    theirs = {key[2:]: value for key, value in tiny.items() if key.startswith("o.")}
    expected = {key[2:]: value for key, value in tiny.items() if key.startswith("h.")}
    for given in (theirs, {"visual." + k: v for k, v in theirs.items()} | {"token_embedding.weight": torch.zeros(2)}):
        renamed = from_openai(given)
        assert renamed.keys() == expected.keys()
        assert all(torch.equal(renamed[key], expected[key]) for key in expected)
    with pytest.raises(ValueError, match="layer4.0.conv1.weight is no weight"):
        from_openai(theirs | {"layer4.0.conv1.weight": torch.zeros(1)})


def test_embeddings_equal_openais(tiny) -> None:
    model = build_vision_model(build_vision_config(PHANTOM, TINY), PHANTOM, TINY)
    model.load_state_dict(from_openai({key[2:]: value for key, value in tiny.items() if key.startswith("o.")}))
    raw = model(pixel_values=tiny["x"]).image_embeds
    torch.testing.assert_close(raw, tiny["image_embeds"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(clip_embeddings(model, tiny["x"]), tiny["image_embeds_l2"], rtol=1e-5, atol=1e-6)


def test_the_phantom_has_fixed_frozen_weights() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    config = build_vision_config(PHANTOM, TINY)
    first = build_vision_model(config, PHANTOM, TINY)
    assert torch.equal(torch.random.get_rng_state(), before), "building it draws nothing from the global generator"
    second = build_vision_model(config, PHANTOM, PhantomCLIP(32, 2, 4, 128, 8, 32, 16, seed=5))
    torch.manual_seed(2)
    again = build_vision_model(config, PHANTOM, TINY)
    assert isinstance(first, CLIPVisionModelWithProjection) and not first.training
    assert not any(parameter.requires_grad for parameter in first.parameters())
    weights, others, same = (model.visual_projection.weight for model in (first, second, again))
    assert torch.equal(weights, same) and not torch.equal(weights, others)
    with pytest.raises(ValueError, match="there is phantom:clip"):
        build_vision_config("phantom:vit", TINY)


def test_the_published_size_needs_no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with torch.device("meta"):
        model = build_vision_model(build_vision_config(VIT_B_32, TINY), VIT_B_32, TINY)
    assert sum(p.numel() for p in model.parameters()) == 87_849_216
    assert model.config.projection_dim == 512


def test_a_local_folder_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    config = build_vision_config(PHANTOM, TINY)
    written = build_vision_model(config, PHANTOM, TINY)
    folder = str(tmp_path / "clip")
    written.save_pretrained(folder)
    read = build_vision_model(build_vision_config(folder, PhantomCLIP()), folder, PhantomCLIP())
    assert isinstance(read.config, CLIPVisionConfig) and read.config.patch_size == 8
    assert torch.equal(read.visual_projection.weight, written.visual_projection.weight)
    weights = written.state_dict()
    del weights["visual_projection.weight"]
    written.save_pretrained(folder, state_dict=weights)
    with pytest.raises(ValueError, match="visual_projection.weight is missing") as error:
        build_vision_model(config, folder, TINY)
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"give a folder with config\.json"):
        build_vision_config(str(tmp_path / "none"), TINY)


def test_what_is_not_at_hand_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="run `hf download someone/clip` while online") as error:
        build_vision_config("someone/clip", TINY)
    with pytest.raises(FileNotFoundError, match="run `hf download someone/clip` while online"):
        build_vision_model(build_vision_config(PHANTOM, TINY), "someone/clip", TINY)
    assert "\n" not in str(error.value)
