"""QLoRA on a CPU, on tiny models of the real classes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.study import SettingsFault
from lit_modules.nets import qlora
from lit_modules.nets.qlora import Adapters, adapt, quantization_config
from lit_modules.nets.vlm import build_vlm, family_of

if not qlora.bitsandbytes_there():
    pytest.skip("needs bitsandbytes: pip install bitsandbytes", allow_module_level=True)
FAMILIES = ("gemma3", "qwen2_5_vl", "mllama")


def quantised(family: str) -> Any:
    model = build_vlm(f"phantom:{family}", torch.bfloat16, quantization_config("nf4"), {"": "cpu"})
    qlora.repair_on_cpu(model)
    return model


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_layers_lie_in_4_bits_doubly_quantised_and_the_head_does_not(family: str) -> None:
    from bitsandbytes.nn import Linear4bit

    model = quantised(family)
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    other = {name for name, layer in linear.items() if not isinstance(layer, Linear4bit)}
    assert other == {"lm_head"} and any("vision" in name or "visual" in name for name in linear)
    with torch.device("meta"):
        dry = build_vlm(f"phantom:{family}", torch.bfloat16)
    qlora.as_if_quantised(dry)  # a dry run counts the same layers as quantised
    assert {f"{name}.weight" for name in set(linear) - other} == {
        name for name, weight in dry.named_parameters() if hasattr(weight, "bits")
    }
    state = next(layer.weight.quant_state for layer in linear.values() if isinstance(layer, Linear4bit))
    assert (state.quant_type, state.nested, state.dtype) == ("nf4", True, torch.bfloat16)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_float32_and_change_nothing_at_first(family: str) -> None:
    """In all linear layers but the head; in those of the language model alone where that is asked for."""
    ids = torch.arange(5, 25)[None]
    model = quantised(family).eval()
    with torch.no_grad():
        before = model(input_ids=ids).logits
        model = adapt(model, Adapters(), family_of(f"phantom:{family}").language)
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=0, atol=0)
    everywhere = trained(model)
    assert all(".lora_" in name and "lm_head" not in name for name in everywhere)
    assert {weight.dtype for weight in everywhere.values()} == {torch.float32}
    language = trained(adapt(quantised(family), Adapters(parts="language"), family_of(f"phantom:{family}").language))
    assert set(language) == {name for name in everywhere if ".language_model." in name} != set(everywhere)


def test_peft_itself_reads_the_adapters_and_its_file_names_their_size(tmp_path: Path) -> None:
    from peft import PeftModel

    model = adapt(quantised("gemma3"), Adapters(r=4, alpha=8), ".*")
    for weight in trained(model).values():
        torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    found = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (found["r"], found["lora_alpha"]) == (4, 8)
    again = PeftModel.from_pretrained(quantised("gemma3"), str(tmp_path), is_trainable=True)
    torch.testing.assert_close(trained(again), trained(model), rtol=0, atol=0)


def test_without_bitsandbytes_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qlora, "bitsandbytes_there", lambda: False)
    assert quantization_config("none") is None
    with pytest.raises(SettingsFault, match=r"model\.quantization=none"):
        quantization_config("nf4")
