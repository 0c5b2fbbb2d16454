"""Tiny vision-language models of every family, and films with and without something to say about."""

from typing import Any

import numpy as np
import torch

from lit_modules.nets.phantom_vlm import PhantomVLM
from lit_modules.nets.vlm import build_vlm
from lit_modules.nets.vlm_encoding import VlmEncoder

TINY = PhantomVLM(image=56)
ASK = "Write the report."
REPORTS = ("There is a small left apical pneumothorax.", "No pneumothorax.")


def encoder(family: str, **settings: Any) -> VlmEncoder:
    return VlmEncoder(f"phantom:{family}", TINY, **settings)


def model(family: str) -> Any:
    return build_vlm(f"phantom:{family}", torch.float32, phantom=TINY).eval()


def noise(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3)).astype(np.uint8)


FILMS = (np.full((90, 72, 3), 100, np.uint8), np.full((90, 72, 3), 100, np.uint8))  # with and without a mask on it
FILMS[0][12:48, 6:42] = (160, 60, 60)


def samples(source: VlmEncoder, answers: tuple[str | None, ...] = REPORTS) -> list[dict[str, Any]]:
    pairs = zip(FILMS, answers, strict=True)
    return [source.sample(source.image_arrays(image), ASK, answer) for image, answer in pairs]
