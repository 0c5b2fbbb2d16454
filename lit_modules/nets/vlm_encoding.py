"""Films and texts → what a vision-language model reads, the same way for every family.

The image is read once: `image_arrays` keeps the image processor's resized pixels as the integers that they are, and
`sample` turns them into the processor's floats through a table of 256 values per channel, bit for bit. A prompt's ids
depend on the image through the number of its tokens alone.

The prompt and the answer are tokenized apart, so that training and generation see the same ids. The answer is followed
by the family's end of turn; with a limit on the length it is the answer that is cut, never the image's tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.study import SettingsFault
from lit_modules.nets.phantom_vlm import PHANTOM, PhantomVLM
from lit_modules.nets.phi3_vision_image import Phi3VisionImageProcessor, crops_of, hd_image
from lit_modules.nets.vlm import VlmProcessor, build_processor

IGNORED = -100  # a label that no loss counts
Side = Literal["left", "right"]


@dataclass(frozen=True)
class VlmEncoder:
    """What a model reads of a film and of a turn; small to pickle: its processor is loaded once in each process.

    Attributes:
        vlm: See `nets.vlm`.
        phantom: Its size, where it is a phantom.
        max_length: Positions of prompt, image and answer together.
        max_pixels: Pixels that the resized film may have, in families where its size decides over the number of image
            tokens (Qwen, Phi); `None`: as published.
        mask_prompt: No loss on the prompt. `False` counts it, but for the image's tokens.
    """

    vlm: str
    phantom: PhantomVLM = PHANTOM
    max_length: int | None = None
    max_pixels: int | None = None
    mask_prompt: bool = True

    @property
    def processor(self) -> VlmProcessor:
        """The model's."""
        return _processor(self.vlm, self.phantom, self.max_pixels)

    def settings(self) -> dict[str, Any]:
        """All that `image_arrays` depends on."""
        images = self.processor.image_processor
        # Through JSON: numbers, without the names that Pillow gives some of them.
        found = vars(images) if isinstance(images, Phi3VisionImageProcessor) else json.loads(images.to_json_string())
        return {"family": self.processor.family.model_type, "images": dict(found)}

    @property
    def ends(self) -> list[int]:
        """Ids that end an answer: the family's end of turn, and the end of a text."""
        tokenizer = self.processor.tokenizer
        ends = [self._id(self.processor.family.end_of_turn), tokenizer.eos_token_id]
        return list(dict.fromkeys(end for end in ends if end is not None))

    @property
    def pad(self) -> int:
        """The id of padding, which nothing reads."""
        pad = self.processor.tokenizer.pad_token_id
        return self.ends[-1] if pad is None else pad

    def _id(self, token: str) -> int:
        return self.processor.tokenizer.convert_tokens_to_ids(token)

    # Images.

    def image_arrays(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """What the model reads of an image; this is what is worth storing.

        Args:
            image: `(row, column, 3)`, uint8.

        Returns:
            `pixels`, uint8, `(part, 3, row, column)`: the one image, or Mllama's tiles; of Qwen `(patch, 3, pixel)`.
            Beside them, what says where parts lie. Of Phi `page` alone, `(row, column, 3)`, from which crops are cut.

        Raises:
            ValueError: It is no 8-bit colour image.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"expected an 8-bit image (row, column, 3), not {image.dtype} {image.shape}")
        images = self.processor.image_processor
        if isinstance(images, Phi3VisionImageProcessor):
            return {"page": hd_image(image, images.num_crops, images.crop)}
        found = images(
            images=[image], input_data_format="channels_last", do_rescale=False, do_normalize=False, return_tensors="np"
        )
        values = found["pixel_values"]
        pixels = values.astype(np.uint8)
        if not np.array_equal(pixels, values):
            raise ValueError(f"{self.vlm}: its image processor makes no 8-bit pixels")
        if "image_grid_thw" in found:
            # A film stands still: each patch comes twice, for two moments, and is kept once.
            moments = images.temporal_patch_size
            return {
                "pixels": pixels.reshape(len(pixels), 3, moments, -1)[:, :, 0],
                "image_grid_thw": found["image_grid_thw"],
            }
        beside = {key: found[key] for key in ("aspect_ratio_ids", "aspect_ratio_mask") if key in found}
        return {"pixels": pixels.reshape(-1, *pixels.shape[-3:]), **beside}

    def image_tensors(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """The image processor's own tensors of one image, a batch of one.

        Args:
            arrays: See `image_arrays`.
        """
        images = self.processor.image_processor
        if isinstance(images, Phi3VisionImageProcessor):
            page = np.array(arrays["page"])
            return {
                "pixel_values": crops_of(page, images.crop)[None],
                "image_sizes": torch.tensor([page.shape[:2]]),
            }
        pixels, table = np.asarray(arrays["pixels"]), _table(self.vlm, self.phantom)
        values = np.stack([table[channel][pixels[:, channel]] for channel in range(3)], axis=1)
        beside = {key: torch.from_numpy(np.array(arrays[key])) for key in arrays if key != "pixels"}
        if "image_grid_thw" in beside:
            values = np.repeat(values[:, :, None], images.temporal_patch_size, axis=2).reshape(len(values), -1)
        elif "aspect_ratio_mask" in beside:
            values[np.asarray(arrays["aspect_ratio_mask"])[0, 0] == 0] = 0  # tiles that the image does not fill
            values = values[None, None]
        return {"pixel_values": torch.from_numpy(values), **beside}

    def _image_tokens(self, arrays: Mapping[str, np.ndarray]) -> int:
        processor = self.processor
        if processor.image_tokens is not None:
            return processor.image_tokens
        if "page" in arrays:
            return processor.image_processor.image_tokens(*arrays["page"].shape[:2])
        return int(np.prod(arrays["image_grid_thw"])) // processor.image_processor.merge_size**2

    # Turns.

    def sample(self, arrays: Mapping[str, np.ndarray], prompt: str, answer: str | None) -> dict[str, Tensor]:
        """One turn, and its answer where there is one to learn.

        Args:
            arrays: See `image_arrays`.
            prompt: What the user says.
            answer: The report; `None` to have one written.

        Returns:
            `input_ids` `(position,)`; with an answer, `labels` `(position,)`; whatever else the family reads beside its
            ids, `(position, …)`; and the tensors of `image_tensors`.

        Raises:
            SettingsFault: Prompt and image leave no room for an answer.
        """
        family, tokenizer = self.processor.family, self.processor.tokenizer
        before, after = _prompt_ids(self.vlm, self.phantom, prompt)
        image = self._id(family.image_token)
        asked = [*before, *[image] * self._image_tokens(arrays), *after]
        told = [] if answer is None else _ids(tokenizer, answer, letters=True) + [self._id(family.end_of_turn)]
        if self.max_length is not None:
            if len(asked) >= self.max_length:
                advice = "raise model.max_length" + (" or bound the film (model.max_pixels)" if family.sized else "")
                raise SettingsFault(f"prompt and image take {len(asked)} of {self.max_length} positions: {advice}")
            told = told[: self.max_length - len(asked)]
        ids = torch.tensor(asked + told)
        sample = {"input_ids": ids}
        if answer is not None:
            counted = torch.arange(len(ids)) >= len(asked) if self.mask_prompt else ids != image
            sample["labels"] = ids.masked_fill(~counted, IGNORED)
        if family.token_types is not None:
            types = torch.where(ids == image, family.image_type, 0)
            types[len(asked) :] = family.answer_type
            sample[family.token_types] = types
        tensors = self.image_tensors(arrays)
        if "aspect_ratio_mask" in tensors:  # Mllama: from the image on, all that follows looks at its tiles
            seen = (ids == image).cumsum(0).clamp(max=1)
            sample["cross_attention_mask"] = seen[:, None, None] * tensors["aspect_ratio_mask"]
        return sample | tensors

    def is_cut(self, sample: Mapping[str, Tensor]) -> bool:
        """Whether the answer was too long and lost its end."""
        return int(sample["input_ids"][-1]) != self._id(self.processor.family.end_of_turn)

    def collate(self, samples: Sequence[Mapping[str, Tensor]], side: Side) -> dict[str, Tensor]:
        """The batch, ready for `model(**batch)`, or for `model.generate(**batch)` when padded on the left.

        Args:
            samples: Of `sample`, all with an answer or all without.
            side: Where shorter ones are padded.

        Returns:
            What the samples hold, with `(study, …)` before it; Qwen's patches follow one another without that axis.
            `attention_mask` `(study, position)` is 0 at padding.
        """
        masked = [{"attention_mask": torch.ones_like(sample["input_ids"]), **sample} for sample in samples]
        fills = {"input_ids": self.pad, "labels": IGNORED}
        along = {"attention_mask", "cross_attention_mask", self.processor.family.token_types, *fills}
        batch = {}
        for key in masked[0]:
            values = [sample[key] for sample in masked]
            if key in along:
                batch[key] = torch.stack(_padded(values, fills.get(key, 0), side))
            elif key == "pixel_values" and "image_sizes" in masked[0]:  # Phi: crops that an image has not are 0
                batch[key] = torch.stack(_padded([crops[0] for crops in values], 0, "right"))
            else:
                batch[key] = torch.cat(values)
        return batch

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The answer that generated ids hold: up to its end, without special tokens."""
        told = [int(one) for one in ids]
        end = next((place for place, one in enumerate(told) if one in self.ends), len(told))
        return self.processor.tokenizer.decode(told[:end], skip_special_tokens=True).strip()


def _ids(tokenizer: Any, text: str, letters: bool = False) -> list[int]:
    """A text's ids; with `letters`, what looks like a special token is read as the letters that it is."""
    # Special tokens are spelled out: a second <bos> would slip in.
    return tokenizer(text, add_special_tokens=False, split_special_tokens=letters)["input_ids"]


def _padded(values: Sequence[Tensor], fill: int, side: Side) -> list[Tensor]:
    """Tensors as long as the longest, along their first axis."""
    longest = max(map(len, values))
    found = []
    for value in values:
        padding = value.new_full((longest - len(value), *value.shape[1:]), fill)
        found.append(torch.cat([value, padding] if side == "right" else [padding, value]))
    return found


# Made once in each process.


@lru_cache(maxsize=8)
def _processor(vlm: str, phantom: PhantomVLM, max_pixels: int | None = None) -> VlmProcessor:
    processor = build_processor(vlm, phantom)
    if max_pixels is None:
        return processor
    if not processor.family.sized:
        kind = processor.family.model_type
        raise SettingsFault(f"model.max_pixels: a {kind} has as many image tokens for any film; leave it out")
    images = processor.image_processor
    if isinstance(images, Phi3VisionImageProcessor):
        images.num_crops = max(1, max_pixels // images.crop**2)
    else:
        # Numbers of pixels, whatever they are called.
        images.size = {"shortest_edge": min(images.size["shortest_edge"], max_pixels), "longest_edge": max_pixels}
    return processor


@lru_cache(maxsize=64)
def _prompt_ids(vlm: str, phantom: PhantomVLM, prompt: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids before the image's tokens and after them."""
    processor = _processor(vlm, phantom)
    before, after = (tuple(_ids(processor.tokenizer, piece)) for piece in processor.family.pieces(prompt))
    return before, after


@lru_cache(maxsize=8)
def _table(vlm: str, phantom: PhantomVLM) -> np.ndarray:
    """What the image processor makes of each value of a pixel, `(channel, 256)`, float32."""
    images = _processor(vlm, phantom).image_processor
    levels = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    found = images.rescale_and_normalize(
        levels.contiguous(),
        images.do_rescale,
        images.rescale_factor,
        images.do_normalize,
        tuple(images.image_mean),
        tuple(images.image_std),
    )
    return found.float().numpy()[:, 0]
