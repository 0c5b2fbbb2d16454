"""How `checkpoints/phantom-llama` was taught: a small LLaMA that reads, in the place of one pretrained on text.

The papers start from a language model that already writes sentences and looks things up in its context; from random
weights that alone would take longer than the whole training on the phantom. So a small model is taught the phantom's
words, and to refer: it sees the method's own prompt, but in the place of a region's visual embeddings stand bags of the
words that its report will use (and the region's name in the place of its mask), and writes the report. No image is
involved, and each patient is drawn once: nothing of a later training or evaluation is learnt here but language.

    python -m lit_modules.nets.phantom_language --out checkpoints/phantom-llama
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor, nn

from datamodules.phantom.patient import draw_patient
from datamodules.phantom.wording import word_report
from lit_modules.nets import backbones
from lit_modules.nets.prompt import Prompt, add_special_tokens, splice
from lit_modules.nets.visual_embedding import FRAME

FIRST_PATIENT = 1_000_000  # datasets draw seeds from 2**32 (crc32): a patient meets one of these by 4e-6
FUNCTION_WORDS = frozenset(
    ["the", "of", "a", "an", "is", "are", "in", "and", "was", "to", "with", "at", "there", "on", "or", "by"]
)
LOST = 0.05  # share of the words that no embedding tells: some must be guessed, as from a picture
NOISE = 0.6  # of an embedding, relative to the words', at most


@dataclass(frozen=True)
class Lesson:
    """One report to write.

    Attributes:
        tokens: Prompt, target, end.
        prompt: Tokens of the prompt alone.
        bags: Row of a special token → the words whose embeddings are summed there.
    """

    tokens: list[int]
    prompt: int
    bags: dict[int, list[int]]


def lesson(seed: int, regions_at_most: int, prompt: Prompt, tokenizer: Any) -> Lesson:
    """A patient's report, some of its regions, in any order."""
    rng = random.Random(seed)
    report = word_report(draw_patient(seed))
    regions = rng.sample(sorted(report), min(len(report), rng.randint(1, regions_at_most)))
    bags: dict[int, list[int]] = {}
    everything: list[int] = []
    for index, region in enumerate(regions):
        words = content_words(report[region], tokenizer)
        first = FRAME + prompt.latents + index * prompt.stride
        bags |= _spread(words, first, prompt.latents, rng)
        bags[first + prompt.latents] = tokenizer(region, add_special_tokens=False)["input_ids"]
        everything += rng.sample(words, min(3, len(words)))
    bags |= _spread(everything, FRAME, prompt.latents, rng)
    question = prompt.question(len(regions))
    target = prompt.target([(region, report[region]) for region in regions])
    tokens = [*tokenizer(f"{question} {target}")["input_ids"], tokenizer.eos_token_id]
    return Lesson(tokens, len(tokenizer(question)["input_ids"]), bags)


def content_words(text: str, tokenizer: Any) -> list[int]:
    """The words that carry what a sentence says, once each."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    words = {token: tokenizer.convert_ids_to_tokens(token).strip("▁").lower() for token in ids}
    return [token for token, word in words.items() if word.isalnum() and word not in FUNCTION_WORDS]


def _spread(words: list[int], first: int, rows: int, rng: random.Random) -> dict[int, list[int]]:
    """Words over `rows` bags; an empty bag repeats some."""
    bags: dict[int, list[int]] = {first + row: [] for row in range(rows)}
    for word in words:
        if rng.random() >= LOST:
            bags[first + rng.randrange(rows)].append(word)
    return {row: bag or rng.sample(words, min(len(words), 2)) for row, bag in bags.items()}


def lesson_loss(model: Any, lessons: list[Lesson], special: int, rows: int) -> Tensor:
    """Mean cross-entropy of the reports' tokens."""
    words = model.get_input_embeddings()
    longest = max(len(one.tokens) for one in lessons)
    tokens = torch.zeros(len(lessons), longest, dtype=torch.long)
    labels = torch.full_like(tokens, -100)
    shown = torch.randn(len(lessons), rows, words.weight.shape[1]) * words.weight.detach().std()
    shown = shown * NOISE * torch.rand(len(lessons), rows, 1)
    for index, one in enumerate(lessons):
        tokens[index, : len(one.tokens)] = torch.tensor(one.tokens)
        labels[index, one.prompt : len(one.tokens)] = torch.tensor(one.tokens[one.prompt :])
        flat = torch.tensor([word for bag in one.bags.values() for word in bag])
        lengths = torch.tensor([len(bag) for bag in one.bags.values()])
        sums = F.embedding_bag(flat, words.weight, lengths.cumsum(0) - lengths, mode="sum")
        shown[index, list(one.bags)] += sums / lengths.clamp(min=1).sqrt()[:, None]
    hidden = model.model(inputs_embeds=splice(tokens, words, shown, special)).last_hidden_state[:, :-1]
    asked = labels[:, 1:] != -100
    return F.cross_entropy(model.lm_head(hidden[asked]), labels[:, 1:][asked])


def teach(
    out: Path, steps: int, batch: int = 8, latents: int = 4, lr: float = 3e-3, size: backbones.PhantomSize | None = None
) -> None:
    """Teaches a model and writes it, with its tokenizer, as a folder that `llm` can name.

    Args:
        out: The folder.
        steps: Optimizer steps; the number of regions shown grows from 2 to all in the first third.
        batch: Reports in a step.
        latents: Embeddings of one volume.
        lr: AdamW's, warmed up over 100 steps, falling to nothing over the last 40 %.
        size: The model's.
    """
    torch.manual_seed(0)
    size = size or backbones.PhantomSize(layers=3)
    prompt = Prompt(latents)
    tokenizer = backbones.build_tokenizer("phantom:llama")
    special = add_special_tokens(tokenizer, prompt)
    config = backbones.build_config("phantom:llama", size, special)
    model = backbones.build_language_model(config, "phantom:llama", torch.float32, size)
    nn.init.normal_(model.get_input_embeddings().weight, std=0.3)  # as large as visual embeddings are
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    with Progress() as bar:
        task = bar.add_task("teaching", total=steps)
        for step in range(steps):
            warm, cool = min(1.0, (step + 1) / 100), min(1.0, (steps - step) / (0.4 * steps))
            for group in optimizer.param_groups:
                group["lr"] = lr * warm * cool
            shown = 2 + 24 * step // steps
            first = FIRST_PATIENT + step * batch
            lessons = [lesson(seed, shown, prompt, tokenizer) for seed in range(first, first + batch)]
            loss = lesson_loss(model, lessons, special, len(prompt.tokens))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            bar.update(task, advance=1, description=f"teaching, loss {loss.item():.3f}")
            if step % 100 == 99:
                bar.console.print(f"step {step + 1}: loss {loss.item():.3f}")
                _write(out, model)
    _write(out, model)


def _write(out: Path, model: Any) -> None:
    model.to(torch.float32).save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)  # the method decides how to decode
    backbones.build_tokenizer("phantom:llama").save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1800)
    chosen = parser.parse_args()
    teach(chosen.out, chosen.steps)
