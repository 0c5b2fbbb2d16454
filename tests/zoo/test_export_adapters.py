"""Exports of real methods: peft itself loads the adapters, and the tokenizer is the method's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_modules.nets import qlora
from lit_modules.nets.phantom_vlm import PhantomVLM
from lit_modules.nets.vlm import build_vlm
from lit_modules.overlay_sft import OverlaySFT
from lit_modules.report_generator import ReportGenerator
from tests.lit_modules.overlay_tiny import QLORA, SMALL, small
from zoo.config import Config, compose
from zoo.export import export
from zoo.run_directory import RunDirectory
from zoo.trainer import write_tested

ROOT = Path(__file__).parents[2]
FIGURES = {
    "phantom": True,
    "split": "test",
    "version": 1,
    "n": 1,
    "n_empty_predictions": 0,
    "metrics": {},
    "skipped": {},
}


def as_if_trained(model: ReportGenerator) -> None:
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.05)


def run_of(config: Config, model: ReportGenerator) -> RunDirectory:
    """A finished run's folder, without the training."""
    run = RunDirectory.create(config)
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    run.last.parent.mkdir()
    torch.save(checkpoint, run.last)
    write_tested(run, run.last, config)
    run.metrics.write_text(json.dumps(FIGURES | {"protocol": config.values["metrics"]["protocol"]}))
    run.provenance.write_text(json.dumps({"status": "done", "phantom": True}))
    return run


@pytest.fixture(scope="module")
def reg2rg(tmp_path_factory) -> tuple[ReportGenerator, Path]:
    """Reg2RG with adapters that do something, and its export."""
    place = tmp_path_factory.mktemp("reg2rg")
    config = compose("reg2rg", "phantom", (), [f"run.folder={place}", "model.decoding.max_new_tokens=30"])
    torch.manual_seed(0)
    model = config.build("model")
    model.configure_model()
    as_if_trained(model)
    return model.eval(), export(run_of(config, model).path, place / "export")


@torch.no_grad()
def test_peft_itself_puts_them_into_the_language_model_that_anybody_has(reg2rg) -> None:
    model, folder = reg2rg
    settings = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "checkpoints/phantom-llama" and settings["r"] == 16
    assert {path.name for path in (folder / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    ids = torch.arange(5, 45)[None]
    base = AutoModelForCausalLM.from_pretrained(ROOT / "checkpoints" / "phantom-llama").eval()
    before = base(input_ids=ids).logits
    theirs = PeftModel.from_pretrained(base, str(folder / "adapter")).eval()(input_ids=ids).logits
    torch.testing.assert_close(theirs, model.lang_model(input_ids=ids).logits, rtol=0, atol=0)
    assert not torch.allclose(theirs, before, atol=0.1)


def test_the_tokenizer_knows_the_methods_own_tokens(reg2rg) -> None:
    model, folder = reg2rg
    text = "The region <region0> is lung. There is no effusion." + model.prompt.tokens[0]
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == model.tokenizer(text).input_ids
    assert len(AutoTokenizer.from_pretrained(folder)) == len(model.tokenizer)


@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl"])
@pytest.mark.parametrize("bits", [32, pytest.param(4, marks=pytest.mark.skipif(
    not qlora.bitsandbytes_there(), reason="needs: pip install bitsandbytes"))])  # fmt: skip
def test_adapters_of_a_vision_language_model_need_no_base_to_be_exported(
    family: str, bits: int, tmp_path: Path
) -> None:
    """They are written by a model without memory, also where they were trained on 4-bit weights."""
    settings = {"vlm": f"phantom:{family}", **(QLORA if bits == 4 else {"tuning": "lora"})}
    trained = small(**settings)
    as_if_trained(trained)
    weights = {name: weight for name, weight in trained.state_dict().items() if ".lora_" in name}
    empty = OverlaySFT(**SMALL | settings)
    with torch.device("meta"):
        empty.configure_model()
    empty.load_state_dict(weights, strict=False, assign=True)
    empty.export(tmp_path)
    assert (tmp_path / "preprocessor_config.json").is_file() and AutoTokenizer.from_pretrained(tmp_path).vocab_size
    quantised = qlora.quantization_config("nf4" if bits == 4 else "none")
    base = build_vlm(
        f"phantom:{family}",
        getattr(torch, trained.settings.dtype),
        quantised,
        {"": "cpu"},
        phantom=PhantomVLM(image=56),
    )  # noqa: E501
    qlora.repair_on_cpu(base)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        before = base.eval()(input_ids=ids).logits
        theirs = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()(input_ids=ids).logits
        torch.testing.assert_close(theirs, trained.vlm(input_ids=ids).logits, rtol=0, atol=0)
    assert not torch.equal(theirs, before)


def test_without_adapters_there_is_no_adapter_folder(tmp_path: Path) -> None:
    small().export(tmp_path)
    assert not (tmp_path / "adapter").exists() and (tmp_path / "tokenizer.json").is_file()


@pytest.mark.parametrize(("tuning", "said"), [("lora", "`vlm.*`: `phantom:qwen2_vl`"), ("full", None)])
def test_the_card_names_what_brings_the_rest_where_there_is_one(tuning: str, said: str | None, tmp_path: Path) -> None:
    config = compose("overlay_sft", "phantom", (), [f"run.folder={tmp_path}", f"model.tuning={tuning}"])
    model = config.build("model")
    model.configure_model()
    card = (export(run_of(config, model).path, tmp_path / "export") / "README.md").read_text()
    assert said in card if said else "Frozen weights" not in card
