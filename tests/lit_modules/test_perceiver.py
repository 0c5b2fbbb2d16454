"""The resampler against the reference implementation's own numbers."""

from pathlib import Path

import torch
from reg2rg_tiny import read_golden

from lit_modules.nets.perceiver import Perceiver, PerceiverSettings


def test_latents_and_gradients_equal_the_reference(golden: Path) -> None:
    config, weights, tensors = read_golden(golden / "perceiver_small.safetensors")
    settings = PerceiverSettings(
        config["depth"], config["num_latents"], config["heads"], config["dim_head"], config["ff_mult"]
    )
    net = Perceiver(config["dim"], settings)
    net.load_state_dict(weights, strict=True)
    batch, times, frames, tokens, dim = tensors["x"].shape
    assert frames == 1
    y = net(tensors["x"].view(batch * times, tokens, dim)).unflatten(0, (batch, times))
    torch.testing.assert_close(y, tensors["y"], rtol=1e-4, atol=1e-5)
    y.square().mean().backward()
    torch.testing.assert_close(net.latents.grad, tensors["grad_latents"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(net.layers[0][0].to_kv.weight.grad, tensors["grad_to_kv_l0"], rtol=1e-4, atol=1e-6)


def test_published_size_has_the_published_parameter_count() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in Perceiver(768, PerceiverSettings()).parameters()) == 37_802_496


def test_any_number_of_tokens_becomes_the_latents() -> None:
    torch.manual_seed(0)
    net = Perceiver(12, PerceiverSettings(depth=1, latents=4, heads=2, dim_head=8))
    few, many = net(torch.randn(3, 5, 12)), net(torch.randn(1, 50, 12))
    assert few.shape == (3, 4, 12)
    assert many.shape == (1, 4, 12)
    assert not torch.allclose(few[0], few[1]), "latents read the tokens they are given"
