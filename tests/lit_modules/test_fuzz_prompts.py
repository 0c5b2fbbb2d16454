"""Drawn texts for what reads a language model's text back, and for what turns texts into prompts."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from datamodules.masks import REGIONS
from datamodules.study import DataFault
from lit_modules.nets.llava import BYTE_0, build_llava_tokenizer
from lit_modules.nets.llava_prompt import LlavaPrompt
from lit_modules.nets.prompt import Prompt, without_prefixes
from tests.fuzz import fuzz
from zoo.metrics.regions import named_regions, regions_in, split_regions

PIECES = st.one_of(
    st.sampled_from(["The region 0 is ", "The region 1 is lung: ", "The region 11", " is ", ":", ": ", "\n", "heart"]),
    st.sampled_from(REGIONS),
    st.text(max_size=8),
)
GENERATED = st.lists(PIECES, max_size=12).map("".join)
SENTENCES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(
    lambda said: "The region" not in said and "<" not in said
)
REPORTS = st.lists(st.tuples(st.sampled_from(REGIONS), SENTENCES), max_size=10, unique_by=lambda pair: pair[0])


def is_left_of(said, text):
    """Whether taking characters out of a text gives what is said, white space aside."""
    rest = iter(text)
    return all(character in rest for character in said if not character.isspace())


@fuzz(200)
@given(GENERATED, st.lists(st.sampled_from(REGIONS), max_size=4, unique=True))
@example("The region " + "1" * 5000 + " is lung: Clear.", ["lung"])
@example("The region 0 is The region 0 is lung: Clear. The region 0 is lung: Large.", ["lung"])
def test_any_generated_text_gives_each_region_passages_of_itself(text, regions):
    rows = Prompt().parse(text, regions)
    assert [region for region, _, _ in rows] == regions
    for _, name, said in rows:
        assert name is None or name in text
        assert is_left_of(said, text) and "The region 0 is lung:" not in said


@fuzz(150)
@given(REPORTS)
def test_what_was_written_is_read_back(reports):
    text = Prompt().target(reports)
    assert Prompt().parse(text, [region for region, _ in reports]) == [
        (region, region, said.strip()) for region, said in reports
    ]
    assert without_prefixes(text) == " ".join(" ".join(said for _, said in reports).split())


@fuzz(150)
@given(GENERATED)
def test_a_report_without_prefixes_is_the_text_with_something_taken_out(text):
    assert is_left_of(without_prefixes(text), text)


@fuzz(150)
@given(GENERATED)
def test_any_texts_regions_are_passages_of_it(text):
    regions = regions_in([text])
    assert all(f"is {region}:" in text for region in regions) and all(name in text for name in named_regions(text))
    for region, said in split_regions(text, regions).items():
        assert region in regions and said.strip()


@fuzz(100)
@given(st.dictionaries(st.sampled_from(REGIONS), SENTENCES.filter(str.strip), max_size=5))
def test_regions_are_split_as_they_were_written(said):
    text = Prompt().target(list(said.items()))
    assert split_regions(text, REGIONS) == {region: words.strip() for region, words in said.items()}


@pytest.fixture(scope="module")
def llava():
    return LlavaPrompt(build_llava_tokenizer("phantom:llava"), BYTE_0, image_tokens=3, max_length=600)


# Without "</s>", which is a word of the phantom's tokenizer; LLaVA's own has none for it (test_llava_prompt).
SAID = st.lists(
    st.sampled_from(["<image>", " USER: ", " ASSISTANT:", "\n"])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    max_size=6,
).map("".join)


@fuzz(150)
@given(SAID, SAID)
@example("<image>", "<image> ASSISTANT: ")
@example("a", "\0")
def test_any_question_and_answer_hold_one_image_and_one_end(llava, question, answer):
    try:
        turn = llava.turn(question, answer)
    except DataFault as fault:
        assert "\0" in question + answer and "byte 0" in str(fault)
        return
    start, end, image = llava.tokenizer.bos_token_id, llava.tokenizer.eos_token_id, llava.image
    assert [turn.tokens.count(each) for each in (start, end, image)] == [1, 1, 3] and not turn.cut
    learnt = [label for label in turn.labels if label >= 0]
    assert learnt == turn.tokens[turn.prompt :] and learnt[-1] == end
    said = llava.tokenizer.decode(learnt[:-1], clean_up_tokenization_spaces=False)
    assert said.strip() == answer.strip()
