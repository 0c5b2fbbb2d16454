"""The volume encoder against the reference implementation's own numbers."""

from pathlib import Path

import pytest
import torch
from reg2rg_tiny import encoder, read_golden

from lit_modules.nets.vit3d import Encoder3D, LearnedPosition3D, ViT3D


def test_tokens_positions_and_gradients_equal_the_reference(golden: Path) -> None:
    config, weights, expected = read_golden(golden / "vit3d_small.safetensors")
    net = ViT3D(encoder(config)).eval()
    net.load_state_dict(weights, strict=True)
    x = expected["x"].clone().requires_grad_()
    torch.testing.assert_close(net.patch_embedding(x), expected["patch_embed"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(net.positions(x).expand(2, -1, -1), expected["pos"], rtol=0, atol=0)
    y = net(x)
    torch.testing.assert_close(y, expected["y"], rtol=1e-4, atol=2e-5)
    y.square().mean().backward()
    torch.testing.assert_close(x.grad, expected["grad_x_of_mean_sq"], rtol=1e-4, atol=1e-6)
    gradient = net.transformer.layers[0][0].fn.to_qkv.weight.grad
    torch.testing.assert_close(gradient, expected["grad_to_qkv_layer0"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["posemb_vision", "posemb_mask"])
def test_learned_positions_equal_the_reference(golden: Path, name: str) -> None:
    config, weights, expected = read_golden(golden / f"{name}.safetensors")
    positions = LearnedPosition3D(config["num_pos_feats"], *config["grid"])
    positions.load_state_dict(weights, strict=True)
    batch, *grid = config["call"]
    assert torch.equal(positions(*grid).expand(batch, -1, -1), expected["pos"])


def test_positions_of_a_grid_that_does_not_divide_the_tables() -> None:
    positions = LearnedPosition3D(2, 16, 16, 128)
    rows = positions(5, 6, 24)[:, :2].unflatten(0, (5, 6, 24))[:, 0, 0]
    assert torch.equal(rows, positions.row_embed.weight[[2, 5, 8, 11, 14]])  # (k + 1)·(16 // 5) − 1
    depths = positions(5, 6, 24)[:24, 4:]
    assert torch.equal(depths, positions.dep_embed.weight[[5 * (k + 1) - 1 for k in range(24)]])


def test_mask_encoder_equals_the_reference_on_fractional_masks(golden: Path) -> None:
    config, weights, expected = read_golden(golden / "mask_encoder_small.safetensors")
    net = ViT3D(encoder(config)).eval()
    net.load_state_dict(
        {k.removeprefix("mask_encoder."): v for k, v in weights.items() if k.startswith("mask_encoder.")}
    )
    assert ((expected["x"] > 0) & (expected["x"] < 1)).any(), "the masks of this golden are fractional"
    tokens = net(expected["x"])
    torch.testing.assert_close(tokens, expected["tokens"], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(tokens.mean(1), expected["pooled"], rtol=1e-4, atol=2e-5)
    embedding = torch.nn.functional.linear(tokens.mean(1), weights["mask_fc.weight"], weights["mask_fc.bias"])
    torch.testing.assert_close(embedding, expected["embedding"], rtol=1e-4, atol=2e-5)


def test_one_channel_counts_as_repeated_on_all() -> None:
    torch.manual_seed(0)
    net = ViT3D(Encoder3D(16, 8, 8, 4, dim=12, depth=1, heads=2, mlp_dim=8, dim_head=8)).eval()
    for parameter in net.to_patch_embedding.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 1, 16, 16, 8)
    torch.testing.assert_close(net(x), net(x.expand(-1, 3, -1, -1, -1)), rtol=1e-4, atol=1e-5)


def test_published_sizes_have_the_published_parameter_counts() -> None:
    volume = Encoder3D(512, 512, 32, 4, dim=768, depth=12, heads=8, mlp_dim=2048)
    mask = Encoder3D(256, 64, 32, 16, dim=255, depth=3, heads=8, mlp_dim=512, channels=1)
    with torch.device("meta"):
        assert sum(p.numel() for p in ViT3D(volume).parameters()) == 66_208_000
        assert sum(p.numel() for p in ViT3D(mask).parameters()) == 6_569_359


@pytest.mark.parametrize(("size", "word"), [((30, 32, 16), "height"), ((32, 96, 16), "width"), ((32, 32, 6), "depth")])
def test_volumes_that_do_not_fit_are_refused_by_axis(size: tuple[int, int, int], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Encoder3D(64, 32, 8, 4, dim=48, depth=1, heads=1, mlp_dim=8).check(size)
