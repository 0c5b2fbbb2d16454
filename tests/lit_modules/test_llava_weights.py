"""LLaVA's two published layouts, written here in their published key names, fill the model whole or not at all."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionModel, LlavaForConditionalGeneration

from lit_modules.nets.backbones import PhantomSize
from lit_modules.nets.clip_image import PhantomCLIP
from lit_modules.nets.llava import (
    HUB,
    ORIGINAL,
    PHANTOM,
    build_llava,
    build_llava_config,
    build_llava_tokenizer,
    how_to_get_llava,
    llava_at_hand,
)

TEXT = PhantomSize(hidden=16, layers=2, heads=2, mlp=24, positions=64)
EYES = PhantomCLIP(hidden=16, layers=2, heads=2, mlp=24, patch=8, image=16, dim=8)


@pytest.fixture(scope="module")
def written() -> LlavaForConditionalGeneration:
    return build_llava(build_llava_config(PHANTOM, TEXT, EYES, 70), PHANTOM, torch.float32, TEXT)


def renamed(model: Any, *rules: tuple[str, str]) -> dict[str, Tensor]:
    weights = {}
    for key, value in model.state_dict().items():
        for pattern, name in rules:
            key = re.sub(pattern, name, key)
        weights[key] = value.clone()
    return weights


def hub_names(model: Any) -> dict[str, Tensor]:
    """As in `llava-hf/llava-1.5-7b-hf`."""
    return renamed(
        model,
        (r"^lm_head", "language_model.lm_head"),
        (r"^model\.language_model", "language_model.model"),
        (r"^model\.vision_tower", "vision_tower.vision_model"),
        (r"^model\.multi_modal_projector", "multi_modal_projector"),
    )


def original_names(model: Any) -> dict[str, Tensor]:
    """As in `liuhaotian/llava-v1.5-7b`, with CLIP's weights as self-trained folders have them."""
    return renamed(
        model,
        (r"^model\.language_model", "model"),
        (r"^model\.vision_tower", "model.vision_tower.vision_tower.vision_model"),
        (r"^model\.multi_modal_projector\.linear_1", "model.mm_projector.0"),
        (r"^model\.multi_modal_projector\.linear_2", "model.mm_projector.2"),
    )


def hub_folder(folder: Path, model: Any, weights: dict[str, Tensor]) -> str:
    model.config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def original_folder(folder: Path, model: Any, weights: dict[str, Tensor], **changes: Any) -> str:
    """Two pickled shards and their index."""
    text, vision = model.config.text_config, folder / "tower"
    folder.mkdir()
    tower = CLIPVisionModel(model.config.vision_config)
    tower.load_state_dict(model.model.vision_tower.state_dict())
    tower.save_pretrained(vision)
    config = {
        "model_type": "llava",
        "architectures": ["LlavaLlamaForCausalLM"],
        **{key: getattr(text, key) for key in ("vocab_size", "hidden_size", "intermediate_size", "rms_norm_eps")},
        **{key: getattr(text, key) for key in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")},
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "mm_vision_tower": str(vision),
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "rope_scaling": None,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(weights)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for shard, keys in shards.items():
        torch.save({key: weights[key] for key in keys}, folder / shard)
    index = {"weight_map": {key: shard for shard, keys in shards.items() for key in keys}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return str(folder)


def load(folder: str, dtype: torch.dtype = torch.float32) -> LlavaForConditionalGeneration:
    return build_llava(build_llava_config(folder, TEXT, EYES, 0), folder, dtype, TEXT)


def same(left: Any, right: Any) -> bool:
    found, wanted = left.state_dict(), right.state_dict()
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_the_hubs_layout(written, tmp_path: Path) -> None:
    folder = hub_folder(tmp_path, written, hub_names(written))
    assert same(load(folder), written)
    low = load(folder, torch.bfloat16)
    assert low.dtype == torch.bfloat16 and same(low, build_bfloat16(written))


def build_bfloat16(model: Any) -> Any:
    config = build_llava_config(PHANTOM, TEXT, EYES, 70)
    low = build_llava(config, PHANTOM, torch.float32, TEXT)
    low.load_state_dict(model.state_dict())
    return low.to(torch.bfloat16)


def test_what_the_stock_model_saves_is_read_back(written, tmp_path: Path) -> None:
    written.save_pretrained(tmp_path)
    assert same(load(str(tmp_path)), written)


def test_the_authors_layout_with_clips_weights(written, tmp_path: Path) -> None:
    folder = original_folder(tmp_path / "llava", written, original_names(written))
    read = load(folder)
    assert same(read, written) and read.config.image_token_id == written.config.image_token_id
    assert not any(weight.requires_grad for weight in read.model.vision_tower.parameters())


def test_the_authors_layout_with_clip_elsewhere(written, tmp_path: Path) -> None:
    weights = {key: value for key, value in original_names(written).items() if ".vision_tower." not in key}
    weights |= {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4) for layer in (0, 1)}
    assert same(load(original_folder(tmp_path / "llava", written, weights)), written)


LAYOUTS = pytest.mark.parametrize(
    ("make", "names"), [(hub_folder, hub_names), (original_folder, original_names)], ids=["hub", "original"]
)
LM_HEAD = {hub_names: "language_model.lm_head.weight", original_names: "lm_head.weight"}


@LAYOUTS
def test_a_missing_weight_is_refused(written, tmp_path: Path, make: Callable, names: Callable) -> None:
    weights = names(written)
    del weights[LM_HEAD[names]]
    folder = make(tmp_path / "llava", written, weights)
    with pytest.raises(ValueError, match=r"does not fill LLaVA: lm_head.weight is missing$") as error:
        load(folder)
    assert "\n" not in str(error.value)


@LAYOUTS
def test_a_weight_nobody_asks_for_is_refused(written, tmp_path: Path, make: Callable, names: Callable) -> None:
    folder = make(tmp_path / "llava", written, names(written) | {"model.norm2.weight": torch.ones(16)})
    with pytest.raises(ValueError, match=r"does not fill LLaVA: model\.(language_model\.)?norm2.weight is unknown$"):
        load(folder)


@LAYOUTS
def test_another_shape_is_refused(written, tmp_path: Path, make: Callable, names: Callable) -> None:
    folder = make(tmp_path / "llava", written, names(written) | {LM_HEAD[names]: torch.ones(3, 16)})
    with pytest.raises(ValueError, match=r"lm_head.weight is \(3, 16\), not \(70, 16\)"):
        load(folder)


def test_a_vision_tower_with_a_hole_is_refused(written, tmp_path: Path) -> None:
    weights = {key: value for key, value in original_names(written).items() if ".vision_tower." not in key}
    folder = original_folder(tmp_path / "llava", written, weights)
    tower = CLIPVisionModel.from_pretrained(tmp_path / "llava" / "tower")
    holed = {key: value for key, value in tower.state_dict().items() if "class_embedding" not in key}
    tower.save_pretrained(tmp_path / "llava" / "tower", state_dict=holed)
    with pytest.raises(ValueError, match=r"tower does not fill LLaVA: \S*class_embedding is missing"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type is linear; LLaVA-1.5 has mlp2x_gelu"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is True"),
        ({"vision_feature_layer": -1}, "vision_feature_layer is -1; LLaVA-1.5 has -2"),
        ({"model_type": "mpt"}, "is a mpt, no LLaVA-1.5"),
    ],
)
def test_other_models_are_refused(written, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = original_folder(tmp_path / "llava", written, {}, **changes)
    with pytest.raises(ValueError, match=message):
        build_llava_config(folder, TEXT, EYES, 0)


def test_what_is_not_at_hand_says_what_to_do(written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="run `hf download someone/llava` while online") as error:
        build_llava_config("someone/llava", TEXT, EYES, 0)
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"give a folder with config\.json"):
        build_llava_config(str(tmp_path / "none"), TEXT, EYES, 0)
    with pytest.raises(FileNotFoundError, match=f"run `hf download {ORIGINAL}`, `hf download {HUB} tokenizer.json"):
        build_llava(written.config, ORIGINAL, torch.float32, TEXT)
    assert "hf download openai/clip-vit-large-patch14-336" in how_to_get_llava(ORIGINAL)
    folder = original_folder(tmp_path / "llava", written, {})
    for file in (tmp_path / "llava").glob("pytorch_model*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights: none of model.safetensors.index.json"):
        load(folder)


def test_at_hand(tmp_path: Path, written) -> None:
    assert llava_at_hand(PHANTOM) and not llava_at_hand(str(tmp_path))
    folder = hub_folder(tmp_path, written, hub_names(written))
    assert not llava_at_hand(folder), "no tokenizer"
    build_llava_tokenizer(PHANTOM).save_pretrained(folder)
    assert llava_at_hand(folder)
    (tmp_path / "model.safetensors").unlink()
    assert llava_at_hand(folder, weights=False) and not llava_at_hand(folder)
    assert build_llava_tokenizer(folder).get_vocab() == build_llava_tokenizer(PHANTOM).get_vocab()
