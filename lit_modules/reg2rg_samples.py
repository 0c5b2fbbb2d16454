"""From a study to Reg2RG's batch: crops and masks, prompt, target."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from datamodules.study import Study
from lit_modules.nets.prompt import REGIONS_AT_MOST, Prompt
from lit_modules.nets.region_crops import GLOBAL, pack, region_crops, regions_of
from lit_modules.nets.visual_embedding import FRAME

IGNORED = -100  # a label that no loss counts


@dataclass(frozen=True)
class Reg2RGPreprocessor:
    """A study's regions as tensors and text; see `datamodules.report_datamodule.Preprocessor`.

    Attributes:
        size: Height, width and depth of volumes, crops and masks, in voxels.
        decouple: Crop each region to its own box (LFD).
        volume_dtype: What volumes are stored in; bfloat16 training rounds them to bfloat16 anyway.
        prompt: What is shown and asked for.
        tokenizer: With the prompt's special tokens.
        max_length: Longest sequence in training, in tokens.
        prompted_at_test: Regions shown in evaluation.
    """

    size: tuple[int, int, int]
    decouple: bool
    volume_dtype: Literal["float32", "bfloat16"]
    prompt: Prompt
    tokenizer: Any
    max_length: int
    prompted_at_test: Literal["masked", "reported"]

    def settings(self) -> dict[str, Any]:
        """All that `arrays` depends on. What is shown of it is chosen later, so ablations share one store."""
        return {
            "arrays": "region_crops",
            "size": list(self.size),
            "decouple": self.decouple,
            "dtype": self.volume_dtype,
        }

    def arrays(self, study: Study) -> dict[str, np.ndarray]:
        """The whole volume, every region's crop and every region's mask, packed."""
        assert study.volume is not None and study.masks is not None, "a study that was read has its volume and masks"
        crops = region_crops(study.volume, study.masks, self.size, self.decouple, geometry=self.decouple)
        return pack(crops, self.volume_dtype)

    def __call__(self, study: Study, arrays: Mapping[str, np.ndarray], rng: random.Random | None) -> dict[str, Any]:
        """One sample; regions are shuffled where `rng` is given (paper §III-D)."""
        reports = {region: text for region, text in sorted((study.regions or {}).items()) if text.strip()}
        regions = sorted(region for region in regions_of(arrays) if f"volume/{region}" in arrays)
        if rng is not None or self.prompted_at_test == "reported":
            regions = [region for region in regions if region in reports]
        if rng is not None and self.prompt.align:
            rng.shuffle(regions)
        if not self.prompt.shows_regions:
            regions = []
        if len(regions) > REGIONS_AT_MOST:
            raise ValueError(f"{study.id} has {len(regions)} regions: the method has tokens for {REGIONS_AT_MOST}")
        spoken = [
            (region, reports.get(region, ""))
            for region in regions or (reports if not self.prompt.shows_regions else ())
        ]
        question = self.prompt.question(len(regions))
        prompt, tokens = self._ids(question), self._ids(f"{question} {self.prompt.target(spoken)}")
        tokens = [*tokens, self.tokenizer.eos_token_id]
        special = len(self.tokenizer) - len(self.prompt.tokens)
        labels = [IGNORED] * len(prompt) + [IGNORED if token >= special else token for token in tokens[len(prompt) :]]
        return {
            "id": study.id,
            "regions": regions,
            "pixels": {
                key: torch.from_numpy(np.require(a, requirements="W"))
                for key, a in arrays.items()
                if self._shown(key, regions)
            },
            "prompt": torch.tensor(prompt),
            "tokens": torch.tensor(tokens[: self.max_length]),
            "labels": torch.tensor(labels[: self.max_length]),
            "cut": len(tokens) > self.max_length,
        }

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def _shown(self, key: str, regions: list[str]) -> bool:
        kind, name, *_ = key.split("/")
        if name == GLOBAL:
            return self.prompt.global_context
        return name in regions and (self.prompt.texture if kind == "volume" else self.prompt.geometry)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch.

        Its keys: `ids`; `regions` of each study in the order shown; `pixels` of each study, packed; `volume_rows` and
        `mask_rows` `(volume or mask, 2)`: the study and the first of its rows that each one fills; `tokens` and
        `labels` `(study, position)`, padded on the right to the longest; `prompt` and `prompt_mask`, padded on the
        left; `cut`, the ids of studies whose sequence was too long.
        """
        latents, stride = self.prompt.latents, self.prompt.stride
        volume_rows, mask_rows = [], []
        for study, sample in enumerate(samples):
            first = [FRAME + latents + slot * stride for slot in range(len(sample["regions"]))]
            volume_rows += [(study, FRAME)] * self.prompt.global_context
            volume_rows += [(study, row) for row in first] * self.prompt.texture
            mask_rows += [(study, row + latents) for row in first] * self.prompt.geometry
        pad = self.tokenizer.pad_token_id
        prompts = [sample["prompt"] for sample in samples]
        return {
            "ids": [sample["id"] for sample in samples],
            "regions": [sample["regions"] for sample in samples],
            "pixels": [sample["pixels"] for sample in samples],
            "volume_rows": torch.tensor(volume_rows, dtype=torch.long).view(-1, 2),
            "mask_rows": torch.tensor(mask_rows, dtype=torch.long).view(-1, 2),
            "tokens": pad_sequence([sample["tokens"] for sample in samples], True, pad),
            "labels": pad_sequence([sample["labels"] for sample in samples], True, IGNORED),
            "prompt": pad_sequence(prompts, True, pad, padding_side="left"),
            "prompt_mask": pad_sequence([torch.ones_like(ids) for ids in prompts], True, 0, padding_side="left"),
            "cut": [sample["id"] for sample in samples if sample["cut"]],
        }
