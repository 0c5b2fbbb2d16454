"""The authors' checkpoint, and what a model built from it computes, against the reference implementation's numbers."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, get_linear_schedule_with_warmup

from lit_modules.nets.backbones import PhantomSize, build_config, build_language_model
from lit_modules.nets.caption_loss import caption_loss
from lit_modules.nets.prefix_mapper import PrefixMapper, PrefixMapperSettings
from lit_modules.regionformer_weights import load_checkpoint, mapper_settings, read_checkpoint, split

TINY = {"vocab_size": 64, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
PREFIX = 5
Model = tuple[GPT2LMHeadModel, PrefixMapper]


@pytest.fixture(scope="module")
def file(shared: Path) -> str:
    return str(shared / "golden" / "regionformer" / "ref_ckpt_tiny_imgmask.pt")


@pytest.fixture(scope="module")
def theirs(file: str) -> dict[str, Tensor]:
    return torch.load(file, weights_only=True)


@pytest.fixture(scope="module")
def tensors(shared: Path) -> dict[str, Tensor]:
    arrays = np.load(shared / "golden" / "regionformer" / "clipcaption_tiny_img.npz")
    return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def tiny_gpt() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(**TINY, bos_token_id=0, eos_token_id=0)).eval().requires_grad_(False)


def imported(weights: dict[str, Tensor], path: Path) -> Model:
    """A model that came through a file."""
    torch.save(weights, path)
    gpt, mapper = tiny_gpt(), PrefixMapper(mapper_settings(read_checkpoint(str(path))[1], str(path)))
    load_checkpoint(str(path), gpt, mapper)
    return gpt, mapper


@pytest.fixture
def model(tensors, tmp_path: Path) -> Model:
    return imported({key[2:]: value for key, value in tensors.items() if key.startswith("w.")}, tmp_path / "img.pt")


def embeds(model: Model, tensors: dict[str, Tensor]) -> Tensor:
    gpt, mapper = model
    return torch.cat((mapper(tensors["prefix"]), gpt.get_input_embeddings()(tensors["tokens"])), dim=1)


def loss_of(model: Model, tensors: dict[str, Tensor], **settings: Any) -> Tensor:
    gpt, tokens = model[0], tensors["tokens"]
    hidden = gpt.transformer(inputs_embeds=embeds(model, tensors)[:, :-1]).last_hidden_state
    return caption_loss(hidden, gpt.lm_head, tokens, PREFIX, **{"ignore": 0} | settings)


# The file.


def test_a_checkpoint_is_read_whole(file: str, theirs) -> None:
    assert len(theirs) == 60
    settings = mapper_settings(read_checkpoint(file)[1], file)
    assert settings == PrefixMapperSettings(32, 32, prefix_length=5, clip_length=4, layers=2)
    gpt, mapper = tiny_gpt(), PrefixMapper(settings)
    load_checkpoint(file, gpt, mapper)
    held = {f"gpt.{k}": v for k, v in gpt.state_dict().items()}
    held |= {f"clip_project.{k}": v for k, v in mapper.state_dict().items()}
    left_out = theirs.keys() - held.keys()
    assert left_out == {f"gpt.transformer.h.{n}.attn.{name}" for n in (0, 1) for name in ("bias", "masked_bias")}
    assert len(held) == 56 and held.keys() <= theirs.keys()
    assert all(torch.equal(held[key], theirs[key]) for key in held)


@pytest.mark.parametrize("prefix_size", [512, 1024])
def test_names_of_a_full_checkpoint_all_fit(prefix_size: int) -> None:
    """272 entries under the authors' versions: 248 weights and 24 constants."""
    size = PhantomSize()
    with torch.device("meta"):
        gpt = build_language_model(build_config("gpt2", size, 0), "gpt2", torch.float32, size)
        mapper = PrefixMapper(PrefixMapperSettings(prefix_size))
        file = {f"gpt.{k}": v for k, v in gpt.state_dict().items()}
        file |= {f"clip_project.{k}": v for k, v in mapper.state_dict().items()}
        assert len(file) == 248
        for layer in range(12):
            file[f"gpt.transformer.h.{layer}.attn.bias"] = torch.empty(1, 1, 1024, 1024, dtype=torch.uint8)
            file[f"gpt.transformer.h.{layer}.attn.masked_bias"] = torch.empty(())
    assert len(file) == 272
    ours, mapped = split(file, "a file")
    assert ours.keys() == gpt.state_dict().keys() and len(ours) == 149
    assert mapped.keys() == mapper.state_dict().keys() and len(mapped) == 99
    assert mapper_settings(mapped, "a file") == PrefixMapperSettings(prefix_size)
    assert mapped["linear.weight"].shape == (30720, prefix_size)
    assert mapped["transformer.layers.7.attn.to_keys_values.weight"].shape == (1536, 768)
    assert ours["transformer.h.11.attn.c_attn.bias"].shape == (2304,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_project.linear.bias": None}, "(clip_project.) does not fit this configuration: linear.bias is missing"),
        ({"gpt.transformer.h.1.attn.c_attn.bias": None}, "transformer.h.1.attn.c_attn.bias is missing"),
        ({"clip_project.extra": torch.zeros(1)}, "extra is unknown"),
        ({"gpt.transformer.h.2.attn.c_attn.bias": torch.zeros(96)}, "transformer.h.2.attn.c_attn.bias is unknown"),
        ({"gpt.transformer.wpe.weight": torch.zeros(9, 32)}, "transformer.wpe.weight is (9, 32), not (64, 32)"),
        ({"gpt.lm_head.weight": torch.zeros(64, 32)}, "gpt.lm_head.weight differs from gpt.transformer.wte.weight"),
        ({"optimizer": torch.zeros(1)}, "optimizer is neither of GPT-2"),
        ({"clip_project.model.0.weight": torch.zeros(1)}, "--mapping_type mlp"),
        ({"clip_project.prefix_const": None}, "clip_project.prefix_const is missing"),
        ({"clip_project.prefix_const": torch.zeros(5)}, "no matrix where it should be one"),
        ({"clip_project.linear.weight": torch.zeros(127, 32)}, "127 rows, no multiple of 32"),
    ],
)
def test_what_does_not_fit_is_named(theirs, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        imported({key: value for key, value in (theirs | change).items() if value is not None}, tmp_path / "a.pt")
    assert "\n" not in str(error.value) and "a.pt" in str(error.value)


@pytest.mark.parametrize("kept", ["gpt.", "clip_project."])
def test_half_a_checkpoint_is_refused(theirs, kept: str) -> None:
    other = {"gpt.": "clip_project.", "clip_project.": "gpt."}[kept]
    with pytest.raises(ValueError, match=f"half.pt: nothing under {other}"):
        split({key: value for key, value in theirs.items() if key.startswith(kept)}, "half.pt")


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was_run",)


def test_a_file_that_holds_code_is_refused(theirs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(theirs | {"gpt.more": Code()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="refused"):
        read_checkpoint(str(tmp_path / "model.pt"))
    assert not (tmp_path / "was_run").exists()


# What it computes.


@torch.no_grad()
def test_logits_equal_the_reference(model, tensors) -> None:
    logits = model[0](inputs_embeds=embeds(model, tensors)).logits
    valid = tensors["mask"].bool()
    assert 0 < valid.sum() < valid.numel()
    torch.testing.assert_close(logits[valid], tensors["logits"][valid], rtol=1e-4, atol=1e-4)
    masked = model[0](inputs_embeds=embeds(model, tensors), attention_mask=tensors["mask"]).logits
    torch.testing.assert_close(masked[valid], tensors["logits"][valid], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_loss_equals_the_reference(model, tensors) -> None:
    torch.testing.assert_close(loss_of(model, tensors), tensors["loss_train"], rtol=0, atol=1e-6)
    torch.testing.assert_close(loss_of(model, tensors, reduction="sum"), tensors["loss_sum"], rtol=1e-6, atol=1e-4)
    assert int((tensors["tokens"] != 0).sum()) == int(tensors["n_tokens"])


def test_a_token_0_that_was_said_can_count(tensors) -> None:
    """Row 3 says token 0; with -100 as padding it is learnt, as the reference's own logits show."""
    logits, text = tensors["logits"], tensors["mask"][:, PREFIX:].bool()
    targets = torch.where(text, tensors["tokens"], -100)
    assert int((targets == 0).sum()) == 1
    expected = F.cross_entropy(logits[:, PREFIX - 1 : -1].flatten(0, 1), targets.flatten())
    found = caption_loss(logits, lambda kept: kept, targets, PREFIX)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert abs(float(found) - float(tensors["loss_train"])) > 1e-3


def test_the_head_sees_the_targets_alone(tensors) -> None:
    seen: list[int] = []
    caption_loss(tensors["logits"], lambda kept: seen.append(len(kept)) or kept, tensors["tokens"], PREFIX, ignore=0)
    assert seen == [int(tensors["n_tokens"])]


def test_a_batch_without_targets_and_one_without_positions() -> None:
    hidden, nothing = torch.randn(2, 8, 6, requires_grad=True), torch.full((2, 4), -100)
    loss = caption_loss(hidden, lambda kept: kept, nothing, PREFIX)
    loss.backward()
    assert loss.item() == 0 and torch.equal(hidden.grad, torch.zeros(2, 8, 6))
    with pytest.raises(ValueError, match="8 positions cannot predict 5 tokens after 5"):
        caption_loss(hidden, lambda kept: kept, torch.zeros(2, 5, dtype=torch.long), PREFIX)


def test_training_equals_the_reference(model, tensors) -> None:
    """Six steps on one batch; the frozen GPT-2 stays as it was."""
    gpt, mapper = model
    before = {key: value.clone() for key, value in gpt.state_dict().items()}
    optimizer = torch.optim.AdamW(mapper.parameters(), lr=1e-3, eps=1e-6, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 2, 6)
    losses, rates, norms = [], [], []
    for _ in range(6):
        loss = loss_of(model, tensors)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in mapper.parameters()])))
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    np.testing.assert_allclose(rates, tensors["traj_lr"], rtol=1e-9, atol=0)
    np.testing.assert_allclose(losses, tensors["traj_loss_torch_adamw_eps1e-6_wd0"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(norms[:2], tensors["traj_gradnorm"][:2], rtol=1e-5)
    # The authors' optimiser adds its epsilon elsewhere: near, not equal.
    np.testing.assert_allclose(losses, tensors["traj_loss"], rtol=0, atol=1e-3)
    for name, key in (("prefix_const", "final.prefix_const"), ("linear.weight", "final.linear.weight")):
        torch.testing.assert_close(mapper.get_parameter(name), tensors[key], rtol=0, atol=3e-3)
    assert all(torch.equal(value, before[key]) for key, value in gpt.state_dict().items())
