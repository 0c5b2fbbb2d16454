"""From a study to ASaRG's batch: CLIP's view of the film, LVM-Med's features, pooled segmentation maps, a question."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch

from datamodules.cxas_classes import CXAS, PAPER, SUPERCLASSES
from datamodules.radiograph import to_8_bit
from datamodules.study import DataFault, Study
from lit_modules.nets.llava import IGNORED
from lit_modules.nets.llava_prompt import (
    LlavaPrompt,
    llava_pixels,
    llava_view,
    padded,
    padding_mask,
    pick_question,
)
from lit_modules.nets.lvm_med import PhantomResNet, build_resnet, build_resnet_config, resnet_features, resnet_pixels
from lit_modules.nets.pooled_maps import Frame, pooled_maps
from lit_modules.nets.weights_hash import weights_hash

Classes = Literal["paper", "cxas", "superclasses"]
NAMES: Mapping[str, tuple[str, ...]] = {"paper": PAPER, "cxas": CXAS, "superclasses": tuple(SUPERCLASSES)}


@lru_cache(maxsize=2)
def _resnet(resnet: str, phantom: PhantomResNet) -> Any:
    return build_resnet(build_resnet_config(resnet, phantom), resnet, phantom)


@dataclass(frozen=True)
class AsargPreprocessor:
    """A study as pixels, features, maps and token ids; see `datamodules.report_datamodule.Preprocessor`.

    Attributes:
        prompt: Question and answer as ids.
        size: Pixels of a side of what CLIP sees.
        resnet: See `nets.lvm_med`; `None` where features are not fused.
        phantom_resnet: Its size, where it is `phantom:resnet`.
        classes: Whose maps are fused; `None` where none are.
        grid: Rows and columns of a pooled map.
        frame: What a map's grid covers, see `nets.pooled_maps`.
        shuffle_maps: In evaluation, give the maps in another order than in training (§5.3): drawn from this seed, the
            same for all studies. `None`: in their own.
    """

    prompt: LlavaPrompt
    size: int
    resnet: str | None
    phantom_resnet: PhantomResNet
    classes: Classes | None
    grid: int
    frame: Frame
    shuffle_maps: int | None

    def settings(self) -> dict[str, Any]:
        """All that `arrays` depends on."""
        settings: dict[str, Any] = {"arrays": "asarg", "size": self.size}
        if self.resnet is not None:
            settings["resnet"] = weights_hash(_resnet(self.resnet, self.phantom_resnet))
        if self.classes is not None:
            settings |= {"classes": list(NAMES[self.classes]), "grid": self.grid, "frame": self.frame}
        return settings

    def arrays(self, study: Study) -> dict[str, np.ndarray]:
        """`view` `(size, size, channel)`, uint8; `features` `(dim,)`, float16; `maps` `(class, grid, grid)`, uint8.

        Raises:
            DataFault: Maps are fused and the study has no masks.
        """
        assert study.image is not None, "a study that was read has its image"
        grey = to_8_bit(study.image)
        arrays = {"view": llava_view(grey, self.size)}
        if self.resnet is not None:
            pixels = torch.from_numpy(resnet_pixels(grey))[None]
            with torch.inference_mode():
                found = resnet_features(_resnet(self.resnet, self.phantom_resnet), pixels)[0]
            arrays["features"] = found.numpy().astype(np.float16)
        if self.classes is not None:
            if study.masks is None:
                advice = "give them (data.masks, --masks), or fuse none (model.fusion.maps=none)"
                raise DataFault(f"{study.id} has no segmentation masks: {advice}")
            arrays["maps"] = self.pooled(study.masks, NAMES[self.classes])
        return arrays

    def pooled(self, masks: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
        """Maps of some of the classes that are fused, `(class, grid, grid)`, uint8; one without a mask is all 0."""
        if self.classes == "superclasses":
            groups = {name: SUPERCLASSES[name] for name in names}
            return pooled_maps(masks, (), self.grid, self.frame, groups)["superclass_maps"]
        return pooled_maps(masks, names, self.grid, self.frame)["maps"]

    def __call__(self, study: Study, arrays: Mapping[str, np.ndarray], rng: random.Random | None) -> dict[str, Any]:
        """One sample; in training one of the 33 questions is drawn, in evaluation it is the first."""
        question = pick_question(rng)
        turn, asked = self.prompt.turn(question, study.report or ""), self.prompt.ask(question)
        sample = {
            "id": study.id,
            "pixels": torch.from_numpy(llava_pixels(arrays["view"])),
            "tokens": turn.tokens,
            "labels": turn.labels,
            "prompt": asked.tokens,
            "cut": turn.cut,
        }
        if self.resnet is not None:
            sample["features"] = torch.from_numpy(np.asarray(arrays["features"], np.float32))
        if self.classes is not None:
            maps = torch.from_numpy(np.array(arrays["maps"]))
            sample["maps"] = maps if rng is not None else maps[self._order()]
        return sample

    def _order(self) -> list[int]:
        """The maps' order in evaluation."""
        order = list(range(len(NAMES[self.classes or "paper"])))
        if self.shuffle_maps is not None:
            random.Random(f"maps/{self.shuffle_maps}").shuffle(order)
        return order

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch.

        Its keys: `ids`; `pixels` `(study, channel, row, column)`; `features` `(study, dim)` and `maps`
        `(study, class, grid, grid)`, or `None`; `tokens`, `mask` and `labels` `(study, position)`, padded on the right;
        `prompt` and `prompt_mask`, padded on the left; `cut`, the ids of studies whose answer was too long.
        """
        pad = self.prompt.tokenizer.pad_token_id
        tokens, prompts = ([sample[key] for sample in samples] for key in ("tokens", "prompt"))
        return {
            "ids": [sample["id"] for sample in samples],
            "pixels": torch.stack([sample["pixels"] for sample in samples]),
            "features": None if self.resnet is None else torch.stack([sample["features"] for sample in samples]),
            "maps": None if self.classes is None else torch.stack([sample["maps"] for sample in samples]),
            "tokens": padded(tokens, pad, "right"),
            "mask": padding_mask(tokens, "right"),
            "labels": padded([sample["labels"] for sample in samples], IGNORED, "right"),
            "prompt": padded(prompts, pad, "left"),
            "prompt_mask": padding_mask(prompts, "left"),
            "cut": [sample["id"] for sample in samples if sample["cut"]],
        }
