"""What a model reads is what transformers' own processor would give it, and training and generation see the same."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from datamodules.study import SettingsFault
from lit_modules.nets.phi3_vision_processor import Phi3VisionProcessor
from lit_modules.nets.vlm import VlmProcessor
from lit_modules.nets.vlm_encoding import IGNORED, VlmEncoder
from lit_modules.nets.vlm_families import FAMILIES
from tests.lit_modules.vlm_tiny import ASK, FILMS, REPORTS, encoder, model, noise, samples

# The turn as the authors' templates write it, before the stock processor puts an image's tokens in.
_CHATML = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"
_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
TURNS = {
    "gemma3": "<bos><start_of_turn>user\n<start_of_image>{}<end_of_turn>\n<start_of_turn>model\n",
    "qwen2_vl": _SYSTEM + _CHATML,
    "qwen2_5_vl": _SYSTEM + _CHATML,
    "qwen3_vl": _CHATML,
    "mllama": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|image|>{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "paligemma": "<image>{}",
    "phi3_v": "<s><|user|>\n<|image_1|><s>\n{}<|end|>\n<|assistant|>\n",
}
FAMILY = pytest.mark.parametrize("family", FAMILIES)


def stock(processor: VlmProcessor) -> Any:
    """transformers' own processor around the same tokenizer and image processor."""
    tokenizer, images = copy.deepcopy(processor.tokenizer), processor.image_processor
    match processor.family.model_type:
        case "gemma3":
            return transformers.Gemma3Processor(images, tokenizer, image_seq_length=processor.image_tokens)
        case "qwen2_vl":
            return transformers.Qwen2VLProcessor(images, tokenizer, transformers.Qwen2VLVideoProcessor())
        case "qwen2_5_vl":
            return transformers.Qwen2_5_VLProcessor(images, tokenizer, transformers.Qwen2VLVideoProcessor())
        case "qwen3_vl":
            return transformers.Qwen3VLProcessor(images, tokenizer, transformers.Qwen3VLVideoProcessor())
        case "mllama":
            return transformers.MllamaProcessor(images, tokenizer)
        case "paligemma":
            images.image_seq_length = processor.image_tokens
            return transformers.PaliGemmaProcessor(images, tokenizer)
    return Phi3VisionProcessor(images, tokenizer)


@FAMILY
@pytest.mark.parametrize("size", [(90, 70), (60, 170), (31, 33)])
def test_ids_masks_and_pixels_are_the_stock_processors(family: str, size: tuple[int, int]) -> None:
    source, image = encoder(family), noise(*size)
    text = TURNS[family].format(ASK)
    wanted = stock(source.processor)(images=[image], text=text, add_special_tokens=False, return_tensors="pt")
    found = source.sample(source.image_arrays(image), ASK, None)
    assert set(found) == set(wanted) - {"attention_mask", "labels"}
    if family == "phi3_v":  # crops that the film has not are left to `collate`
        real = found["pixel_values"].shape[1]
        assert not wanted["pixel_values"][:, real:].any()
        wanted["pixel_values"] = wanted["pixel_values"][:, :real]
    batch = source.collate([found], "left")
    for key, values in batch.items():
        assert values.dtype == wanted[key].dtype and torch.equal(values, wanted[key]), key


@FAMILY
def test_the_loss_counts_the_answer_alone_and_the_batch_says_so(family: str) -> None:
    source = encoder(family)
    tokenizer = source.processor.tokenizer
    batch = source.collate(samples(source), "right")
    for ids, labels, answer in zip(batch["input_ids"], batch["labels"], REPORTS, strict=True):
        told = labels[labels != IGNORED]
        assert torch.equal(ids[labels != IGNORED], told)
        assert tokenizer.decode(told[:-1]).strip() == answer and int(told[-1]) == source.ends[0]
        begins = ids.tolist().count(tokenizer.bos_token_id)
        assert begins == (0 if family.startswith("qwen") else 2 if family == "phi3_v" else 1)
        kind = source.processor.family.token_types
        if kind is not None:
            row = batch[kind][int((batch["labels"] == labels).all(1).nonzero())]
            assert set(row[labels != IGNORED].tolist()) == {int(family == "paligemma")}
            image = tokenizer.convert_tokens_to_ids(source.processor.family.image_token)
            assert set(row[ids == image].tolist()) == {int(family != "paligemma")}
    if family == "mllama":
        seen = batch["cross_attention_mask"][:, :, 0].amax(-1)
        assert torch.equal(seen[0], (batch["input_ids"][0] == tokenizer.image_token_id).cumsum(0))
        assert not (seen * (1 - batch["attention_mask"])).any()


@FAMILY
def test_padding_changes_no_loss_and_checkpointing_no_gradient(family: str) -> None:
    source, vlm = encoder(family), model(family)
    turns = samples(source)
    batch = source.collate(turns, "right")
    loss = vlm(**batch).loss
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in vlm.named_parameters() if weight.grad is not None}
    with torch.no_grad():
        alone = [float(vlm(**source.collate([turn], "right")).loss) for turn in turns]
    counts = [int((turn["labels"] != IGNORED).sum()) for turn in turns]
    assert float(loss.detach()) == pytest.approx(np.average(alone, weights=counts), abs=1e-5)

    vlm.zero_grad()
    vlm.train().gradient_checkpointing_enable({"use_reentrant": False})
    vlm(**batch, use_cache=False).loss.backward()
    for name, weight in vlm.named_parameters():
        if name in gradients:
            torch.testing.assert_close(weight.grad, gradients[name], atol=1e-6, rtol=1e-4)


@FAMILY
def test_two_reports_are_learnt_and_written_alone_and_together(family: str) -> None:
    """Same prompt, different films: the report can only come from the image, and must end where it ends."""
    source, vlm = encoder(family), model(family).train()
    batch = source.collate(samples(source), "right")
    optimizer = torch.optim.AdamW(vlm.parameters(), 3e-3)
    for _ in range(200):
        loss = vlm(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vlm.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.03:
            break
    vlm.eval()

    def written(asked: list[Any]) -> list[str]:
        prompt = source.collate(asked, "left")
        found = vlm.generate(
            **prompt, max_new_tokens=24, do_sample=False, eos_token_id=source.ends, pad_token_id=source.pad
        )
        return [source.decode(ids) for ids in found[:, prompt["input_ids"].shape[1] :]]

    asked = samples(source, (None, None))
    assert written(asked) == list(REPORTS)
    assert [text for one in asked for text in written([one])] == list(REPORTS)


@FAMILY
def test_a_long_answer_is_cut_never_the_image(family: str) -> None:
    arrays = encoder(family).image_arrays(FILMS[0])
    whole = encoder(family).sample(arrays, ASK, REPORTS[0])
    asked = len(encoder(family).sample(arrays, ASK, None)["input_ids"])
    short = encoder(family, max_length=asked + 3)
    cut = short.sample(arrays, ASK, REPORTS[0])
    assert len(cut["input_ids"]) == asked + 3
    assert torch.equal(cut["input_ids"], whole["input_ids"][: asked + 3])
    assert short.is_cut(cut) and not short.is_cut(whole)
    with pytest.raises(SettingsFault, match=f"take {asked} of {asked} positions"):
        encoder(family, max_length=asked).sample(arrays, ASK, None)


@FAMILY
def test_loss_on_the_prompt_leaves_the_image_out(family: str) -> None:
    source = encoder(family, mask_prompt=False)
    sample = source.sample(source.image_arrays(FILMS[0]), ASK, REPORTS[0])
    image = source.processor.tokenizer.convert_tokens_to_ids(source.processor.family.image_token)
    assert torch.equal(sample["labels"] == IGNORED, sample["input_ids"] == image)


def test_max_pixels_bounds_the_image_tokens_where_the_film_decides() -> None:
    image = noise(90, 90)
    for family, few in (("qwen2_5_vl", 28 * 28), ("phi3_v", 28 * 28)):
        image_tokens = []
        for bound in (None, few):
            source = encoder(family, max_pixels=bound)
            token = source.processor.tokenizer.convert_tokens_to_ids(source.processor.family.image_token)
            ids = source.sample(source.image_arrays(image), ASK, None)["input_ids"]
            image_tokens.append(int((ids == token).sum()))
        assert image_tokens[1] < image_tokens[0], family
        assert encoder(family).settings() != encoder(family, max_pixels=few).settings()
    with pytest.raises(SettingsFault, match="max_pixels"):
        encoder("gemma3", max_pixels=1000).image_arrays(image)


@pytest.mark.parametrize(
    ("family", "published", "tokens"),
    [
        ("qwen2_vl", {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14}, 1369),
        ("qwen3_vl", {"size": {"shortest_edge": 65536, "longest_edge": 16777216}, "patch_size": 16}, 1024),
    ],
)
def test_a_film_of_candids_size_at_published_settings(
    family: str, published: dict[str, Any], tokens: int, tmp_path: Path
) -> None:
    """The hub's older files name limits of their own, and a class of their own for Qwen3."""
    kind = {"image_processor_type": "Qwen2VLImageProcessor" + ("Fast" if family == "qwen3_vl" else ""), "merge_size": 2}
    encoder(family).processor.tokenizer.save_pretrained(tmp_path)
    model(family).config.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(kind | published))
    source = VlmEncoder(str(tmp_path))
    ids = source.sample(source.image_arrays(noise(1024, 1024)), ASK, None)["input_ids"].tolist()
    assert ids.count(source.processor.tokenizer.image_token_id) == tokens


@FAMILY
def test_a_store_knows_its_image_processor(family: str) -> None:
    found = encoder(family).settings()
    assert json.loads(json.dumps(found)) == found
    assert found != VlmEncoder(f"phantom:{family}").settings()


def test_an_encoder_travels_to_other_processes() -> None:
    source = encoder("gemma3", max_length=99)
    assert pickle.loads(pickle.dumps(source)) == source
    assert len(pickle.dumps(source)) < 1000


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)])
def test_only_8_bit_colour_is_read(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="8-bit"):
        VlmEncoder("phantom:gemma3").image_arrays(image)
