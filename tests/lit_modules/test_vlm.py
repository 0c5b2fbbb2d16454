"""One door for every model: published sizes, tiny editions, folders; what does not fill a model is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from datamodules.study import SettingsFault
from lit_modules.nets.vlm import build_config, build_vlm, family_of, how_to_get_vlm, vlm_at_hand
from lit_modules.nets.vlm_encoding import VlmEncoder
from lit_modules.nets.vlm_families import FAMILIES, VLMS
from tests.lit_modules.vlm_tiny import REPORTS, TINY, encoder, model, samples

FAMILY = pytest.mark.parametrize("family", FAMILIES)


@pytest.mark.parametrize("vlm", VLMS)
def test_published_sizes_without_a_download(vlm: str) -> None:
    with torch.device("meta"):
        found = build_vlm(vlm, torch.bfloat16)
    parameters = sum(weight.numel() for weight in found.parameters()) / 1e9
    assert found.config.model_type == family_of(vlm).model_type == VLMS[vlm].family
    # Phi's last CLIP layer, which nothing reads, is left out.
    assert parameters == pytest.approx(VLMS[vlm].parameters, rel=0.004 if "Phi" in vlm else 0.002)


@FAMILY
def test_a_tiny_edition_is_always_the_same_and_draws_nothing(family: str) -> None:
    before = torch.get_rng_state()
    first = model(family).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    second = model(family).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    layers = [
        one for name, one in model(family).named_modules() if isinstance(one, torch.nn.Linear) and "head" not in name
    ]
    assert all(layer.out_features % 32 == 0 and layer.in_features % 64 == 0 for layer in layers)  # for 4 bits on a CPU


@FAMILY
def test_a_folder_gives_the_same_logits(family: str, tmp_path: Path) -> None:
    source, vlm = encoder(family), model(family)
    vlm.save_pretrained(tmp_path)
    source.processor.save(tmp_path)
    assert vlm_at_hand(str(tmp_path)) and family_of(str(tmp_path)) is FAMILIES[family]
    read = VlmEncoder(str(tmp_path))
    batch = source.collate(samples(source), "right")
    again = read.collate(samples(read), "right")
    assert batch.keys() == again.keys() and all(torch.equal(batch[key], again[key]) for key in batch)
    assert read.ends == source.ends and read.decode(batch["labels"][0][batch["labels"][0] >= 0]) == REPORTS[0]
    with torch.no_grad():
        logits = build_vlm(str(tmp_path), torch.float32).eval()(**again).logits
        assert torch.equal(logits, vlm(**batch).logits)

    weights = load_file(tmp_path / "model.safetensors")
    gone = max(key for key in weights if key.endswith("proj.weight"))
    save_file(
        {key: value for key, value in weights.items() if key != gone}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(SettingsFault) as fault:
        build_vlm(str(tmp_path), torch.float32)
    assert "is missing" in str(fault.value) and "\n" not in str(fault.value)


def test_weights_of_another_shape_or_name_are_refused(tmp_path: Path) -> None:
    model("gemma3").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    key = next(key for key in weights if key.endswith("q_proj.weight"))
    for change, fault in (
        ({key: weights[key][:1].clone()}, r"\(1, 64\), not \(64, 64\)"),
        ({"what": weights[key].clone()}, "unknown"),
    ):
        save_file(weights | change, file, {"format": "pt"})
        with pytest.raises(SettingsFault, match=fault):
            build_vlm(str(tmp_path), torch.float32)


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsFault, match="phantom:llava is a llava; there are gemma3"):
        family_of("phantom:llava")
    with pytest.raises(FileNotFoundError, match=r"give a folder with config\.json"):
        build_config(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(SettingsFault, match="is a gpt2"):
        build_config(str(tmp_path))
    assert not vlm_at_hand(str(tmp_path))


def test_licence_and_gate_are_told_before_a_download() -> None:
    assert "accept the Health AI Developer Foundations" in how_to_get_vlm("google/medgemma-4b-it")
    assert how_to_get_vlm("Qwen/Qwen2-VL-7B-Instruct").startswith("run `hf download Qwen/Qwen2-VL-7B-Instruct`")


@pytest.mark.parametrize("family", ["gemma3", "qwen2_vl", "mllama", "phi3_v"])
def test_a_tiny_edition_can_be_quantised(family: str) -> None:
    pytest.importorskip("bitsandbytes")
    from lit_modules.nets.qlora import quantization_config

    found = build_vlm(f"phantom:{family}", torch.float32, quantization_config("nf4"), {"": "cpu"}, TINY)
    kinds = [type(layer).__name__ for name, layer in found.named_modules() if name.endswith("q_proj")]
    kinds += [type(layer).__name__ for name, layer in found.named_modules() if name.endswith(("qkv", "qkv_proj"))]
    assert kinds and set(kinds) == {"Linear4bit"}
    source = encoder(family)
    batch = source.collate(samples(source), "right")
    with torch.no_grad():
        whole, quantised = (float(one(**batch).loss) for one in (model(family), found))
    assert quantised != whole and quantised == pytest.approx(whole, rel=0.05)
