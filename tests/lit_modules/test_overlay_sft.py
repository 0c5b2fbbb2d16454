"""Overlay-SFT as a whole: what it is shown, what it learns and what is left as it was, what a checkpoint holds."""

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import get_linear_schedule_with_warmup

from datamodules.study import DataFault, SettingsFault
from lit_modules.nets import qlora
from lit_modules.nets.overlay import PROMPT_1, PROMPT_2, Overlay
from lit_modules.nets.phantom_vlm import PhantomVLM
from lit_modules.nets.vlm_encoding import IGNORED
from lit_modules.nets.vlm_families import FAMILIES, VLMS
from lit_modules.overlay_sft import OverlaySFT, plain_text
from tests.lit_modules.overlay_tiny import QLORA, REPORTS, SMALL, batch_of, film, small

needs_bitsandbytes = pytest.mark.skipif(not qlora.bitsandbytes_there(), reason="needs: pip install bitsandbytes")


def said(model: OverlaySFT, ids: torch.Tensor) -> str:
    return model.encoder.processor.tokenizer.decode(ids, skip_special_tokens=True)


# What it is shown.


def test_guidance_draws_the_mask_and_says_so() -> None:
    guided, bare = small().preprocessor(), small(guidance="none").preprocessor()
    with_mask, flag = guided.film(film())
    without, none = bare.film(film())
    assert flag and not none
    drawn = (with_mask != without).any(axis=2)
    mask = film().masks["pneumothorax"] == 1
    assert drawn.any() and not (drawn & ~mask).any()  # a red of its own may meet a grey of 255
    assert guided.settings() != bare.settings()
    assert guided.settings() != replace(guided, overlay=Overlay(style="outline")).settings()
    json.dumps(guided.settings())


@pytest.mark.parametrize(
    ("settings", "study", "prompt"),
    [
        ({}, film(), PROMPT_1),
        ({}, film(empty=True), PROMPT_2),
        ({}, film(masks=None), PROMPT_2),
        ({"guidance": "none"}, film(), PROMPT_2),
    ],
)
def test_prompt_1_is_said_of_a_mask_that_is_drawn_and_of_no_other(settings: Any, study: Any, prompt: str) -> None:
    model = small(**settings)
    batch = batch_of(model, study)
    assert prompt in said(model, batch["prompt"]["input_ids"][0])
    assert (PROMPT_1 if prompt == PROMPT_2 else PROMPT_2) not in said(model, batch["prompt"]["input_ids"][0])
    if prompt == PROMPT_2:
        plain = batch_of(small(guidance="none"), study)
        torch.testing.assert_close(batch["turn"]["pixel_values"], plain["turn"]["pixel_values"], rtol=0, atol=0)


def test_the_radiologists_mask_beside_the_given_one_is_not_drawn() -> None:
    masks = {"pneumothorax": film(1).masks["pneumothorax"], "annotation": film(0).masks["pneumothorax"]}
    source = small().preprocessor()
    assert np.array_equal(source.film(film(masks=masks))[0], source.film(film(1))[0])


def test_training_goes_without_the_prompt_and_evaluation_has_both() -> None:
    source = small().preprocessor()
    arrays = source.arrays(film())
    assert set(source.collate([source(film(), arrays, random.Random(0))])) == {"ids", "cut", "learnt", "turn"}
    assert set(source.collate([source(film(), arrays, None)])) == {"ids", "cut", "learnt", "turn", "prompt"}


def test_loss_is_on_the_report_alone_or_also_on_the_prompt() -> None:
    for masked in (True, False):
        model = small(mask_prompt=masked)
        turn = batch_of(model, film())["turn"]
        counted = said(model, turn["labels"][turn["labels"] != IGNORED])
        assert counted.endswith(REPORTS[0]) and (PROMPT_1 in counted) is not masked


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_from_few_logits_is_the_stock_models_own(family: str) -> None:
    for masked in (True, False):
        model = small(vlm=f"phantom:{family}", mask_prompt=masked)
        batch = batch_of(model, film(0), film(1))
        stock = model.vlm(**batch["turn"], use_cache=False).loss
        torch.testing.assert_close(model.loss(batch), stock, rtol=0, atol=3e-6)
        batch["turn"]["labels"][1] = IGNORED
        assert abs(model.loss(batch).item() - stock.item()) > 1e-4
        batch["turn"]["labels"][:] = IGNORED
        assert model.loss(batch).item() == 0


def test_a_report_that_is_too_long_is_cut_and_named() -> None:
    prompt = batch_of(small(), film())["prompt"]["input_ids"].shape[1]
    model = small(max_length=prompt + 6)
    batch = batch_of(model, film(0, report="A long text. " * 9), film(1, report="No."))
    assert batch["cut"] == ["s0"] and batch["turn"]["input_ids"].shape[1] == prompt + 6
    with pytest.warns(UserWarning, match=f"model.max_length={prompt + 6} tokens: s0"):
        model.loss(batch)


# What it learns.


def test_two_films_that_differ_in_the_mask_alone_are_learnt_by_heart() -> None:
    model = small()
    batch = batch_of(model, film(0), film(1))
    optimizer = torch.optim.AdamW(model.train().parameters(), 2e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        optimizer.step()
        if loss < 0.003:
            break
    assert [report.text for report in model.eval().generate(batch)] == list(REPORTS)
    swapped = film(0, masks=film(1).masks)
    assert model.generate(batch_of(model, swapped))[0].text == REPORTS[1]


def fit(model: OverlaySFT, folder: Path, epochs: int, resume: Path | None = None) -> L.Trainer:
    torch.manual_seed(0)
    source = model.preprocessor()
    samples: Any = [source(study, source.arrays(study), random.Random(0)) for study in (film(0), film(1))]
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    loader = DataLoader(samples, batch_size=1, collate_fn=source.collate)
    trainer.fit(model, loader, ckpt_path=None if resume is None else str(resume), weights_only=True)
    return trainer


def adapters(model: OverlaySFT) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


@needs_bitsandbytes
@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl", "mllama"])
def test_qlora_trains_writes_and_resumes_exactly(family: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Two epochs at once; and one, a checkpoint that holds the adapters alone, and the other one from there."""
    monkeypatch.setattr(OverlaySFT, "_rate", lambda self, step: 1.0)  # else it depends on how many epochs there are
    settings = QLORA | {"vlm": f"phantom:{family}", "lora": qlora.Adapters(r=4, dropout=0.0)}
    whole, first, again = (OverlaySFT(**SMALL | settings) for _ in range(3))
    fit(whole, tmp_path, 2)
    fit(first, tmp_path, 1).save_checkpoint(tmp_path / "first.ckpt")
    state = torch.load(tmp_path / "first.ckpt", weights_only=True)["state_dict"]
    assert set(state) == set(adapters(first)) and all(".lora_" in name for name in state)
    fit(again, tmp_path, 2, tmp_path / "first.ckpt")
    torch.testing.assert_close(adapters(again), adapters(whole), rtol=0, atol=0)
    assert any(not torch.equal(weight, state[name]) for name, weight in adapters(again).items())


@needs_bitsandbytes
def test_a_4_bit_layer_can_be_trained_after_a_report() -> None:
    model = small(**QLORA, vlm="phantom:qwen2_5_vl")
    batch = batch_of(model, film())
    model.generate(batch)
    model.train().loss(batch).backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in model.parameters())


@pytest.mark.parametrize("parts", ["all", "language"])
def test_adapters_in_the_language_model_alone_leave_the_image_encoder_as_it_is(parts: Any) -> None:
    """Bit for bit: the same film is seen as before; with adapters everywhere it is not."""
    model = small(tuning="lora", lora=qlora.Adapters(parts=parts))
    batch, seen = batch_of(model, film(0), film(1)), model.explain(film(), "")["activation"].values
    before = model.loss(batch).item()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], 0.01)
    for _ in range(2):  # the first step moves only that half of the adapters which starts at 0
        optimizer.zero_grad()
        model.train().loss(batch).backward()
        optimizer.step()
    assert model.eval().loss(batch) < before
    assert np.array_equal(model.explain(film(), "")["activation"].values, seen) is (parts == "language")


@pytest.mark.parametrize("steps", [100, 50, 7])
def test_the_rate_rises_and_falls_linearly(steps: int) -> None:
    model = OverlaySFT(**SMALL)
    model._trainer = SimpleNamespace(num_training_batches=steps, max_epochs=1, max_steps=-1, accumulate_grad_batches=1)
    rates = [model._rate(step) for step in range(steps + 1)]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    theirs = get_linear_schedule_with_warmup(optimizer, -(-3 * steps // 100), steps).lr_lambdas[0]
    assert rates == pytest.approx([theirs(step) for step in range(steps + 1)])
    assert rates[0] == 0 and max(rates) == 1 and rates[-1] == 0


# What it begins from, and what it needs.


def test_a_run_begins_from_anothers_adapters(tmp_path: Path) -> None:
    settings = {"vlm": "phantom:gemma3", "tuning": "lora"}
    model = small(**settings)
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1)
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "a.ckpt")
    begun = small(**settings, init_from=str(tmp_path / "a.ckpt"))
    torch.testing.assert_close(adapters(begun), adapters(model), rtol=0, atol=0)
    with pytest.raises(SettingsFault, match="another model"):
        small(vlm="phantom:mllama", tuning="lora", init_from=str(tmp_path / "a.ckpt"))
    (tmp_path / "b.ckpt").write_bytes(b"broken")
    with pytest.raises(DataFault, match=r"b\.ckpt: cannot be read"):
        small(**settings, init_from=str(tmp_path / "b.ckpt"))
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        small(**settings, init_from=str(tmp_path / "c.ckpt"))


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qlora, "bitsandbytes_there", lambda: False)
    needs = OverlaySFT(init_from="nowhere.ckpt").requirements()
    assert [need.met for need in needs] == [False] * 3
    told = " ".join(f"{need.what} {need.how}" for need in needs)
    for part in ("nowhere.ckpt", "medgemma-4b-it", "Health AI Developer Foundations", "model.quantization=none"):
        assert part in told
    assert OverlaySFT(**SMALL).requirements() == []
    with pytest.raises(SettingsFault, match="4-bit weights cannot be trained"):
        OverlaySFT(tuning="full")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_writes_and_shows_where_it_looks(family: str) -> None:
    """All adapters have a part in the loss: a process group waits for the gradient of each."""
    model = small(vlm=f"phantom:{family}", phantom=PhantomVLM(image=112), tuning="lora", gradient_checkpointing=True)
    batch = batch_of(model, film(0), film(1, empty=True))
    model.train().loss(batch).backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
    assert [report.study_id for report in model.eval().generate(batch)] == ["s0", "s1"]
    shown = model.explain(film(), "")["activation"]
    assert shown.values.min() >= 0 and shown.values.max() == pytest.approx(1, abs=1e-4)
    assert "the mask drawn" in shown.note and "times as much" in shown.note


def test_the_papers_models_are_ablations_by_their_names() -> None:
    folder = Path(__file__).parents[2] / "configs" / "overlay_sft" / "ablations"
    for vlm in VLMS.values():
        text = (folder / f"{vlm.abbreviation.lower().replace('.', '').replace('-', '_')}.yaml").read_text()
        head, _, rest = text.partition("\n")
        assert f"vlm: {vlm.hub}\n" in rest and f"phantom:{vlm.family}" in rest
        assert vlm.licence.split(" (")[0] in head and (", gated" in head) is vlm.gated, head


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("There is a small left pneumothorax. 1. Follow.", "There is a small left pneumothorax. 1. Follow."),
        ("<think>\nA film.\n</think>\n\nNo pneumothorax.", "No pneumothorax."),
        ("A film, so </think> No pneumothorax.", "No pneumothorax."),
        ("<think> never ends", ""),
        ("<unused94>thought\nwell<unused95>No pneumothorax.", "No pneumothorax."),
        ("## Findings:\n\n*   **Lungs:** a *left* one.\n---\n- Fine.", "Findings:\nLungs: a left one.\nFine."),
        ("```\nNo pneumothorax.\n```", "No pneumothorax."),
        ("Seen on ___, 2 * 3 cm, T2-weighted.", "Seen on ___, 2 * 3 cm, T2-weighted."),
    ],
)  # fmt: skip
def test_thoughts_and_markdown_are_taken_out(raw: str, text: str) -> None:
    assert plain_text(raw) == text and plain_text(text) == text
