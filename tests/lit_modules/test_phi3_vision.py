"""Phi-3-vision as the original computes it, right in batches, in every decoding, and under adapters."""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import processors
from torch import Tensor
from transformers import AutoConfig, Phi3ForCausalLM, PreTrainedTokenizerFast

from datamodules.study import SettingsFault
from lit_modules.nets.backbones import check_filled, word_tokenizer
from lit_modules.nets.phantom_vlm import PhantomVLM
from lit_modules.nets.phi3_vision import (
    Phi3VisionConfig,
    Phi3VisionForConditionalGeneration,
    Projector,
    phantom_phi3_config,
)
from lit_modules.nets.phi3_vision_image import Phi3VisionImageProcessor, crops_of, hd_image, image_tokens
from lit_modules.nets.phi3_vision_processor import Phi3VisionProcessor

GOLDEN = Path(os.environ.get("ZOO_SHARED", "../shared")) / "golden/overlay"
SIZE = PhantomVLM(hidden=64, layers=2, heads=4, mlp=64, vision_hidden=64, vision_layers=2, patch=4, image=32)
PROMPT = "<|user|>\n<|image_1|>\nhi there<|end|>\n<|assistant|>\n"
GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}


def tokenizer() -> PreTrainedTokenizerFast:
    """A word tokenizer that puts `<s>` before a text, as the published one does."""
    words = word_tokenizer(["▁hi", "▁there", "▁left", "▁right"])
    words.add_special_tokens(["<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>", "<|image|>"])
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def film(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (rows, columns, 3), np.uint8)


def loud(model: Any) -> Any:
    """Weights are large, so that texts depend on what was read."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(6)
    return model


def phantom() -> tuple[Phi3VisionForConditionalGeneration, Phi3VisionProcessor]:
    torch.manual_seed(0)
    words = tokenizer()
    model = Phi3VisionForConditionalGeneration(phantom_phi3_config(SIZE, words))
    images = Phi3VisionImageProcessor(num_crops=4, crop=SIZE.image // 2, patch=SIZE.patch)
    return model.eval(), Phi3VisionProcessor(images, words)


def read_model(folder: Path, **loading: Any) -> Phi3VisionForConditionalGeneration:
    """As `build_vlm` reads a folder, with a configuration that the hub's file has no words for."""
    load: Any = Phi3VisionForConditionalGeneration.from_pretrained
    model, found = load(folder, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True, **loading)
    check_filled(str(folder), found)
    return model


@pytest.fixture(scope="module")
def small() -> tuple[Phi3VisionForConditionalGeneration, Phi3VisionProcessor]:
    model, processor = phantom()
    return loud(model), processor


# The original.


@pytest.fixture(scope="module")
def golden() -> tuple[dict[str, Any], Any]:
    if not (GOLDEN / "phi3v_tiny.npz").is_file():
        pytest.skip(f"no {GOLDEN}/phi3v_tiny.npz; set ZOO_SHARED")
    return json.loads((GOLDEN / "phi3v_tiny.json").read_text()), np.load(GOLDEN / "phi3v_tiny.npz")


@pytest.fixture(scope="module")
def hub_folder(golden: tuple[dict[str, Any], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden's weights and configuration as the hub has them."""
    facts, _ = golden
    folder = tmp_path_factory.mktemp("hub")
    weights = {}
    for key, shape in facts["hub_keys"].items():
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
        weights[key] = 1 + 0.1 * drawn if key in facts["norm_keys"] else 0.05 * drawn
    weights["model.vision_embed_tokens.wte.weight"] = torch.zeros(2, 2)
    save_file(weights, folder / "model.safetensors")
    text = dict(facts["config"]["text"])
    scaling = {"type": "su"} | {key: text.pop(key) for key in ("short_factor", "long_factor")}
    layer = {"hd_transform_order": "sub_glb", "projection_cls": "mlp", "use_hd_transform": True}
    remote = {
        "AutoConfig": "configuration_phi3_v.Phi3VConfig",
        "AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM",
    }
    settings = {"model_type": "phi3_v", "auto_map": remote, "embd_layer": layer, "rope_scaling": scaling, **text}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def hub_config(folder: Path, facts: dict[str, Any]) -> Phi3VisionConfig:
    """As the folder says, with the golden's small CLIP, which the hub's file has no words for."""
    config: Any = AutoConfig.from_pretrained(folder)
    assert isinstance(config, Phi3VisionConfig)
    for key, value in facts["config"]["vision"].items():
        setattr(config.vision_config, key, value - 1 if key == "num_hidden_layers" else value)
    return config


def test_original(golden: tuple[dict[str, Any], Any], hub_folder: Path, tmp_path: Path) -> None:
    facts, found = golden
    model = read_model(hub_folder, config=hub_config(hub_folder, facts), dtype=torch.float32)
    for shape, (columns, rows) in {"square": (336, 336), "landscape": (500, 300), "portrait": (300, 520)}.items():
        page = hd_image(film(rows, columns), facts["config"]["num_crops"])
        crops = crops_of(page)
        assert list(page.shape[:2]) == found[f"{shape}.image_sizes"][0].tolist()
        np.testing.assert_array_equal(crops[1, :, 0], found[f"{shape}.pixel_crop1_row0"])
        sums = [crops.double().sum(), crops.double().abs().sum()]
        np.testing.assert_allclose(sums, found[f"{shape}.pixel_checksum"], rtol=1e-11)
        original = torch.from_numpy(found[f"{shape}.input_ids"])  # -1 in the image's place
        given = {"pixel_values": crops[None], "image_sizes": torch.tensor([page.shape[:2]])}
        with torch.no_grad():
            logits = model(input_ids=original, **given).logits[0]
        np.testing.assert_allclose(logits[-3:], found[f"{shape}.logits_last3"], atol=2e-6)
        np.testing.assert_allclose(logits.mean(-1), found[f"{shape}.logits_mean_per_pos"], atol=1e-7)
        if shape == "landscape":  # one is enough: the three take ten seconds
            ids = original.masked_fill(original < 0, model.config.image_token_id)
            given |= {"attention_mask": torch.ones_like(ids)}
            written = model.generate(input_ids=ids, **given, **GREEDY | {"max_new_tokens": 6})
            assert written[0, ids.shape[1] :].tolist() == found[f"{shape}.greedy6"].tolist()
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())  # no names of the hub's


def test_refused_weights(golden: tuple[dict[str, Any], Any], hub_folder: Path, tmp_path: Path) -> None:
    config = hub_config(hub_folder, golden[0])
    (tmp_path / "config.json").write_text((hub_folder / "config.json").read_text())
    weights = load_file(hub_folder / "model.safetensors")
    for change, named in (
        ({"model.vision_embed_tokens.glb_GN": None}, "model.projector.before_whole is missing"),
        ({"model.layers.7.mlp.down_proj.weight": torch.zeros(2)}, "layers.7.mlp.down_proj.weight is unknown"),
        ({"model.norm.weight": torch.zeros(3)}, r"model.language_model.norm.weight is \(3,\), not \(64,\)"),
    ):
        changed = {key: value for key, value in (weights | change).items() if value is not None}
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(SettingsFault, match=named):
            read_model(tmp_path, config=config, dtype=torch.float32)


def test_refused_network() -> None:
    with pytest.raises(SettingsFault, match="a llava"):
        Phi3VisionConfig.from_dict({"model_type": "llava"})
    with pytest.raises(SettingsFault, match="hd_transform_order is glb_sub"):
        Phi3VisionConfig.from_dict({"model_type": "phi3_v", "embd_layer": {"hd_transform_order": "glb_sub"}})


def test_published_size() -> None:
    with torch.device("meta"):
        model = Phi3VisionForConditionalGeneration(Phi3VisionConfig())
    width, mlp = 1024, 4096
    unread = 4 * width * (width + 1) + 2 * width * mlp + mlp + width + 4 * width  # CLIP's last layer
    assert len(model.state_dict()) + 16 == 592  # of the hub's index
    assert sum(weight.numel() for weight in model.parameters()) + unread == 4_146_621_440


# Images.


@pytest.mark.parametrize(
    ("rows", "columns", "crops", "page"),
    [(1024, 1024, 4, (2, 2)), (1024, 1024, 16, (4, 4)), (1, 1, 4, (2, 2)), (3, 900, 4, (1, 4)), (900, 3, 4, (4, 1))],
)
def test_page(rows: int, columns: int, crops: int, page: tuple[int, int]) -> None:
    found = hd_image(film(rows, columns), crops)
    assert found.shape == (336 * page[0], 336 * page[1], 3)
    cut = crops_of(found)
    assert cut.shape == (1 + page[0] * page[1], 3, 336, 336)
    red = (found[-336:, -336:, 0] / 255 - 0.48145466) / 0.26862954  # CLIP's; the last crop is the lower right corner
    np.testing.assert_allclose(cut[-1, 0], red, atol=1e-5)


def test_tokens() -> None:
    assert image_tokens(672, 672) == 757  # Phi-3.5-vision of a square
    assert image_tokens(1344, 1344) == 2509  # Phi-3-vision
    assert image_tokens(336, 1344) == 5 * 144 + 1 + 2 * 12


def test_page_is_padded_at_both_ends() -> None:
    wide = hd_image(np.zeros((100, 200, 3), np.uint8), 2, crop=8)  # 16 x 8: as it is
    assert not wide.any()
    flat = hd_image(np.zeros((50, 200, 3), np.uint8), 2, crop=8)  # 16 x 4 on 16 x 8
    assert (flat[:2] == 255).all() and not flat[2:6].any() and (flat[6:] == 255).all()
    np.testing.assert_array_equal(hd_image(np.zeros((200, 50, 3), np.uint8), 2, crop=8), flat.transpose(1, 0, 2))


def test_order_of_tokens() -> None:
    """Two crops beside one another, 4 x 4 patches each: where each patch's number ends up, token by token."""
    projector = Projector(width=1, dim=4)
    projector.linear_1, projector.activation, projector.linear_2 = (torch.nn.Identity() for _ in range(3))
    torch.nn.init.constant_(projector.row_end, -1)
    torch.nn.init.constant_(projector.before_whole, -2)
    whole, left, right = (100 * crop + torch.arange(16.0) for crop in range(3))
    tokens = projector(torch.stack([whole, left, right])[..., None], down=1, across=2)
    end, between = [-1] * 4, [-2] * 4
    assert tokens.tolist() == [
        [100, 101, 104, 105], [102, 103, 106, 107], [200, 201, 204, 205], [202, 203, 206, 207], end,
        [108, 109, 112, 113], [110, 111, 114, 115], [208, 209, 212, 213], [210, 211, 214, 215], end,
        between,
        [0, 1, 4, 5], [2, 3, 6, 7], end,
        [8, 9, 12, 13], [10, 11, 14, 15], end,
    ]  # fmt: skip


# Texts.


def test_processor_ids(small: tuple[Any, Phi3VisionProcessor]) -> None:
    _, processor = small
    words = processor.tokenizer
    image = [processor.image_token_id] * 27  # (2 x 2 + 1) x 4 + 1 + 3 x 2
    found = processor(images=film(40, 40), text=PROMPT)["input_ids"][0]
    before, after = PROMPT.split("<|image_1|>")
    assert found == [*words(before)["input_ids"], *image, *words(after)["input_ids"]]
    # As in the golden: <s> <|user|> ▁ \n, the image, <s> ▁ \n …
    space, newline = words.convert_tokens_to_ids(["▁", "<0x0A>"])
    user = words.convert_tokens_to_ids("<|user|>")
    assert found[:4] == [1, user, space, newline] and found[31:34] == [1, space, newline]
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hi there"}]}]
    text = processor.apply_chat_template(turn, add_generation_prompt=True)
    assert processor(images=film(40, 40), text=text, add_special_tokens=False)["input_ids"][0] == found
    with pytest.raises(ValueError, match=r"0 <\|image_1\|> for 1 image"):
        processor(images=film(4, 4), text="hi")


def batch(processor: Phi3VisionProcessor, side: str = "left") -> Any:
    """A square, a wide and a high film, with prompts of three lengths."""
    processor.tokenizer.padding_side = side
    texts = [PROMPT, PROMPT.replace("hi", "left left right"), PROMPT.replace("hi there", "hi")]
    films = [film(40, 40), film(9, 50, 1), film(60, 20, 2)]
    return processor(images=films, text=texts, padding=True, return_tensors="pt")


def singles(given: Any) -> list[dict[str, Tensor]]:
    """The batch's rows without their padding."""
    rows = []
    for row in range(len(given["input_ids"])):
        there = given["attention_mask"][row] == 1
        one = {key: given[key][row : row + 1] for key in given}
        rows.append(one | {key: one[key][:, there] for key in ("input_ids", "attention_mask")})
    return rows


@pytest.mark.parametrize("beams", [1, 3])
def test_batches_write_what_each_does_alone(small: tuple[Any, Phi3VisionProcessor], beams: int) -> None:
    model, processor = small
    given = batch(processor)
    assert given["image_sizes"].tolist() == [[32, 32], [16, 64], [48, 16]]
    together = model.generate(**given, **GREEDY, num_beams=beams)[:, given["input_ids"].shape[1] :]
    alone = [model.generate(**one, **GREEDY, num_beams=beams)[0, one["input_ids"].shape[1] :] for one in singles(given)]
    assert together.tolist() == [one.tolist() for one in alone]
    blind = model.generate(**given | {"pixel_values": -given["pixel_values"]}, **GREEDY, num_beams=beams)
    assert not torch.equal(blind[:, -8:], together)  # they do depend on the images


def test_loss_ignores_padding(small: tuple[Any, Phi3VisionProcessor]) -> None:
    model, processor = small
    given = batch(processor, "right")
    image = given["input_ids"] == processor.image_token_id
    labels = given["input_ids"].masked_fill(image | (given["attention_mask"] == 0), -100)
    with torch.no_grad():
        together = model(**given, labels=labels).loss
        total, count = 0.0, 0
        for row, one in enumerate(singles(given)):
            told = labels[row : row + 1][given["attention_mask"][row : row + 1] == 1][None]
            counted = int((told[:, 1:] != -100).sum())
            total += float(model(**one, labels=told).loss) * counted
            count += counted
    assert float(together) == pytest.approx(total / count, abs=1e-5)


def test_places_must_fit_each_image(small: tuple[Any, Phi3VisionProcessor]) -> None:
    model, processor = small
    given = batch(processor)
    swapped = given["pixel_values"].flip(0), given["image_sizes"].roll(1, 0)
    with pytest.raises(ValueError, match="places for image tokens"):
        model(**given | {"pixel_values": swapped[0], "image_sizes": swapped[1]})


# Long texts.


def long_rope(config: Any, switch: int) -> Any:
    half = config.text_config.hidden_size // config.text_config.num_attention_heads // 2
    config.text_config.max_position_embeddings = 4 * switch
    config.text_config.original_max_position_embeddings = switch
    config.text_config.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": switch,
        "short_factor": [1.0 + 0.1 * i for i in range(half)],
        "long_factor": [2.0 + 3.0 * i for i in range(half)],
    }
    return config


def test_rotary_factors_switch_while_writing(small: tuple[Any, Phi3VisionProcessor]) -> None:
    trained, processor = small
    given = processor(images=film(40, 40), text=PROMPT, return_tensors="pt")
    length = given["input_ids"].shape[1]
    config = long_rope(Phi3VisionConfig.from_dict(trained.config.to_dict()), length + 4)
    model = Phi3VisionForConditionalGeneration(config).eval()
    model.load_state_dict(trained.state_dict())
    cached = model.generate(**given, **GREEDY)[0, length:].tolist()
    assert cached == model.generate(**given, **GREEDY, use_cache=False)[0, length:].tolist()
    short = long_rope(Phi3VisionConfig.from_dict(trained.config.to_dict()), length + 4)
    short.text_config.rope_parameters["long_factor"] = short.text_config.rope_parameters["short_factor"]
    other = Phi3VisionForConditionalGeneration(short).eval()
    other.load_state_dict(trained.state_dict())
    never = other.generate(**given, **GREEDY)[0, length:].tolist()
    assert cached[:5] == never[:5] and cached != never
    stock = Phi3ForCausalLM(config.text_config).eval()
    stock.model.load_state_dict(model.model.language_model.state_dict())
    stock.lm_head.load_state_dict(model.lm_head.state_dict())
    words = processor.tokenizer("hi there " * (length // 2 - 1), return_tensors="pt")
    words = {key: words[key] for key in ("input_ids", "attention_mask")}
    assert model.generate(**words, **GREEDY).tolist() == stock.generate(**words, **GREEDY).tolist()


# Files and adapters.


def test_saved_folder(small: tuple[Any, Phi3VisionProcessor], tmp_path: Path) -> None:
    model, processor = small
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, read = read_model(tmp_path), Phi3VisionProcessor.from_pretrained(str(tmp_path))
    given, again = (one(images=film(9, 50), text=PROMPT, return_tensors="pt") for one in (processor, read))
    assert all(torch.equal(given[key], again[key]) for key in given)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**again).logits, model(**given).logits, atol=0, rtol=0)


def test_every_adapter_learns() -> None:
    found = []
    for checkpointing in (False, True):
        base, processor = phantom()
        torch.manual_seed(0)
        settings = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
        model: Any = get_peft_model(base, settings)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        given = batch(processor, "right")
        loss = model.train()(**given, labels=given["input_ids"]).loss
        loss.backward()
        adapters = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
        assert all(grad is not None and grad.any() for grad in adapters.values())
        assert any("vision_tower" in name for name in adapters) and not any("lm_head" in name for name in adapters)
        found.append(adapters)
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, atol=1e-6, rtol=1e-4)
