"""Language models and tokenizers through their two doors, tuning, and adapters folded in to generate."""

from pathlib import Path

import pytest
import torch
from reg2rg_tiny import write_llama
from transformers import GPT2LMHeadModel, LlamaForCausalLM

from datamodules.phantom.wording import vocabulary
from lit_modules.nets.backbones import (
    GPT_2,
    LLAMA_2_7B,
    PhantomSize,
    at_hand,
    build_config,
    build_language_model,
    build_tokenizer,
    how_to_get,
)
from lit_modules.nets.lora import LoRA, merged, tune, without_adapters

SMALL = PhantomSize(hidden=16, layers=2, heads=2, mlp=24, positions=64)


def phantom(llm: str, size: PhantomSize = SMALL):
    return build_language_model(build_config(llm, size, 40), llm, torch.float32, size)


@pytest.mark.parametrize(("llm", "kind"), [("phantom:llama", LlamaForCausalLM), ("phantom:gpt2", GPT2LMHeadModel)])
def test_phantoms_are_the_real_classes_with_fixed_weights(llm: str, kind: type) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = phantom(llm)
    assert torch.equal(torch.random.get_rng_state(), before), "building it draws nothing from the global generator"
    torch.manual_seed(2)
    second, other = phantom(llm), phantom(llm, PhantomSize(16, 2, 2, 24, 64, seed=5))
    assert isinstance(first, kind)
    assert first.config._attn_implementation == "sdpa"
    weights, again, different = (model.get_input_embeddings().weight for model in (first, second, other))
    assert torch.equal(weights, again)
    assert not torch.equal(weights, different)


def test_an_unknown_phantom_is_refused() -> None:
    with pytest.raises(ValueError, match="phantom:llama and phantom:gpt2"):
        build_config("phantom:bert", SMALL, 40)


def test_known_configurations_need_no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with torch.device("meta"):
        for llm, parameters in (("meta-llama/Llama-2-7b-chat-hf", 6_738_415_616), ("gpt2", 124_439_808)):
            model = build_language_model(build_config(llm, SMALL, 0), llm, torch.bfloat16, SMALL)
            assert sum(p.numel() for p in model.parameters()) == parameters
    assert LLAMA_2_7B["vocab_size"] == 32000 and GPT_2["n_positions"] == 1024


def test_what_is_not_at_hand_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    llm = "meta-llama/Llama-2-7b-chat-hf"
    assert not at_hand(str(tmp_path)) and at_hand("phantom:llama")
    with pytest.raises(FileNotFoundError, match=r"accept the Llama 2 .*hf download") as error:
        build_tokenizer(llm)
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="tokenizer_config.json"):
        build_tokenizer(str(tmp_path))
    assert "local folder" in how_to_get("someone/llm") and "accept" not in how_to_get("someone/llm")


def test_a_local_folder_is_read_as_it_stands(tmp_path: Path) -> None:
    config = {"vocab_size": 320, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    folder = str(write_llama(tmp_path / "llama", config | {"num_attention_heads": 2}))
    (tmp_path / "llama" / "added_tokens.json").write_text('{"<pad>": 320}')
    tokenizer = build_tokenizer(folder)
    assert len(tokenizer) == 320, "added_tokens.json shifts nothing"
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    settings = build_config(folder, SMALL, 0)
    with pytest.raises(FileNotFoundError, match="cannot be read"):
        build_language_model(settings, folder, torch.float32, SMALL)
    written = build_language_model(settings, folder, torch.float32, SMALL, weights=False)
    written.save_pretrained(folder)
    assert at_hand(folder)
    (tmp_path / "llama" / "model.safetensors").unlink()
    assert at_hand(folder, weights=False) and not at_hand(folder)
    written.save_pretrained(folder)
    read = build_language_model(settings, folder, torch.bfloat16, SMALL)
    assert read.dtype == torch.bfloat16
    torch.testing.assert_close(read.lm_head.weight.float(), written.lm_head.weight, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "text",
    [
        "A 12 mm nodule in the right upper lobe.",
        " leading and trailing ",
        "naïve Ärzte, 3 × 4 µm² — 肺炎 🫁\n\ttabs",
        "<0x41> </s> <image0> literally",
        "double  spaces   kept",
        "",
    ],
)
def test_phantom_tokenizer_reads_any_text_back(text: str) -> None:
    tokenizer = build_tokenizer("phantom:llama")
    ids = tokenizer(text)["input_ids"]
    if "</s>" not in text:
        assert tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text
    assert tokenizer.unk_token_id not in ids


def test_phantom_tokenizer_knows_the_phantoms_words() -> None:
    tokenizer = build_tokenizer("phantom:gpt2")
    words = [word for word in vocabulary() if word.isalpha()]
    assert len(words) > 50
    assert all(len(tokenizer.tokenize(word)) == 1 for word in words)
    again = build_tokenizer("phantom:llama")
    assert again.get_vocab() == tokenizer.get_vocab()
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


@pytest.mark.parametrize(("llm", "target"), [("phantom:llama", {"q_proj", "v_proj"}), ("phantom:gpt2", {"c_attn"})])
def test_tuning_trains_what_it_says(llm: str, target: set[str]) -> None:
    adapted = tune(phantom(llm), "lora", LoRA(r=2))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert {name.split(".")[-4] for name in trained} == target
    assert all("lora_" in name for name in trained) and len(trained) == 2 * 2 * len(target)
    assert all(p.requires_grad for p in tune(phantom(llm), "full", LoRA()).parameters())
    assert not any(p.requires_grad for p in tune(phantom(llm), "frozen", LoRA()).parameters())


@pytest.mark.parametrize("llm", ["phantom:llama", "phantom:gpt2"])
def test_merged_adapters_give_the_same_logits_and_leave_no_trace(llm: str) -> None:
    torch.manual_seed(0)
    model = tune(phantom(llm), "lora", LoRA(r=2, dropout=0.0)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    tokens = torch.randint(3, 40, (2, 7))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        expected, base = model(tokens).logits, None
        with model.disable_adapter():
            base = model(tokens).logits
        with merged(model):
            folded = without_adapters(model)(tokens).logits
    assert not torch.allclose(expected, base, atol=1e-3), "the adapters do something"
    torch.testing.assert_close(folded, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="stop"), merged(model):
        raise RuntimeError("stop")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, expected)
