"""LLaVA's conversation against the authors' rules for ids and labels, and its pixels against transformers' own."""

import random
from typing import Any

import numpy as np
import pytest
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from datamodules.study import DataFault
from lit_modules.nets.llava import BYTE_0, HUB_IMAGE, IGNORED, build_llava_tokenizer
from lit_modules.nets.llava_prompt import LlavaPrompt, llava_pixels, llava_view, padded, padding_mask, pick_question
from lit_modules.nets.llava_prompts import QUESTIONS

# What LLaVA's own tokenizer makes of the frame of a conversation, as printed by many users of the authors' code.
BEFORE_IDS = [
    *(319, 13563, 1546, 263, 12758, 1404, 322, 385, 23116, 21082, 20255, 29889, 450, 20255, 4076, 8444, 29892, 13173),
    *(29892, 322, 1248, 568, 6089, 304, 278, 1404, 29915, 29879, 5155, 29889, 3148, 1001, 29901, 29871),
]
ASSISTANT_IDS = [319, 1799, 9047, 13566, 29901]
PIECES = """
▁A 319 ▁chat 13563 ▁between 1546 ▁a 263 ▁curious 12758 ▁user 1404 ▁and 322 ▁an 385 ▁artificial 23116
▁intelligence 21082 ▁assistant 20255 . 29889 ▁The 450 ▁gives 4076 ▁helpful 8444 , 29892 ▁detailed 13173 ▁pol 1248
ite 568 ▁answers 6089 ▁to 304 ▁the 278 ' 29915 s 29879 ▁questions 5155 ▁US 3148 ER 1001 : 29901 ▁ 29871 SS 1799
IST 9047 ANT 13566 ▁normal 4226 ▁heart 5192 ▁is 338
"""


@pytest.fixture(scope="module")
def phantom() -> Any:
    return build_llava_tokenizer("phantom:llava")


@pytest.fixture(scope="module")
def vicuna() -> Any:
    """A stand-in for LLaVA's tokenizer, which is not ours to ship: the pieces above at their ids, bytes at theirs."""
    from tokenizers import Tokenizer, models, normalizers

    vocabulary = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((f"<0x{byte:02X}>", -99.0) for byte in range(256))]
    vocabulary += [(f"<unused{index}>", -1e4) for index in range(len(vocabulary), 32000)]
    entries = PIECES.split()
    for piece, index in zip(entries[::2], entries[1::2], strict=True):
        vocabulary[int(index)] = (piece, -1.0)
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<image>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


def test_the_frame_has_llavas_own_ids(vicuna) -> None:
    prompt = LlavaPrompt(vicuna, HUB_IMAGE, 3)
    asked = prompt.ask("The heart?")
    assert asked.tokens[:35] == [1, *BEFORE_IDS]
    assert asked.tokens[35:40] == [HUB_IMAGE] * 3 + [29871, 13], "then ▁ and the line's end"
    assert asked.tokens[-5:] == ASSISTANT_IDS
    learnt = prompt.turn("The heart?", "The heart is normal.")
    assert learnt.tokens[: len(asked.tokens)] == asked.tokens
    assert learnt.tokens[len(asked.tokens) :] == [450, 5192, 338, 4226, 29889, 2]


def test_the_text_is_llavas(phantom) -> None:
    turn = LlavaPrompt(phantom, BYTE_0, 2).turn("What is seen?", " No effusion. ")
    text = phantom.decode([token for token in turn.tokens if token != BYTE_0], clean_up_tokenization_spaces=False)
    assert text.replace("<s> ", "<s>") == (
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful,"
        " detailed, and polite answers to the user's questions. USER:  \nWhat is seen? ASSISTANT: No effusion.</s>"
    )


@pytest.mark.parametrize("answer", ["The heart is normal.", "5 mm", "naïve\n\n肺炎", ""])
def test_labels_follow_the_authors_rule(phantom, answer: str) -> None:
    """Theirs counts: all ids up to "ASSISTANT: ", less the start and the last "▁", are not learnt; the rest is."""
    turn = LlavaPrompt(phantom, BYTE_0, 1).turn("Findings?", answer)
    whole = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed,"
        f" and polite answers to the user's questions. USER: <image>\nFindings? ASSISTANT: {answer}"
    )

    def ids(text: str) -> list[int]:
        first, second = (phantom(part, add_special_tokens=False)["input_ids"] for part in text.split("<image>"))
        return [1, *first, BYTE_0, *second]

    if answer:
        expected = [*ids(whole), 2]
        masked = len(ids(whole[: whole.index("ASSISTANT: ") + 11])) - 1
        assert turn.tokens == expected
        assert turn.labels == [IGNORED] * masked + expected[masked:]
    else:
        assert [label for label in turn.labels if label != IGNORED] == [2]
    assert not turn.cut


def test_a_long_answer_loses_its_end_and_the_image_nothing(phantom) -> None:
    turn = LlavaPrompt(phantom, BYTE_0, 576, 800).turn("Findings?", "normal " * 500)
    assert turn.cut and len(turn.tokens) == 800 and turn.tokens.count(BYTE_0) == 576
    assert phantom.eos_token_id not in turn.tokens, "what goes on is not taught to end"
    whole = LlavaPrompt(phantom, BYTE_0, 576, 7000).turn("Findings?", "normal " * 500)
    assert whole.tokens[:800] == turn.tokens and not whole.cut
    with pytest.raises(ValueError, match="max_length=600 leaves no room for an answer: the prompt alone has"):
        LlavaPrompt(phantom, BYTE_0, 576, 600).ask("Findings?")


def test_special_words_in_a_text_are_letters(phantom) -> None:
    from tokenizers import Tokenizer, models

    names = ["<unk>", "<s>", "</s>", *map(chr, range(32, 127)), "\n"]
    letters = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, [], unk_token="<unk>"))
    letters.add_special_tokens(["<unk>", "<s>", "</s>", "<image>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, bos_token="<s>", eos_token="</s>")
    turn = LlavaPrompt(tokenizer, len(names), 4).turn("<image> <s>?", "</s> <image> <unk>")
    assert [turn.tokens.count(token) for token in (0, 1, 2, len(names))] == [0, 1, 1, 4]
    assert tokenizer.convert_ids_to_tokens(turn.tokens[turn.prompt : -1]) == list(" </s> <image> <unk>")
    with pytest.raises(DataFault, match="character that stands for the image"):
        LlavaPrompt(phantom, BYTE_0, 4).turn("Findings?", "a \0 b")


def test_a_tokenizer_that_joins_prompt_and_answer_is_refused(phantom) -> None:
    from tokenizers import Tokenizer, models

    joining = Tokenizer(models.Unigram([("<unk>", 0.0), (": A", -1.0), (":", -9.0), (" ", -9.0)], unk_id=0))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=joining, bos_token="<unk>", eos_token="<unk>")
    with pytest.raises(ValueError, match="differently when an answer follows"):
        LlavaPrompt(tokenizer, 77, 1).turn("?", "A")


def test_padding() -> None:
    rows = [[5, 6, 7], [8]]
    assert padded(rows, 0, "right").tolist() == [[5, 6, 7], [8, 0, 0]]
    assert padded(rows, 0, "left").tolist() == [[5, 6, 7], [0, 0, 8]]
    assert padding_mask(rows, "left").tolist() == [[1, 1, 1], [0, 0, 1]]
    assert padding_mask([[0], [0, 0]], "right").tolist() == [[1, 0], [1, 1]], "padding is known by place, not by id"


def test_questions() -> None:
    assert len(set(QUESTIONS)) == 33 and all(one == one.strip() for one in QUESTIONS)
    assert pick_question(None) == QUESTIONS[0]
    drawn = [pick_question(random.Random(seed)) for seed in range(300)]
    assert drawn == [pick_question(random.Random(seed)) for seed in range(300)]
    assert len(set(drawn)) == 33


# Pixels.


@pytest.mark.parametrize("shape", [(61, 50), (50, 61), (48, 48), (97, 30), (1, 3)])
def test_pixels_equal_transformers(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    processor = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42}, return_tensors="np"
    )
    colour = np.repeat(image[..., None], 3, 2)
    expected = np.asarray(processor(colour, input_data_format="channels_last")["pixel_values"][0])
    found = llava_pixels(llava_view(image, 42))
    assert found.shape == (3, 42, 42) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_nothing_of_a_film_is_cut_off_as_the_hubs_processor_would() -> None:
    film = np.full((305, 254), 90, np.uint8)
    film[:20] = 255  # the apices
    hub = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    cropped = np.asarray(hub(np.repeat(film[..., None], 3, 2))["pixel_values"][0])
    assert cropped.max() < 1 < llava_pixels(llava_view(film)).max()
    middle, edge = llava_pixels(llava_view(film))[:, 336 // 2, [168, 0]].T
    np.testing.assert_allclose(edge, 0, atol=0.02)  # CLIP's mean colour
    assert np.abs(middle).max() > 0.1


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint16), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4), np.uint8)]
)
def test_other_images_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="8-bit grey"):
        llava_view(image)
