"""The search against the reference implementation's own texts and scores, and against a plain spelling of its rule."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lit_modules.nets.beam_search import BeamResult, beam_search

SETTINGS = {
    "k5_l15_t1": {"beams": 5, "max_new_tokens": 15, "temperature": 1.0},
    "k3_l8_t1": {"beams": 3, "max_new_tokens": 8, "temperature": 1.0},
    "k5_l15_t07": {"beams": 5, "max_new_tokens": 15, "temperature": 0.7},
}
RECORDED = [("rand", name) for name in SETTINGS] + [("trained", "k5_l15_t1")]
TINY = {"vocab_size": 64, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}


@pytest.fixture(scope="module")
def recorded(shared: Path) -> dict[str, Tensor]:
    arrays = np.load(shared / "golden" / "regionformer" / "beam_tiny.npz")
    return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def tiny_gpt(recorded: dict[str, Tensor], which: str) -> GPT2LMHeadModel:
    model = GPT2LMHeadModel(GPT2Config(**TINY, bos_token_id=0, eos_token_id=0))
    prefix = f"{which}.w.gpt."
    weights = {key.removeprefix(prefix): value for key, value in recorded.items() if key.startswith(prefix)}
    model.load_state_dict(weights, strict=True)
    return model.eval()


def join(results: list[BeamResult]) -> BeamResult:
    return BeamResult(
        *(torch.cat(parts) for parts in zip(*((r.ids, r.scores, r.lengths) for r in results), strict=True))
    )


@pytest.mark.parametrize(("which", "name"), RECORDED)
def test_texts_and_scores_equal_the_reference(recorded, which: str, name: str) -> None:
    model, prefix = tiny_gpt(recorded, which), recorded[f"{which}.prefix_embeds"]
    together = beam_search(model, prefix, **SETTINGS[name])
    for found in (together, join([beam_search(model, one[None], **SETTINGS[name]) for one in prefix])):
        assert torch.equal(found.ids, recorded[f"{which}.{name}.ids"])
        assert torch.equal(found.lengths, recorded[f"{which}.{name}.lengths"])
        torch.testing.assert_close(found.scores.double(), recorded[f"{which}.{name}.scores"], rtol=0, atol=1e-5)


def test_the_recorded_texts_end_at_different_places(recorded) -> None:
    """Else finished beams would not have been tried."""
    lengths = recorded["trained.k5_l15_t1.lengths"]
    assert len(lengths.unique()) > 3 and lengths.min() < 15


def plain_search(model, prefix: Tensor, beams: int, max_new_tokens: int, stop: int) -> list[tuple[float, list[int]]]:
    """The rule on lists, one study, every beam read anew from its beginning: `(mean log-probability, text)`."""
    held: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(max_new_tokens):
        candidates = []
        for total, text in held:
            if text and text[-1] == stop:
                candidates.append((total / len(text), total, text))
                continue
            words = model.get_input_embeddings()(torch.tensor(text, dtype=torch.long))
            logits = model(inputs_embeds=torch.cat((prefix, words))[None]).logits[0, -1]
            for token, log_p in enumerate(logits.log_softmax(-1).tolist()):
                candidates.append(((total + log_p) / (len(text) + 1), total + log_p, [*text, token]))
        held = [(total, text) for _, total, text in sorted(candidates, key=lambda c: -c[0])[:beams]]
    return [(total / len(text), text) for total, text in held]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_any_language_model_any_stop(kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    if kind == "gpt2":
        config = GPT2Config(**TINY | {"vocab_size": 12}, initializer_range=0.3, bos_token_id=0, eos_token_id=0)
        model = GPT2LMHeadModel(config)
    else:
        sizes = {"vocab_size": 12, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, initializer_range=0.3))
    model.double().eval()
    prefix = torch.randn(4, 3, 32, dtype=torch.float64)
    found = beam_search(model, prefix, beams=4, max_new_tokens=7, stop=5)
    assert found.ids.shape == (4, 4, 7)
    for study in range(4):
        for beam, (score, text) in enumerate(plain_search(model, prefix[study], 4, 7, 5)):
            length = int(found.lengths[study, beam])
            assert found.ids[study, beam].tolist() == text + [-1] * (7 - len(text))
            assert length == len(text)
            assert float(found.scores[study, beam]) == pytest.approx(score, abs=1e-5)


def test_finished_beams_and_old_positions_are_not_computed(recorded) -> None:
    model, read, headed = tiny_gpt(recorded, "trained"), [], []
    body, head = model.transformer, model.lm_head
    body.register_forward_pre_hook(lambda _, a, k: read.append(k["inputs_embeds"].shape[:2]), with_kwargs=True)
    head.register_forward_pre_hook(lambda _, a: headed.append(a[0].shape[:2]))
    found = beam_search(model, recorded["trained.prefix_embeds"])
    assert read[0] == (8, 5), "a prefix is read once per study"
    assert all(positions == 1 for _, positions in [*read[1:], *headed])
    assert read[-1][0] < read[1][0] <= 40, "fewer beams run at the end"
    assert len(read) == int(found.lengths.max())


@pytest.mark.parametrize("wrong", [{"beams": 0}, {"max_new_tokens": 0}, {"temperature": 0.0}])
def test_numbers_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        beam_search(None, torch.zeros(1, 1, 2), **wrong)
