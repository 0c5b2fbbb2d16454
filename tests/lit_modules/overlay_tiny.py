"""Tiny Overlay-SFTs of the families' real classes, and films with and without pneumothorax."""

from typing import Any

import numpy as np
import torch

from datamodules.study import Study
from lit_modules.nets.phantom_vlm import PhantomVLM
from lit_modules.overlay_sft import Decoding, OverlaySFT

FILM = (120, 96)
SMALL: dict[str, Any] = {
    "vlm": "phantom:qwen2_vl",
    "phantom": PhantomVLM(image=56),
    "tuning": "full",
    "quantization": "none",
    "max_length": 512,
    "gradient_checkpointing": False,
    "dtype": "float32",
    "decoding": Decoding(max_new_tokens=24),
    "lr": 2e-3,
}
QLORA: dict[str, Any] = {"tuning": "lora", "quantization": "nf4", "dtype": "bfloat16", "gradient_checkpointing": True}
REPORTS = ("There is a large left pneumothorax.", "A small pneumothorax is seen at the apex on the right.")


def small(**settings: Any) -> OverlaySFT:
    torch.manual_seed(0)
    model = OverlaySFT(**SMALL | settings)
    model.configure_model()
    return model.eval()


def film(seed: int = 0, empty: bool = False, **known: Any) -> Study:
    """Films of seeds 0 and 1 are alike but for the mask: a large one on one side, a small one on the other."""
    image = np.random.default_rng(0).integers(0, 256, FILM).astype(np.uint8)
    mask = np.zeros(FILM, np.uint8)
    if not empty:
        mask[(slice(10, 90), slice(60, 90)) if seed == 0 else (slice(5, 25), slice(5, 30))] = 1
    return Study(
        **{"id": f"s{seed}", "image": image, "masks": {"pneumothorax": mask}, "report": REPORTS[seed % 2]} | known
    )


def batch_of(model: OverlaySFT, *studies: Study) -> dict[str, Any]:
    source = model.preprocessor()
    return source.collate([source(study, source.arrays(study), None) for study in studies])
