"""Reg2RG against the reference implementation's own numbers, and the ways in which it is allowed to differ."""

from pathlib import Path
from typing import Any

import pytest
import torch
from reg2rg_tiny import golden_model
from torch import Tensor

from lit_modules.nets.prompt import splice
from lit_modules.reg2rg import Reg2RG


@pytest.fixture(scope="module")
def reference(
    golden: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Reg2RG, dict[str, Any], dict[str, Tensor]]:
    return golden_model(golden, tmp_path_factory.mktemp("reference"))


def golden_rows(model: Reg2RG, config: dict[str, Any], expected: dict[str, Tensor]) -> Tensor:
    """The visual rows of the golden's two studies, the second of which lacks the lung."""
    volumes, masks, volume_rows, mask_rows = [], [], [], []
    for study, areas in enumerate(config["region2area"]):
        volumes.append(expected["vision_x.image"][study])
        volume_rows.append((study, 4))
        for slot, area in areas.items():
            first = 4 + 32 + 33 * int(slot)
            volumes.append(expected[f"vision_x.{area}"][study])
            volume_rows.append((study, first))
            masks.append(expected[f"mask_x.{area}"][study][None])
            mask_rows.append((study, first + 32))
    shape = (2, 4 + 32 + 33 * 4)
    return model.embedding_layer(
        torch.cat(volumes), torch.tensor(volume_rows), torch.cat(masks), torch.tensor(mask_rows), shape
    )


def test_splice_loss_and_gradients_equal_the_reference(reference) -> None:
    model, config, expected = reference
    model.zero_grad()
    rows = golden_rows(model, config, expected)
    words = model.lang_model.get_input_embeddings()
    embedded = splice(expected["lang_x"], words, rows, config["V"])
    torch.testing.assert_close(embedded, expected["input_embedding"], rtol=1e-4, atol=1e-5)
    batch = {"cut": [], "tokens": expected["lang_x"], "labels": expected["labels"]}
    loss = model._loss(batch, rows)
    torch.testing.assert_close(loss, expected["loss"], rtol=1e-6, atol=1e-6)
    loss.backward()
    gradients = {key.removeprefix("grad."): value for key, value in expected.items() if key.startswith("grad.")}
    assert len(gradients) == 9
    for name, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-7, msg=name)


def test_logits_equal_the_reference(reference) -> None:
    model, config, expected = reference
    with torch.no_grad():
        rows = golden_rows(model, config, expected)
        inputs = splice(expected["lang_x"], model.lang_model.get_input_embeddings(), rows, config["V"])
        logits = model.lang_model(inputs_embeds=inputs, attention_mask=expected["attention_mask"]).logits
    last = expected["attention_mask"].sum(1) - 1
    for study in range(2):
        picked = torch.stack([logits[study, last[study] - j] for j in range(8)])
        torch.testing.assert_close(picked, expected["logits"][study], rtol=1e-4, atol=1e-5)


def test_greedy_ids_equal_the_reference_in_one_padded_batch(reference) -> None:
    model, config, expected = reference
    with torch.no_grad():
        rows = golden_rows(model, config, expected)
        starts = [int((labels != -100).nonzero()[0]) for labels in expected["labels"]]
        prompts = [ids[:start] for ids, start in zip(expected["lang_x"], starts, strict=True)]
        assert len(prompts[0]) != len(prompts[1]), "so that one of them is padded"
        pad = torch.nn.utils.rnn.pad_sequence
        batch = {
            "prompt": pad(prompts, True, 0, padding_side="left"),
            "prompt_mask": pad([torch.ones_like(p) for p in prompts], True, 0, padding_side="left"),
        }
        written = model._write(batch, rows)
    for study in range(2):
        assert [1, *written[study].tolist()] == expected[f"generated.{study}"].tolist()
