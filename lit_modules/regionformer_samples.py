"""From a study to RegionFormer's batch: CLIP's embedding of the radiograph, that of its boxes, and the sentence.

CLIP is frozen, so its embeddings are what is stored. Within a process each image and each set of boxes is embedded
once, however many sentences belong to it, and so is the black mask of all sentences without boxes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from datamodules.masks import Box, box_mask
from datamodules.radiograph import to_8_bit
from datamodules.study import Study
from lit_modules.nets.clip_image import (
    Fit,
    PhantomCLIP,
    build_vision_config,
    build_vision_model,
    clip_embeddings,
    clip_pixels,
)
from lit_modules.nets.weights_hash import weights_hash

Input = Literal["image", "mask", "image+mask"]
IGNORED = -100  # a target that no loss counts


@dataclass(frozen=True)
class Eyes:
    """The frozen encoder and how images are brought to it.

    Attributes:
        clip: See `nets.clip_image`.
        phantom: Its size, where it is `phantom:clip`.
        fit: `crop` or `pad`, see `nets.clip_image`.
    """

    clip: str
    phantom: PhantomCLIP
    fit: Fit

    def model(self) -> Any:
        """The encoder on the CPU, built once for each process."""
        return _encoder(self.clip, self.phantom)

    def sha256(self) -> str:
        """Of the encoder's weights."""
        return _encoder_hash(self.clip, self.phantom)

    def image_pixels(self, image: np.ndarray) -> Tensor:
        """A radiograph's own grey values `(row, column)` → `(channel, size, size)`."""
        return torch.from_numpy(clip_pixels(to_8_bit(image), self.fit, self._size))

    def mask_pixels(self, boxes: tuple[Box, ...], width: int, height: int) -> Tensor:
        """Boxes on an image of that size → `(channel, size, size)`: white inside, black outside (paper §3.5.3)."""
        return torch.from_numpy(clip_pixels(box_mask(boxes, width, height) * np.uint8(255), self.fit, self._size))

    def image_embedding(self, image: np.ndarray) -> np.ndarray:
        """`(dim,)`, of length 1, float32."""
        return _image_embedding(self, image.tobytes(), image.shape, image.dtype.str)

    def mask_embedding(self, boxes: tuple[Box, ...], width: int, height: int) -> np.ndarray:
        """`(dim,)`, of length 1, float32; the same for no boxes whatever the size."""
        return _mask_embedding(self, boxes, *((width, height) if boxes else (1, 1)))

    @property
    def _size(self) -> int:
        return self.model().config.image_size


@lru_cache(maxsize=2)
def _encoder(clip: str, phantom: PhantomCLIP) -> Any:
    return build_vision_model(build_vision_config(clip, phantom), clip, phantom)


@lru_cache(maxsize=2)
def _encoder_hash(clip: str, phantom: PhantomCLIP) -> str:
    return weights_hash(_encoder(clip, phantom))


@lru_cache(maxsize=4)
def _image_embedding(eyes: Eyes, content: bytes, shape: tuple[int, int], dtype: str) -> np.ndarray:
    return _embedding(eyes, eyes.image_pixels(np.frombuffer(content, dtype).reshape(shape)))


@lru_cache(maxsize=256)
def _mask_embedding(eyes: Eyes, boxes: tuple[Box, ...], width: int, height: int) -> np.ndarray:
    return _embedding(eyes, eyes.mask_pixels(boxes, width, height))


def _embedding(eyes: Eyes, pixels: Tensor) -> np.ndarray:
    with torch.inference_mode():
        found = clip_embeddings(eyes.model(), pixels[None])[0].numpy()
    found.flags.writeable = False  # several studies share it
    return found


def boxes_of(study: Study) -> tuple[Box, ...]:
    """All boxes of a study, in their order."""
    return tuple(box for boxes in (study.boxes or {}).values() for box in boxes)


@dataclass(frozen=True)
class RegionFormerPreprocessor:
    """A finding as embeddings and token ids; see `datamodules.report_datamodule.Preprocessor`.

    Attributes:
        eyes: The encoder.
        input: What the mapper is given.
        unit_norm: Bring the two embeddings together to length 1.
        tokenizer: The language model's.
        end: The token put after the text, which ends it; `None` where the text's own last token does.
        max_length: Longest text in training, tokens.
    """

    eyes: Eyes
    input: Input
    unit_norm: bool
    tokenizer: Any
    end: int | None
    max_length: int

    def settings(self) -> dict[str, Any]:
        """All that `arrays` depends on. What is shown of it is chosen later, so the three inputs share one store."""
        return {"arrays": "clip_embeddings", "weights": self.eyes.sha256(), "fit": self.eyes.fit, "dtype": "float32"}

    def arrays(self, study: Study) -> dict[str, np.ndarray]:
        """`image` and `mask`, each `(dim,)`, of length 1."""
        assert study.image is not None, "a study that was read has its image"
        height, width = study.image.shape
        return {
            "image": self.eyes.image_embedding(study.image),
            "mask": self.eyes.mask_embedding(boxes_of(study), width, height),
        }

    def embedding(self, image: Tensor, mask: Tensor) -> Tensor:
        """What the mapper is given, `(…, prefix_size)`, from both embeddings `(…, dim)`.

        Each has length 1, so together √2: so it is in the authors' code, although §3.1 says 1 (`unit_norm`).
        """
        if self.input != "image+mask":
            return image if self.input == "image" else mask
        both = torch.cat((image, mask), -1)
        return both / 2**0.5 if self.unit_norm else both

    def __call__(self, study: Study, arrays: Mapping[str, np.ndarray], rng: random.Random | None) -> dict[str, Any]:
        """One sample; nothing in it is random."""
        tokens = self.tokens(study.report or "")
        image, mask = (torch.from_numpy(np.array(arrays[name])) for name in ("image", "mask"))
        return {
            "id": study.id,
            "embedding": self.embedding(image, mask),
            "tokens": torch.tensor(tokens[: self.max_length], dtype=torch.long),
            "cut": len(tokens) > self.max_length,
        }

    def tokens(self, text: str) -> list[int]:
        """The text's token ids, no start token before them (authors' code)."""
        ids = self.tokenizer(text.strip(), add_special_tokens=False)["input_ids"] if text.strip() else []
        return ids if self.end is None else [*ids, self.end]

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch.

        Its keys: `ids`; `embedding` `(study, prefix_size)`; `tokens` `(study, token)`, padded on the right with
        `IGNORED` to the longest; `cut`, the ids of studies whose text was too long.
        """
        return {
            "ids": [sample["id"] for sample in samples],
            "embedding": torch.stack([sample["embedding"] for sample in samples]),
            "tokens": pad_sequence([sample["tokens"] for sample in samples], True, IGNORED),
            "cut": [sample["id"] for sample in samples if sample["cut"]],
        }
