"""What LLaVA-1.5 reads and writes: its conversation ("v1"), token ids and labels, and an image's pixels.

Liu et al., arXiv:2310.03744; compared with `preprocess_v1`, `tokenizer_image_token` and `conv_vicuna_v1` of
https://github.com/haotian-liu/LLaVA (Apache-2.0):

    <s>SYSTEM USER: <image>\\nQUESTION ASSISTANT: ANSWER</s>

The text before and the text after the image are turned into ids by themselves, and all that is learnt is the answer and
`</s>`. transformers' chat template leaves the system sentence out, and its processor crops a radiograph to its middle
square; neither is used here.

Differs from the authors' code in: an answer that is too long is named, not cut in silence; `<image>` or `</s>` in a
text are read as the letters that they are.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.study import DataFault, SettingsFault
from lit_modules.nets.llava import IGNORED
from lit_modules.nets.llava_prompts import QUESTIONS

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
BEFORE, AFTER = f"{SYSTEM} USER: ", "\n{question} ASSISTANT:"
PADDING = (122, 116, 104)  # CLIP's mean colour, as whole numbers


@dataclass(frozen=True)
class Turn:
    """One question about one image, and what was answered.

    Attributes:
        tokens: Ids: prompt, then in training the answer and `</s>`.
        prompt: How many of them are the prompt's.
        cut: Whether the answer was too long; what is left of it has no end.
    """

    tokens: list[int]
    prompt: int
    cut: bool = False

    @property
    def labels(self) -> list[int]:
        """The answer and its end; `IGNORED` at the prompt."""
        return [IGNORED] * self.prompt + self.tokens[self.prompt :]


@dataclass(frozen=True)
class LlavaPrompt:
    """Turns questions and answers into ids.

    Attributes:
        tokenizer: LLaVA's.
        image: The id that stands where image tokens go (`LlavaConfig.image_token_id`).
        image_tokens: How many go there: CLIP's and those that the fusion adds.
        max_length: Longest sequence in training, image tokens and all (authors' scripts: 2048).
    """

    tokenizer: Any
    image: int
    image_tokens: int
    max_length: int = 2048

    def ask(self, question: str) -> Turn:
        """The prompt to generate after.

        Raises:
            SettingsFault: It leaves no room for an answer.
            DataFault: The question holds the character that stands for the image.
        """
        before, after = self._ids(BEFORE), self._ids(AFTER.format(question=question))
        tokens = [self.tokenizer.bos_token_id, *before, *[self.image] * self.image_tokens, *after]
        self._check(before + after)
        if len(tokens) >= self.max_length:
            raise SettingsFault(
                f"max_length={self.max_length} leaves no room for an answer: the prompt alone has {len(tokens)} tokens,"
                f" {self.image_tokens} of them the image's"
            )
        return Turn(tokens, len(tokens))

    def turn(self, question: str, answer: str) -> Turn:
        """A question with its answer, to learn. An answer that is too long loses its end, never the image a token.

        Raises:
            SettingsFault: The prompt leaves no room for an answer, or the tokenizer reads it differently when an answer
                follows.
            DataFault: A text holds the character that stands for the image.
        """
        asked, after = self.ask(question), AFTER.format(question=question)
        alone, whole = self._ids(after), self._ids(f"{after} {answer.strip()}".rstrip())
        if whole[: len(alone)] != alone:
            raise SettingsFault("the tokenizer reads the prompt differently when an answer follows it")
        self._check(whole)
        tokens = [*asked.tokens, *whole[len(alone) :], self.tokenizer.eos_token_id]
        return Turn(tokens[: self.max_length], asked.prompt, len(tokens) > self.max_length)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _check(self, ids: list[int]) -> None:
        if self.image in ids:
            raise DataFault("a text holds the character that stands for the image (byte 0): take it out")


def pick_question(rng: random.Random | None) -> str:
    """One of the 33 questions in training; without a generator the first, for evaluation (supplement, Table 3)."""
    return QUESTIONS[0] if rng is None else rng.choice(QUESTIONS)


def padded(rows: Sequence[Sequence[int]], fill: int, side: Literal["left", "right"]) -> Tensor:
    """Rows of ids as one `(study, position)`: padded on the right to learn (authors' code), on the left to generate.

    Args:
        rows: Ids or labels, one sequence for each study.
        fill: What to pad with.
        side: Where.
    """
    longest = max(map(len, rows))
    found = torch.full((len(rows), longest), fill, dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        found[index, where] = torch.tensor(row, dtype=torch.long)
    return found


def padding_mask(rows: Sequence[Sequence[int]], side: Literal["left", "right"]) -> Tensor:
    """`(study, position)`: 1 at a row's own ids, 0 at what `padded` adds."""
    return padded([[1] * len(row) for row in rows], 0, side)


def llava_view(image: np.ndarray, size: int = 336) -> np.ndarray:
    """What CLIP sees of a radiograph: `(size, size, channel)`, uint8.

    Centred on a square of CLIP's mean colour, then resized (bicubic): nothing is cut off ("pad" in the authors' code).

    Args:
        image: `(row, column)`, uint8.
        size: Pixels of a side.

    Raises:
        ValueError: The image is not grey, not 8-bit or empty.
    """
    if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"expected an 8-bit grey image (row, column), not {image.dtype} {image.shape}")
    rows, columns = image.shape
    side = max(rows, columns)
    square = Image.new("RGB", (side, side), PADDING)
    square.paste(Image.fromarray(image).convert("RGB"), ((side - columns) // 2, (side - rows) // 2))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))


def llava_pixels(view: np.ndarray) -> np.ndarray:
    """A view as CLIP takes it: normalised, `(channel, size, size)`, float32."""
    return np.stack([table[view[..., channel]] for channel, table in enumerate(_normalised())])


@lru_cache
def _normalised() -> np.ndarray:
    """`(channel, level)`: what each of the 256 levels becomes."""
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    mean, std = (np.array(values, np.float32)[:, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (levels - mean) / std
