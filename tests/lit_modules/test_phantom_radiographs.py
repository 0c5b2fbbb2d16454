"""The small stand-ins for GPT-2 and CLIP on radiographs: how they are taught, and that they write and see."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.masks import box_mask
from datamodules.phantom.radiograph_wording import findings_in, vocabulary
from lit_modules.nets import phantom_radiographs
from lit_modules.nets.backbones import build_config, build_language_model, build_tokenizer
from lit_modules.nets.beam_search import beam_search
from lit_modules.nets.clip_image import build_vision_config, build_vision_model, clip_embeddings, clip_pixels
from lit_modules.nets.phantom_language import content_words
from lit_modules.nets.phantom_radiographs import (
    CLIP,
    GPT2,
    SIDE,
    Lesson,
    Pictures,
    Radiographs,
    drawn,
    lesson,
    lesson_loss,
    prefixes,
    radiograph_tokenizer,
    teach_language,
    teach_vision,
    told,
    views_of,
)

WRITER, EYE = "checkpoints/phantom-gpt2", "checkpoints/phantom-clip"
TEXTS = [
    "Small left pleural effusion.",
    "Nodule in the right upper lung field.",
    "Enlarged heart silhouette.",
    "No pneumothorax.",
    "Healed rib fracture on the left.",
]


@pytest.fixture(scope="module")
def writer():
    return build_language_model(build_config(WRITER, GPT2, 0), WRITER, torch.float32, GPT2).eval()


@pytest.fixture(scope="module")
def eye():
    return build_vision_model(build_vision_config(EYE, CLIP), EYE, CLIP)


def small_set() -> Radiographs:
    """Four patients with grey noise: an effusion at the lower left of the image, or nothing."""
    rng = np.random.default_rng(0)
    masks = np.zeros((6, 2, SIDE, SIDE), np.uint8)
    masks[[0, 4], :, 64:96, 16:48] = 255
    said = np.array(["Right pleural effusion.", "No cardiomegaly.", "No consolidation.", "No pneumothorax."])
    images = rng.integers(0, 256, (4, 2, SIDE, SIDE), np.uint8)
    labels = np.array(["Pleural effusion", "", "", "", "Pleural effusion", ""])
    return Radiographs(images, masks, np.array([0, 0, 1, 2, 3, 3]), said[[0, 1, 2, 3, 0, 3]], labels)


@pytest.mark.parametrize("text", [*TEXTS, "naïve  Ärzte,\n\t3 × 4 µm² 🫁", "<0x41> literally", ""])
def test_tokenizer_adds_nothing_and_reads_any_text_back(text: str) -> None:
    tokenizer = build_tokenizer(WRITER)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id} & set(ids)
    assert ids == radiograph_tokenizer()(text)["input_ids"], "the checkpoint's is the one made here"


def test_tokenizer_knows_the_words_and_ends_every_sentence_alike() -> None:
    tokenizer = build_tokenizer(WRITER)
    assert all(len(tokenizer.tokenize(word)) == 1 for word in vocabulary() if word.isalpha())
    assert len({tokenizer(text)["input_ids"][-1] for text in TEXTS}) == 1
    joined = [token for text in TEXTS for token in tokenizer(text)["input_ids"]]
    assert tokenizer(" ".join(TEXTS))["input_ids"] == joined


def test_a_patient_is_told_by_what_it_has() -> None:
    rng = random.Random(0)
    texts = [" ".join(told(seed, rng)) for seed in range(3_999_000, 3_999_040)]
    sides = {side for text in texts for side in ("left", "right", "both") if side in text.split()}
    assert sides == {"left", "right", "both"}
    assert len(frozenset().union(*map(findings_in, texts))) > 10


def test_a_lesson_shows_only_content_words_of_its_own_text() -> None:
    rng, sentences, content = random.Random(0), [[3, 4, 5, 9], [6, 7, 9], [4, 8, 9]], {3, 4, 5, 6, 7, 8}
    lessons = [lesson(sentences, most, 5, content, rng) for most in (1, 2, 9) for _ in range(200)]
    assert {tuple(one.tokens) for one in lessons[:200]} == set(map(tuple, sentences))
    assert {tuple(one.tokens) for one in lessons[400:]} == {(3, 4, 5, 9, 6, 7, 9, 4, 8, 9)}
    for one in lessons:
        shown = [word for bag in one.bags.values() for word in bag]
        assert set(one.bags) <= set(range(5)) and set(shown) <= set(one.tokens) & content
        assert len(set(shown)) == len(shown)
    assert 0.05 < np.mean([not one.bags for one in lessons]) < 0.2, "some are silent"


def test_prefix_holds_the_words_where_they_were_put(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phantom_radiographs, "NOISE", 0.0)
    words = torch.eye(6)
    shown = prefixes(words, [Lesson([1], {2: [3], 0: [4, 5]}), Lesson([1], {})], 3)
    scale = shown[0, 2, 3]
    expected = torch.stack(((words[4] + words[5]) / 2**0.5, torch.zeros(6), words[3]))
    torch.testing.assert_close(shown[0], expected * scale)
    assert 1 <= scale <= 4 and not shown[1].any()


def test_loss_is_that_of_transformers(writer, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = torch.randn(1, 6, GPT2.hidden)
    monkeypatch.setattr(phantom_radiographs, "prefixes", lambda words, lessons, length: shown)
    tokens = build_tokenizer(WRITER)(TEXTS[1])["input_ids"]
    text = torch.tensor([[*tokens, writer.config.eos_token_id]])
    embeds = torch.cat((shown, writer.get_input_embeddings()(text)), dim=1)
    with torch.no_grad():
        theirs = writer(inputs_embeds=embeds, labels=torch.cat((torch.full((1, 6), -100), text), dim=1)).loss
        ours = lesson_loss(writer, [Lesson(tokens, {})], 6)
    torch.testing.assert_close(ours, theirs)


def test_the_writer_is_steered_by_words_before_the_text(writer) -> None:
    tokenizer, rng = build_tokenizer(WRITER), random.Random(0)
    words, stop = writer.get_input_embeddings().weight, tokenizer.convert_tokens_to_ids(".")
    content = set(content_words(" ".join(vocabulary()), tokenizer))
    said = [tokenizer(text)["input_ids"] for seed in range(3_999_000, 3_999_020) for text in told(seed, rng)]
    shown = [Lesson([], {rng.randrange(8): [word for word in tokens if word in content]}) for tokens in said]
    torch.manual_seed(0)
    ids = beam_search(writer, prefixes(words, shown, 8), stop=stop).ids[:, 0].tolist()
    same = [set(row) & content == set(tokens) & content for row, tokens in zip(ids, said, strict=True)]
    assert np.mean(same) > 0.8, "the same content words, in whatever order"


def test_a_drawing_is_seen_as_the_method_shows_it(tmp_path: Path) -> None:
    image, masks, sentences, labels = views_of(3_999_001)
    assert image.shape == (2, SIDE, SIDE) and masks.shape == (len(sentences), 2, SIDE, SIDE)
    assert [findings_in(text) for text in sentences] == [frozenset({label} - {""}) for label in labels]
    assert not masks[[label == "" for label in labels]].any(), "a denial has no box"
    assert masks[[label != "" for label in labels]].any()
    np.savez(tmp_path / "kept.npz", **vars(small_set()))
    kept = drawn(tmp_path / "kept.npz", workers=1)
    assert [list(kept.rows(patient)) for patient in range(4)] == [[0, 1], [2], [3], [4, 5]]


def test_marks_say_where_which_label_is() -> None:
    pictures = Pictures(small_set())
    marks = pictures.marks(0, 0, 14)
    assert pictures.labels == ["Pleural effusion"] and marks.shape == (1, 14, 14)
    assert (marks[0, 8:12, 2:6] == 1).all() and marks.sum() == 16
    assert not pictures.marks(1, 0, 14).any()
    assert pictures.words.sum(1).tolist() == [3, 2, 2, 2, 3, 2]


def test_both_stages_write_folders_that_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"DRAWN": 4, "TOLD": 12, "DRAWN_UNSEEN": 2, "TOLD_UNSEEN": 2}.items():
        monkeypatch.setattr(phantom_radiographs, name, value)
    llm, clip = str(tmp_path / "gpt2"), str(tmp_path / "clip")
    teach_language(Path(llm), steps=2, batch=2)
    model = build_language_model(build_config(llm, GPT2, 0), llm, torch.float32, GPT2)
    assert model.config.vocab_size == len(build_tokenizer(llm))
    teach_vision(Path(clip), small_set(), epochs=1, batch=2)
    tower = build_vision_model(build_vision_config(clip, CLIP), clip, CLIP)
    assert clip_embeddings(tower, torch.zeros(1, 3, SIDE, SIDE)).shape == (1, CLIP.dim)


def test_the_eye_tells_where_a_box_is(eye) -> None:
    rng, boxes = np.random.default_rng(0), []
    for _ in range(160):
        x, y = rng.uniform(0, 0.8, 2)
        boxes.append((x, y, x + rng.uniform(0.05, 0.2), y + rng.uniform(0.05, 0.2)))
    pixels = torch.from_numpy(np.stack([clip_pixels(255 * box_mask([box], 300, 340), "pad", SIDE) for box in boxes]))
    with torch.inference_mode():
        seen = torch.cat((clip_embeddings(eye, pixels), torch.ones(len(boxes), 1)), dim=1)
    place = torch.tensor(np.array(boxes), dtype=torch.float32)
    taught, asked = seen[:120], seen[120:]
    ridge = torch.linalg.solve(taught.mT @ taught + 1e-3 * torch.eye(taught.shape[1]), taught.mT @ place[:120])
    error = (asked @ ridge - place[120:]).abs().mean()
    assert error < 0.08, "of the image's side; the mean of all boxes is off by 0.19"
