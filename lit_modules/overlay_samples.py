"""From a study to Overlay-SFT's batch: the film with the mask drawn on it, the prompt that says so, and the report."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from datamodules.radiograph import to_8_bit
from datamodules.study import Study
from lit_modules.nets.overlay import PROMPT_1, PROMPT_2, Overlay, draw_mask
from lit_modules.nets.vlm_encoding import IGNORED, VlmEncoder

REGION = "pneumothorax"  # whose mask is drawn
_GUIDED = "guided"  # the stored array that says whether it was


@dataclass(frozen=True)
class OverlayPreprocessor:
    """A study as image tensors and token ids; see `datamodules.report_datamodule.Preprocessor`.

    Attributes:
        encoder: The model's own reading of an image and of a turn.
        overlay: How the mask is drawn; `None`: it is not, and no prompt speaks of it.
    """

    encoder: VlmEncoder
    overlay: Overlay | None

    def settings(self) -> dict[str, Any]:
        """All that `arrays` depends on."""
        drawn = None if self.overlay is None else asdict(self.overlay)
        return {"arrays": "overlay_sft", "overlay": drawn, "encoder": self.encoder.settings()}

    def film(self, study: Study) -> tuple[np.ndarray, bool]:
        """What the model is shown, `(row, column, channel)`, uint8, as large as the film, and whether a mask is drawn.

        A film without pneumothorax, or without a mask, is shown as it is: Prompt 1 would be false about it.
        """
        assert study.image is not None, "a study that was read has its image"
        mask = None if self.overlay is None or study.masks is None else study.masks.get(REGION)
        guided = mask is not None and bool(mask.any())
        return draw_mask(to_8_bit(study.image), mask if guided else None, self.overlay or Overlay()), guided

    def arrays(self, study: Study) -> dict[str, np.ndarray]:
        """What the encoder makes of the film, and `guided` `(1,)`, uint8."""
        film, guided = self.film(study)
        return {**self.encoder.image_arrays(film), _GUIDED: np.array([guided], np.uint8)}

    def __call__(self, study: Study, arrays: Mapping[str, np.ndarray], rng: random.Random | None) -> dict[str, Any]:
        """One sample: the turn to learn, and in evaluation also the prompt to answer."""
        image = {name: values for name, values in arrays.items() if name != _GUIDED}
        prompt = PROMPT_1 if arrays[_GUIDED][0] else PROMPT_2
        sample: dict[str, Any] = {"id": study.id, "turn": self.encoder.sample(image, prompt, study.report or "")}
        sample["cut"] = self.encoder.is_cut(sample["turn"])
        if rng is None:
            sample["prompt"] = self.encoder.sample(image, prompt, None)
        return sample

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch.

        Its keys: `ids`; `turn`, what the model takes to learn, padded on the right, with `labels`; `prompt`, what it
        takes to answer, padded on the left, in evaluation; `learnt`, how far back from a turn's end its first label is;
        `cut`, the ids of studies whose report was too long.
        """
        batch: dict[str, Any] = {"ids": [sample["id"] for sample in samples]}
        batch["cut"] = [sample["id"] for sample in samples if sample["cut"]]
        batch["turn"] = self.encoder.collate([sample["turn"] for sample in samples], "right")
        learnt = (batch["turn"]["labels"][:, 1:] != IGNORED).any(0)  # nothing foretells a turn's first token
        batch["learnt"] = len(learnt) - min(learnt.nonzero().flatten().tolist(), default=0)
        if all("prompt" in sample for sample in samples):
            batch["prompt"] = self.encoder.collate([sample["prompt"] for sample in samples], "left")
        return batch
