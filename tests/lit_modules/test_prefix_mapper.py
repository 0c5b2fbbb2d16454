"""The mapper against the reference implementation's own numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_modules.nets.prefix_mapper import PrefixMapper, PrefixMapperSettings

SMALL = PrefixMapperSettings(prefix_size=24, dim=64, prefix_length=6, clip_length=4, layers=3)


@pytest.fixture(scope="module")
def small(shared: Path) -> tuple[PrefixMapper, dict[str, torch.Tensor]]:
    arrays = np.load(shared / "golden" / "regionformer" / "mapper_small.npz")
    tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    net = PrefixMapper(SMALL)
    net.load_state_dict({key[2:]: value for key, value in tensors.items() if key.startswith("w.")}, strict=True)
    return net, tensors


def test_prefix_equals_the_reference(small) -> None:
    net, tensors = small
    torch.testing.assert_close(net(tensors["x"]), tensors["out"], rtol=1e-5, atol=1e-5)
    laid_out = net.linear(tensors["x"]).view(3, 4, 64)
    torch.testing.assert_close(laid_out, tensors["clip_tokens"], rtol=1e-5, atol=1e-5)


def test_attention_equals_the_reference_and_the_prefix_is_made_of_it(small) -> None:
    net, tensors = small
    prefix, attention = net.with_attention(tensors["x"])
    torch.testing.assert_close(prefix, tensors["out"], rtol=1e-5, atol=1e-5)
    by_head_last = torch.stack(attention).permute(0, 1, 3, 4, 2)  # (layer, study, query, key, head)
    torch.testing.assert_close(by_head_last, tensors["attn"], rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(prefix.square().sum(), attention)
    assert all(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize(("prefix_size", "parameters"), [(512, 53_587_968), (1024, 69_316_608), (640, 57_520_128)])
def test_published_sizes_have_the_references_parameter_counts(prefix_size: int, parameters: int) -> None:
    with torch.device("meta"):
        net = PrefixMapper(PrefixMapperSettings(prefix_size))
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert len(net.state_dict()) == 99


def test_a_study_does_not_depend_on_its_batch(small) -> None:
    net, tensors = small
    alone = torch.cat([net(row[None]) for row in tensors["x"]])
    torch.testing.assert_close(net(tensors["x"]), alone, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="dim=64 is no multiple of heads=7"):
        PrefixMapper(replace(SMALL, heads=7))
