"""The authors' files, at small size, and files that are not theirs."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from reg2rg_tiny import golden_model, read_golden
from torch import Tensor

from lit_modules.reg2rg import Reg2RG
from lit_modules.reg2rg_weights import from_authors, load_into, load_weights, read

BASE = "lang_model.base_model.model.model.embed_tokens.weight"


@pytest.fixture(scope="module")
def tiny(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Reg2RG, dict[str, Tensor]]:
    model, _, _ = golden_model(golden, tmp_path_factory.mktemp("tiny"))
    return model, read_golden(golden / "reg2rg_e2e_tiny.safetensors")[1]


def scramble(model: Reg2RG) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)


def assert_holds(model: Reg2RG, weights: dict[str, Tensor], **tolerance: Any) -> None:
    state = model.state_dict()
    asked = {key for key in weights if not key.endswith("inv_freq")}
    assert asked == set(state)
    for key in asked:
        torch.testing.assert_close(state[key], weights[key], **tolerance)


def test_a_whole_model_leaves_no_unmatched_key(tiny, tmp_path: Path) -> None:
    model, weights = tiny
    scramble(model)
    path = tmp_path / "pytorch_model.bin"
    torch.save(weights | {"embedding_layer.weight": weights[BASE]}, path)
    load_weights(model, None, None, str(path))
    assert_holds(model, weights, rtol=0, atol=0)


def test_bfloat16_and_names_from_before_peft_0_7(tiny, tmp_path: Path) -> None:
    model, weights = tiny
    scramble(model)
    old = {key.replace(".base_layer", ""): value.bfloat16() for key, value in weights.items()}
    assert old.keys() != weights.keys()
    torch.save(old, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    load_weights(model, None, None, str(tmp_path / "old.bin"))
    assert_holds(model, weights, rtol=1e-2, atol=1e-2)


def test_radfm_files(tiny, tmp_path: Path) -> None:
    model, weights = tiny
    parts = {"vision_encoder": {}, "perceiver": {}}
    for name, part in parts.items():
        prefix = f"embedding_layer.{name}."
        part |= {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    torch.save(parts["vision_encoder"], tmp_path / "RadFM_vit3d.pth")
    fc = {"weight": torch.zeros(5120, 24), "bias": torch.zeros(5120)}
    torch.save({"perceiver": parts["perceiver"], "fc": fc}, tmp_path / "RadFM_perceiver_fc.pth")
    scramble(model)
    load_weights(model, str(tmp_path / "RadFM_vit3d.pth"), str(tmp_path / "RadFM_perceiver_fc.pth"), None)
    for key, value in model.state_dict().items():
        theirs = key.startswith(("embedding_layer.vision_encoder.", "embedding_layer.perceiver."))
        assert torch.equal(value, weights[key] if theirs else torch.full_like(value, 7)), key
    torch.save({"fc": fc}, tmp_path / "half.pth")
    with pytest.raises(ValueError, match="no entry 'perceiver'"):
        load_weights(model, None, str(tmp_path / "half.pth"), None)


def test_names_of_the_published_checkpoint_all_fit() -> None:
    """710 entries under the authors' versions: ours, 32 rotary tables, and the embedding once more."""
    with torch.device("meta"):
        model = Reg2RG()
        model.configure_model()
    ours = model.state_dict()
    rotary = [f"lang_model.base_model.model.model.layers.{n}.self_attn.rotary_emb.inv_freq" for n in range(32)]
    theirs = dict(ours) | dict.fromkeys(rotary, torch.empty(64, device="meta"))
    assert len(theirs) + 1 == 710
    assert from_authors(theirs, set(ours)).keys() == ours.keys()
    shapes = {
        "lang_model.base_model.model.model.layers.31.self_attn.q_proj.base_layer.weight": (4096, 4096),
        "lang_model.base_model.model.model.layers.0.self_attn.v_proj.lora_A.default.weight": (8, 4096),
        "lang_model.base_model.model.model.layers.0.self_attn.k_proj.weight": (4096, 4096),
        "lang_model.base_model.model.lm_head.weight": (32000, 4096),
        "embedding_layer.image_token_weight": (2, 4096),
        "embedding_layer.vision_encoder.to_patch_embedding.1.weight": (12288,),
        "embedding_layer.vision_encoder.pos_embedding.dep_embed.weight": (128, 256),
        "embedding_layer.vision_encoder.transformer.layers.11.0.fn.to_out.0.weight": (768, 512),
        "embedding_layer.vision_encoder.transformer.layers.11.1.fn.net.3.weight": (768, 2048),
        "embedding_layer.mask_encoder.to_patch_embedding.2.weight": (255, 16384),
        "embedding_layer.mask_encoder.pos_embedding.dep_embed.weight": (4, 85),
        "embedding_layer.perceiver.layers.5.0.to_kv.weight": (1024, 768),
        "embedding_layer.perceiver.layers.5.1.3.weight": (768, 3072),
        "embedding_layer.fc.weight": (4096, 768),
        "embedding_layer.mask_fc.weight": (4096, 255),
    }
    assert {key: tuple(ours[key].shape) for key in shapes} == shapes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding_layer.fc.bias": None}, "embedding_layer.fc.bias is missing"),
        ({"embedding_layer.extra": torch.zeros(1)}, "embedding_layer.extra is unknown"),
        ({"embedding_layer.fc.bias": torch.zeros(3)}, r"embedding_layer.fc.bias is \(3,\), not \(32,\)"),
        ({"embedding_layer.fc.bias": "text"}, "embedding_layer.fc.bias is str"),
        ({"embedding_layer.weight": torch.zeros(320, 32)}, "embedding_layer.weight differs"),
    ],
)
def test_what_does_not_fit_is_named(tiny, change: dict[str, Any], message: str) -> None:
    model, weights = tiny
    changed = {key: value for key, value in (weights | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        load_into(model, from_authors(changed, set(model.state_dict())), "a file")


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was_run",)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_file_that_holds_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.bin"
    if how == "torch":
        torch.save({"a": Code()}, path)
    else:
        path.write_bytes(pickle.dumps({"a": Code()}))
    with pytest.raises(ValueError, match="refused") as error:
        read(str(path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "was_run").exists()


def test_files_that_are_absent_broken_or_something_else(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read(str(tmp_path / "none.bin"))
    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.bin")
    (tmp_path / "cut.bin").write_bytes((tmp_path / "whole.bin").read_bytes()[:900])
    with pytest.raises(ValueError, match="cannot be read"):
        read(str(tmp_path / "cut.bin"))
    torch.save([1, 2], tmp_path / "list.bin")
    with pytest.raises(ValueError, match="holds no weights by name, but a list"):
        read(str(tmp_path / "list.bin"))
