"""How `checkpoints/phantom-gpt2` and `checkpoints/phantom-clip` were taught: small ones in the place of GPT-2 and CLIP.

RegionFormer keeps both frozen (paper §3): it needs a GPT-2 that writes and can be steered by what stands before the
text, and a CLIP whose embeddings tell pictures and masks apart. Both are taught on drawn patients of other seeds than
any dataset's, and know nothing clinical.

`language`: GPT-2 reads a prefix and writes one sentence of a radiograph's report, or several. In the place of the
prefix stand bags of words of the text to be written, with noise, some words lost, on some of its positions; now and
then noise alone. No image is involved: findings count as seen, on either side and at any height.

`vision`: CLIP's image side sees radiographs, and masks of the boxes of one sentence or of a box at random, one at a
time. From the embedding of a radiograph, linear heads say the words of all its sentences and where each label's boxes
are; from that of a mask, the words of its sentence and where the boxes are; from the tokens of single patches, which
labels are boxed there. The heads are thrown away. No text is read, and no radiograph is seen together with a mask.
300 patients are few: it knows what is large, and hardly anything of what is small.

    python -m lit_modules.nets.phantom_radiographs language --out checkpoints/phantom-gpt2
    python -m lit_modules.nets.phantom_radiographs vision --out checkpoints/phantom-clip
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import Progress, track
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from datamodules.masks import box_mask
from datamodules.phantom.patient import draw_patient
from datamodules.phantom.radiograph import radiograph
from datamodules.phantom.radiograph_wording import LABELS, Bounds, Sight, finding_sentences, vocabulary
from datamodules.radiograph import to_8_bit
from lit_modules.nets import backbones
from lit_modules.nets.caption_loss import caption_loss
from lit_modules.nets.clip_image import (
    PHANTOM,
    Fit,
    PhantomCLIP,
    build_vision_config,
    build_vision_model,
    clip_pixels,
    clip_view,
)
from lit_modules.nets.phantom_language import LOST, NOISE, content_words

# Patients drawn for CLIP, and others put into words for GPT-2; of either the last are not taught, but tell how well it
# went. Datasets draw seeds from 2**32 (crc32): a patient meets one of these by 4e-6.
DRAWN, DRAWN_UNSEEN, FIRST_DRAWN = 360, 60, 3_000_000
TOLD, TOLD_UNSEEN, FIRST_TOLD = 4000, 200, 3_001_400
FITS: tuple[Fit, ...] = ("pad", "crop")
SIDE = 112  # pixels of a view

GPT2 = backbones.PhantomSize(hidden=96, layers=3, heads=4, mlp=256, positions=128)
PREFIX = (4, 20)  # positions: the model must not count on one length
SEEN = 0.6  # share of the findings that are told
SIDES, THIRDS = (("right",), ("left",), ("right", "left")), ("upper", "middle", "lower", "")
REPORTS = 0.2  # share of the steps with texts of two to six sentences
SILENT = 0.1  # share of the lessons without a word in the prefix
LOUDEST = 4.0  # a prefix may be so much larger than words are, as a mapper's is at first

CLIP = PhantomCLIP(hidden=96, layers=3, heads=4, mlp=256, patch=16, image=SIDE, dim=96)
CELLS = 7  # rows and columns of the grid that an embedding tells boxes on
CROPPED = 0.2  # share of the steps that see the central square
SHIFT = 4  # pixels, at most
ALIKE = 0.3  # weight of the cosine between views of different patients
RARE = 4.0  # weight of what is nearly always absent


@dataclass(frozen=True)
class Radiographs:
    """Drawn patients as CLIP sees them, and what is said of them.

    Attributes:
        images: `(patient, fit, row, column)`, uint8; fits as in FITS.
        masks: `(sentence, fit, row, column)`, uint8, of the boxes of a sentence.
        owners: `(sentence,)`, the patient whom a sentence is about, rising.
        sentences: `(sentence,)`, text.
        labels: `(sentence,)`, the label that a sentence affirms; empty where it denies.
    """

    images: np.ndarray
    masks: np.ndarray
    owners: np.ndarray
    sentences: np.ndarray
    labels: np.ndarray

    def rows(self, patient: int) -> range:
        """A patient's sentences."""
        first, end = np.searchsorted(self.owners, [patient, patient + 1])
        return range(int(first), int(end))


def drawn(cache: Path, workers: int) -> Radiographs:
    """DRAWN patients; read from the cache where they were drawn before."""
    if not cache.is_file():
        seeds = range(FIRST_DRAWN, FIRST_DRAWN + DRAWN)
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            seen = list(track(pool.imap(views_of, seeds, chunksize=4), "drawing", total=DRAWN))
        images, masks, sentences, labels = zip(*seen, strict=True)
        owners = np.repeat(np.arange(DRAWN), [len(one) for one in sentences])
        parts = (np.stack(images), np.concatenate(masks), owners, np.concatenate(sentences), np.concatenate(labels))
        np.savez_compressed(cache, **vars(Radiographs(*parts)))
    with np.load(cache) as arrays:
        return Radiographs(**arrays)


def views_of(seed: int) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """One patient's `(fit, row, column)` image, `(sentence, fit, row, column)` masks, sentences and their labels."""
    patient = draw_patient(seed)
    study, sights = radiograph(patient)
    said = finding_sentences(patient, sights)
    assert study.image is not None
    height, width = study.image.shape
    grey = to_8_bit(study.image)
    masks = [255 * box_mask(sentence.boxes, width, height) for sentence in said]
    seen = [np.stack([clip_view(view, fit, SIDE) for fit in FITS]) for view in (grey, *masks)]
    return seen[0], np.stack(seen[1:]), [one.english for one in said], [one.label for one in said]


# Language.


def radiograph_tokenizer() -> Any:
    """Words of the radiographs' sentences, and bytes for all else; as GPT-2's, it adds nothing to a text."""
    from transformers import PreTrainedTokenizerFast

    words = backbones.word_tokenizer(f"▁{word}" for word in vocabulary() if word.isalpha())
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


@dataclass(frozen=True)
class Lesson:
    """A text to write.

    Attributes:
        tokens: The text.
        bags: Position of the prefix → the words whose embeddings are summed there.
    """

    tokens: list[int]
    bags: dict[int, list[int]]


def told(seed: int, rng: random.Random) -> list[str]:
    """A patient's sentences if some of the findings were seen, on any side and in any third of the lungs."""
    patient = draw_patient(seed)
    sights = [
        Sight(finding, tuple(Bounds((0, 0, 1, 1), side, rng.choice(THIRDS)) for side in rng.choice(SIDES)))
        for finding in patient.findings
        if finding.label in LABELS and rng.random() < SEEN
    ]
    return [sentence.english for sentence in finding_sentences(patient, sights)]


def lesson(sentences: list[list[int]], most: int, length: int, content: set[int], rng: random.Random) -> Lesson:
    """Some of a patient's sentences, told by their content words on some of the prefix's positions."""
    count = min(len(sentences), most)
    first = rng.randrange(len(sentences) - count + 1)
    tokens = [token for sentence in sentences[first : first + count] for token in sentence]
    silent, places = rng.random() < SILENT, rng.sample(range(length), rng.randint(1, length))
    bags: dict[int, list[int]] = {}
    for word in dict.fromkeys(tokens):
        if word in content and not silent and rng.random() >= LOST:
            bags.setdefault(rng.choice(places), []).append(word)
    return Lesson(tokens, bags)


def prefixes(words: Tensor, lessons: list[Lesson], length: int) -> Tensor:
    """What stands before the texts, `(lesson, position, dim)`; `words` are the embeddings, `(token, dim)`."""
    noise = torch.randn(len(lessons) * length, words.shape[1]) * words.detach().std()
    shown = [
        (index * length + place, word)
        for index, one in enumerate(lessons)
        for place, bag in one.bags.items()
        for word in bag
    ]
    place, word = torch.tensor(shown, dtype=torch.long).view(-1, 2).unbind(1)
    sums = torch.zeros_like(noise).index_add(0, place, words[word])
    sums = sums / place.bincount(minlength=len(noise)).clamp(min=1).sqrt()[:, None]
    mixed = (sums + noise * NOISE * torch.rand(len(noise), 1)).view(len(lessons), length, -1)
    return mixed * (1 + (LOUDEST - 1) * torch.rand(len(lessons), 1, 1))


def lesson_loss(model: Any, lessons: list[Lesson], length: int) -> Tensor:
    """Mean cross-entropy of the texts' tokens and their ends."""
    words = model.get_input_embeddings()
    texts = [torch.tensor([*one.tokens, model.config.eos_token_id]) for one in lessons]
    tokens, targets = pad_sequence(texts, batch_first=True), pad_sequence(texts, batch_first=True, padding_value=-100)
    seen = torch.cat((prefixes(words.weight, lessons, length), words(tokens[:, :-1])), dim=1)
    return caption_loss(model.transformer(inputs_embeds=seen).last_hidden_state, model.lm_head, targets, length)


def teach_language(out: Path, steps: int = 1500, batch: int = 32, lr: float = 3e-3) -> None:
    """Teaches GPT-2 and writes it, with its tokenizer, as a folder that `llm` can name.

    Args:
        out: The folder.
        steps: Optimizer steps.
        batch: Texts in a step, each of another patient.
        lr: AdamW's, at its highest (one cycle).
    """
    torch.manual_seed(0)
    rng, tokenizer = random.Random(0), radiograph_tokenizer()
    content = set(content_words(" ".join(vocabulary()), tokenizer))
    seeds = range(FIRST_TOLD, FIRST_TOLD + TOLD)
    texts = [[tokenizer(text)["input_ids"] for text in told(seed, rng)] for seed in track(seeds, "wording")]
    config = backbones.build_config("phantom:gpt2", GPT2, len(tokenizer))
    model = backbones.build_language_model(config, "phantom:gpt2", torch.float32, GPT2)
    nn.init.normal_(model.get_input_embeddings().weight, std=0.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)

    def loss_of(patients: range) -> Tensor:
        length, most = rng.randint(*PREFIX), rng.randint(2, 6) if rng.random() < REPORTS else 1
        chosen = rng.sample(patients, batch)
        lessons = [lesson(texts[patient], most, length, content, rng) for patient in chosen]
        return lesson_loss(model, lessons, length)

    with Progress() as bar:
        task = bar.add_task("teaching", total=steps)
        for step in range(steps):
            loss = loss_of(range(TOLD - TOLD_UNSEEN))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.update(task, advance=1, description=f"teaching, loss {loss.item():.3f}")
            if step % 200 == 199:
                bar.console.print(f"step {step + 1}: loss {loss.item():.3f}")
    with torch.no_grad():
        unseen = torch.stack([loss_of(range(TOLD - TOLD_UNSEEN, TOLD)) for _ in range(40)]).mean()
    print(f"loss on patients that were not taught: {unseen:.3f}")
    model.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)  # the method decides how to decode
    tokenizer.save_pretrained(out)


# Vision.


class Heads(nn.Module):
    """What is said of embeddings and patches while CLIP is taught; thrown away afterwards."""

    def __init__(self, words: int, labels: int) -> None:
        super().__init__()
        self.words, self.mask_words = nn.Linear(CLIP.dim, words), nn.Linear(CLIP.dim, words)
        self.where, self.mask_where = nn.Linear(CLIP.dim, labels * CELLS**2), nn.Linear(CLIP.dim, CELLS**2)
        self.patches = nn.Linear(CLIP.hidden, labels)
        for layer in (self.words, self.mask_words, self.where, self.mask_where, self.patches):
            nn.init.constant_(layer.bias, -3.0)  # nearly everything is absent
        # At first all embeddings are nearly one vector; what differs between views must be heard all the same.
        self.image_norm, self.mask_norm = (nn.BatchNorm1d(CLIP.dim, affine=False) for _ in range(2))


class Pictures:
    """Views to look at, and what is to be said of them.

    Attributes:
        words: `(sentence, word)` of zeros and ones; a column for every content word that occurs.
        labels: Names of the labels, in the order of `marks`.
    """

    def __init__(self, radiographs: Radiographs) -> None:
        self.radiographs, tokenizer = radiographs, radiograph_tokenizer()
        said = [content_words(text, tokenizer) for text in radiographs.sentences.tolist()]
        columns = {word: column for column, word in enumerate(sorted({word for words in said for word in words}))}
        self.words = torch.zeros(len(said), len(columns))
        for row, words in enumerate(said):
            self.words[row, [columns[word] for word in words]] = 1.0
        self.labels = sorted(set(radiographs.labels.tolist()) - {""})

    def image(self, patient: int, fit: int, rng: np.random.Generator) -> np.ndarray:
        """A radiograph, a little changed, `(channel, row, column)`."""
        grey = _shifted(self.radiographs.images[patient, fit], rng).astype(np.float32)
        grey = (grey - 128) * rng.uniform(0.8, 1.25) + 128 + rng.uniform(-20, 20)
        grey += rng.uniform(0, 8) * rng.standard_normal(grey.shape, np.float32)
        return clip_pixels(grey.clip(0, 255).astype(np.uint8), "pad", SIDE)

    def marks(self, patient: int, fit: int, cells: int) -> Tensor:
        """Which share of a cell a label's boxes cover, `(label, row of cells, column)`."""
        found = torch.zeros(len(self.labels), cells, cells)
        for row in self.radiographs.rows(patient):
            if label := self.radiographs.labels[row]:
                index = self.labels.index(label)
                found[index] = torch.maximum(found[index], covered(self.radiographs.masks[row, fit], cells))
        return found


def covered(mask: np.ndarray, cells: int) -> Tensor:
    """Which share of each cell is white, `(row of cells, column)`."""
    return F.adaptive_avg_pool2d(torch.from_numpy(mask).float()[None] / 255, cells)[0]


def _shifted(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    top, left = rng.integers(0, 2 * SHIFT + 1, 2)
    return np.pad(view, SHIFT)[top : top + SIDE, left : left + SIDE]


def look(model: Any, pixels: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Embeddings of length 1, `(view, dim)`, and the patches' tokens, `(view, patch, hidden)`."""
    seen = model(pixel_values=torch.from_numpy(np.stack(pixels)))
    return F.normalize(seen.image_embeds, dim=-1), seen.last_hidden_state[:, 1:]


def any_box(rng: np.random.Generator) -> np.ndarray:
    """The mask of a box of any size anywhere, `(row, column)`, uint8."""
    width, height = np.exp(rng.uniform(np.log(0.05), np.log(0.5), 2))
    x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    return box_mask([(x, y, x + width, y + height)], SIDE, SIDE) * np.uint8(255)


def picture_loss(model: Any, heads: Heads, pictures: Pictures, patients: list[int], rng: np.random.Generator) -> Tensor:
    """What is wrong about these patients' radiographs, the mask of one sentence of each, and as many other masks."""
    data, fit, count = pictures.radiographs, int(rng.random() < CROPPED), len(patients)
    rows = [int(rng.choice(data.rows(patient))) for patient in patients]
    views = [pictures.image(patient, fit, rng) for patient in patients]
    masks = [_shifted(data.masks[row, fit], rng) for row in rows] + [any_box(rng) for _ in rows]
    embeddings, tokens = look(model, views + [clip_pixels(mask, "pad", SIDE) for mask in masks])
    image, mask = heads.image_norm(embeddings[:count]), heads.mask_norm(embeddings[count:])
    alike = embeddings[:count].mean(0).square().sum() + embeddings[count:].mean(0).square().sum()
    marks = torch.stack([pictures.marks(patient, fit, SIDE // CLIP.patch) for patient in patients])
    said = torch.stack([pictures.words[list(data.rows(patient))].amax(0) for patient in patients])
    error = F.binary_cross_entropy_with_logits
    of_images = (
        error(heads.words(image), said)
        + RARE * error(heads.where(image), F.adaptive_max_pool2d(marks, CELLS).flatten(1))
        + RARE * error(heads.patches(tokens[:count]).mT, marks.flatten(2))
    )
    places = torch.stack([covered(one, CELLS) for one in masks]).flatten(1)
    of_masks = error(heads.mask_words(mask[:count]), pictures.words[rows]) + RARE * error(
        heads.mask_where(mask), places
    )
    return of_images + 2 * of_masks + ALIKE * alike


def teach_vision(out: Path, radiographs: Radiographs, epochs: int = 120, batch: int = 16, lr: float = 2e-3) -> None:
    """Teaches CLIP's image side and writes it as a folder that `clip` can name.

    Args:
        out: The folder.
        radiographs: What is looked at.
        epochs: Rounds over all patients.
        batch: Radiographs in a step; twice as many masks.
        lr: AdamW's, at its highest (one cycle).
    """
    torch.manual_seed(0)
    rng, pictures = np.random.default_rng(0), Pictures(radiographs)
    model = build_vision_model(build_vision_config(PHANTOM, CLIP), PHANTOM, CLIP).requires_grad_(True)
    nn.init.normal_(model.vision_model.embeddings.position_embedding.weight)  # so that places differ from the start
    heads = Heads(pictures.words.shape[1], len(pictures.labels))
    weights, rounds = [*model.parameters(), *heads.parameters()], (DRAWN - DRAWN_UNSEEN) // batch
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * rounds, pct_start=0.1)
    with Progress() as bar:
        task = bar.add_task("teaching", total=epochs * rounds)
        for epoch in range(epochs):
            order, total = rng.permutation(DRAWN - DRAWN_UNSEEN).tolist(), 0.0
            for start in range(0, rounds * batch, batch):
                loss = picture_loss(model, heads, pictures, order[start : start + batch], rng)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                schedule.step()
                total += loss.item()
                bar.update(task, advance=1)
            with torch.no_grad():
                unseen = picture_loss(model, heads, pictures, [*range(DRAWN - DRAWN_UNSEEN, DRAWN)], rng)
            model.save_pretrained(out)
            bar.console.print(f"round {epoch + 1}: loss {total / rounds:.4f}, of patients not taught {unseen:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["language", "vision"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    kept = Path(tempfile.gettempdir()) / f"phantom-radiographs-{DRAWN}.npz"
    parser.add_argument("--drawn", type=Path, default=kept, help="where the drawings are kept")
    chosen = parser.parse_args()
    if chosen.stage == "language":
        teach_language(chosen.out)
    else:
        teach_vision(chosen.out, drawn(chosen.drawn, chosen.workers))
