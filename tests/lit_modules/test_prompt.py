"""Prompt, target, ids and their way back, against the reference's own ids and texts."""

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llama_pieces import llama_stand_in

from datamodules.study import Study
from lit_modules.nets.backbones import build_tokenizer
from lit_modules.nets.prompt import REGIONS, Prompt, add_special_tokens, check_prompt, splice, without_prefixes
from lit_modules.reg2rg_samples import Reg2RGPreprocessor


@pytest.fixture(scope="module")
def llama() -> Any:
    tokenizer = llama_stand_in()
    assert add_special_tokens(tokenizer, Prompt()) == 32000
    return tokenizer


def samples(golden: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with np.load(golden / "dataset_tiny.npz") as file:
        arrays = {key: file[key] for key in file}
    return json.loads(bytes(arrays["meta"])), arrays


def preprocessor(tokenizer: Any, **changes: Any) -> Reg2RGPreprocessor:
    settings = {
        "size": (32, 24, 8),
        "decouple": True,
        "volume_dtype": "float32",
        "prompt": Prompt(),
        "max_length": 2048,
    }
    return Reg2RGPreprocessor(**{**settings, "tokenizer": tokenizer, "prompted_at_test": "masked", **changes})


def study_of(golden: Path) -> tuple[Study, dict[str, Any], dict[str, np.ndarray]]:
    meta, arrays = samples(golden)
    masks = {key[5:]: value for key, value in arrays.items() if key.startswith("mask.")}
    return Study("tiny", volume=arrays["volume"], masks=masks, regions=meta["reports"]), meta, arrays


def test_question_and_target_are_the_references_word_for_word(golden: Path) -> None:
    texts = json.loads((golden / "prompt_texts.json").read_text())
    assert Prompt().question(2) == texts["prompt_2"]
    answer = [("lung", "There is a 4 mm nodule."), ("trachea and bronchie", "Trachea is open.")]
    assert Prompt().target(answer) == texts["answer_example"]
    meta, _ = samples(golden)
    assert Prompt().question(6) == meta["question"]
    shown = [(region, meta["reports"].get(region, "")) for region in meta["test_region2area"].values()]
    assert Prompt().target(shown) == meta["gt_combined_report"]


@pytest.mark.parametrize("regions", [1, 2, 5, 10])
def test_prompt_ids_equal_the_reference(golden: Path, llama: Any, regions: int) -> None:
    expected = np.load(golden / "prompt_ids.npz")[f"prompt_{regions}"].tolist()
    assert len(expected) == 124 + 42 * regions
    assert llama(Prompt().question(regions))["input_ids"] == expected


def test_answer_ids_equal_the_reference(golden: Path, llama: Any) -> None:
    texts = json.loads((golden / "prompt_texts.json").read_text())
    expected = np.load(golden / "prompt_ids.npz")["answer_example"].tolist()
    assert llama(f"{texts['prompt_2']} {texts['answer_example']}")["input_ids"] == expected


def test_training_sample_equals_the_references_dataset(golden: Path, llama: Any) -> None:
    study, meta, arrays = study_of(golden)
    pre = preprocessor(llama)
    sample = pre(study, pre.arrays(study), random.Random(0))
    length = meta["n_tokens"]
    assert sample["regions"] == list(meta["train_region2area"].values()), "shuffled as random.seed(0) did there"
    assert sample["tokens"].tolist() == arrays["train.lang_x"][: length + 1].tolist()
    assert sample["labels"].tolist() == arrays["train.label"][: length + 1].tolist()
    assert (arrays["train.label"][length + 1 :] == -100).all() and (arrays["train.lang_x"][length + 1 :] == 0).all()
    assert arrays["train.attention_mask"].tolist() == [1] * length + [0] * 3, "end of text stands outside the mask"


def test_evaluation_sample_equals_the_references_dataset(golden: Path, llama: Any) -> None:
    study, meta, arrays = study_of(golden)
    pre = preprocessor(llama)
    sample = pre(study, pre.arrays(study), None)
    assert sample["regions"] == list(meta["test_region2area"].values())
    assert sample["prompt"].tolist() == arrays["test.lang_x"].tolist()
    reported = preprocessor(llama, prompted_at_test="reported")
    assert reported(study, pre.arrays(study), None)["regions"] == sorted(meta["train_region2area"].values())


def test_long_sequences_are_cut_and_named(golden: Path, llama: Any) -> None:
    study, _, _ = study_of(golden)
    pre = preprocessor(llama, max_length=400)
    sample = pre(study, pre.arrays(study), None)
    assert len(sample["tokens"]) == len(sample["labels"]) == 400
    assert sample["tokens"][-1] != llama.eos_token_id, "a report that was cut must not teach to stop there"
    assert pre.collate([sample])["cut"] == ["tiny"]
    whole = preprocessor(llama)
    assert whole.collate([whole(study, whole.arrays(study), None)])["cut"] == []


def test_batch_is_padded_to_its_longest_on_the_right_side(golden: Path, llama: Any) -> None:
    study, _, _ = study_of(golden)
    pre = preprocessor(llama)
    arrays = pre.arrays(study)
    short = pre(study, arrays, random.Random(0))
    long = pre(study, arrays, None)
    batch = pre.collate([short, long])
    assert batch["prompt"].shape == batch["prompt_mask"].shape == (2, 124 + 42 * 6)
    assert batch["prompt_mask"].sum(1).tolist() == [124 + 42 * 5, 124 + 42 * 6]
    assert batch["prompt_mask"][0, 0] == 0 and batch["prompt_mask"][0, -1] == 1, "prompts are padded on the left"
    assert batch["tokens"].shape[1] == len(long["tokens"]), "not to 2048"
    assert (batch["labels"][0, len(short["labels"]) :] == -100).all()
    assert batch["volume_rows"].tolist()[:3] == [[0, 4], [0, 36], [0, 69]]
    assert batch["mask_rows"].tolist()[5:7] == [[1, 68], [1, 101]]
    assert len(batch["volume_rows"]) == 6 + 7 and len(batch["mask_rows"]) == 5 + 6


def test_a_study_with_more_regions_than_tokens_is_named(llama: Any) -> None:
    pre = preprocessor(llama)
    arrays = {f"volume/r{index}": np.zeros((1, 1, 1), np.float32) for index in range(11)}
    with pytest.raises(ValueError, match="crowded has 11 regions"):
        pre(Study("crowded"), arrays, None)


def test_special_tokens_run_on_from_the_vocabulary(llama: Any) -> None:
    assert len(Prompt().tokens) == 366
    expected = {
        "<image>": 0,
        "</image>": 1,
        "<region>": 2,
        "</region>": 3,
        "<image0>": 4,
        "<region0>": 36,
        "<region329>": 365,
    }
    assert {token: llama.convert_tokens_to_ids(token) - 32000 for token in expected} == expected
    assert check_prompt(llama, Prompt(), 32000, 32000) == 544


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(texture=False, geometry=False),
        Prompt(geometry=False, global_context=False),
        Prompt(global_context=False),
        Prompt(align=False),
        Prompt(latents=8),
    ],
)
def test_every_ablation_has_a_prompt_that_any_tokenizer_reads(prompt: Prompt) -> None:
    tokenizer = build_tokenizer("phantom:llama")
    base = add_special_tokens(tokenizer, prompt)
    assert check_prompt(tokenizer, prompt, base, base) == len(tokenizer(prompt.question(10))["input_ids"])
    text = prompt.question(2)
    assert ("<image0>" in text) == prompt.global_context
    assert text.count("<region>") == (2 if prompt.shows_regions else 0)
    assert ("<region0>" in text) == prompt.texture
    assert (f"<region{prompt.latents}>" in text) == prompt.geometry
    assert ("identify the anatomical area" in text) == (prompt.align and prompt.shows_regions)
    assert ("global" in text) == prompt.global_context


def test_newer_rules_for_the_same_llama_tokenizer_are_refused() -> None:
    tokenizer = llama_stand_in(legacy=False)
    base = add_special_tokens(tokenizer, Prompt())
    with pytest.raises(ValueError, match=r"29889 follows a closing token.*869"):
        check_prompt(tokenizer, Prompt(geometry=False), base, 32000)


def test_shifted_or_split_special_tokens_are_refused() -> None:
    padded = llama_stand_in()
    padded.add_special_tokens({"pad_token": "<pad>"})
    base = add_special_tokens(padded, Prompt())
    with pytest.raises(ValueError, match="<pad>"):
        check_prompt(padded, Prompt(), base, 32000)
    bare = llama_stand_in()
    with pytest.raises(ValueError, match="maps <image> to"):
        check_prompt(bare, Prompt(), 32000, 32000)


def test_no_volume_to_show_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Prompt(texture=False, global_context=False)


def test_targets_are_read_back_region_by_region() -> None:
    reports = [("lung", "A 4 mm nodule. Note: seen at 3:1."), ("breast", ""), ("trachea and bronchie", "Open.")]
    text = Prompt().target(reports)
    rows = Prompt().parse(text, [region for region, _ in reports])
    assert rows == [(region, region, report) for region, report in reports]
    assert without_prefixes(text) == "A 4 mm nodule. Note: seen at 3:1. Open."


def test_what_a_text_leaves_out_or_repeats() -> None:
    text = "The region 1 is heart: Large. The region 1 is lung: Clear. The region 7 is bone: Whole."
    rows = Prompt().parse(text, ["abdomen", "heart", "lung"])
    assert rows == [("abdomen", None, ""), ("heart", "lung", "Large. Clear."), ("lung", None, "")]
    assert Prompt().parse("no prefix at all", ["lung"]) == [("lung", None, "")]
    assert Prompt().parse("", ["lung"]) == [("lung", None, "")]
    assert Prompt(align=False).parse(text, ["lung"]) is None


def test_prefixes_are_stripped_as_the_authors_do() -> None:
    assert without_prefixes("The region 0 is lung:  Clear.\n The region 12 is x y: Fine. ") == "Clear. Fine."
    assert without_prefixes("The region 1 is breast:") == "", "an empty last report leaves nothing behind"
    assert without_prefixes("") == ""
    assert without_prefixes("There is a region: here.") == "There is a region: here."


def test_splice_equals_a_one_hot_matrix_to_the_bit() -> None:
    torch.manual_seed(0)
    words = torch.nn.Embedding(50, 6)
    rows = torch.randn(3, 9, 6)
    tokens = torch.randint(0, 59, (3, 20))
    table = torch.cat((words.weight.expand(3, -1, -1), rows), dim=1)
    expected = torch.nn.functional.one_hot(tokens, 59).to(table) @ table
    assert torch.equal(splice(tokens, words, rows, 50), expected)


def test_regions_are_in_the_references_order() -> None:
    assert list(REGIONS) == sorted(REGIONS) and len(REGIONS) == 10


@pytest.mark.skipif(
    "ZOO_LLAMA_TOKENIZER" not in os.environ, reason="point ZOO_LLAMA_TOKENIZER at Llama-2's tokenizer folder"
)
def test_the_real_llama_tokenizer_gives_the_references_ids(golden: Path) -> None:
    tokenizer = build_tokenizer(os.environ["ZOO_LLAMA_TOKENIZER"])
    base = add_special_tokens(tokenizer, Prompt())
    assert check_prompt(tokenizer, Prompt(), base, 32000) == 544
    expected = np.load(golden / "prompt_ids.npz")
    for regions in (1, 2, 5, 10):
        assert tokenizer(Prompt().question(regions))["input_ids"] == expected[f"prompt_{regions}"].tolist()
    study, meta, arrays = study_of(golden)
    pre = preprocessor(tokenizer)
    sample = pre(study, pre.arrays(study), random.Random(0))
    assert sample["tokens"].tolist() == arrays["train.lang_x"][: meta["n_tokens"] + 1].tolist()
    answer = sample["tokens"][len(sample["prompt"]) :]
    assert tokenizer.decode(answer, skip_special_tokens=True).endswith("pleura: No pleural effusion. ")
