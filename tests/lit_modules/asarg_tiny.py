"""A tiny ASaRG of the phantom's networks, and films with a few masks."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from datamodules.study import Study
from lit_modules.asarg import Asarg, Decoding, Fusion
from lit_modules.nets.backbones import PhantomSize
from lit_modules.nets.clip_image import PhantomCLIP
from lit_modules.nets.lvm_med import PhantomResNet

FUSION = Fusion(depth=8)
FEATURES = replace(FUSION, maps="none")  # stage 1
SMALL: dict[str, Any] = {
    "llava": "phantom:llava",
    "phantom": PhantomSize(hidden=32, layers=1, heads=4, mlp=48),
    "phantom_clip": PhantomCLIP(hidden=64, layers=2, heads=4, mlp=64, patch=16, image=64),
    "resnet": "phantom:resnet",
    "phantom_resnet": PhantomResNet(dim=64),
    "fusion": FUSION,
    "grid": 8,
    "max_length": 512,
    "gradient_checkpointing": False,
    "dtype": "float32",
    "decoding": Decoding(max_new_tokens=6),
}
FILM = (96, 72)
PROJECTOR = {f"llava.model.multi_modal_projector.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}


def small(**settings: Any) -> Asarg:
    torch.manual_seed(0)
    model = Asarg(**SMALL | settings)
    model.configure_model()
    return model.eval()


def mask(rows: slice, columns: slice) -> np.ndarray:
    found = np.zeros(FILM, np.uint8)
    found[rows, columns] = 1
    return found


MASKS = {
    "heart": mask(slice(48, 72), slice(27, 54)),
    "heart atrium left": mask(slice(36, 48), slice(27, 36)),
    "lung": mask(slice(12, 84), slice(9, 63)),
    "Effusion": mask(slice(72, 84), slice(9, 18)),
    "Pneumothorax": mask(slice(0, 0), slice(0, 0)),
}


def film(seed: int = 0, **known: Any) -> Study:
    image = np.random.default_rng(seed).integers(0, 256, FILM).astype(np.uint8)
    return Study(**{"id": f"s{seed}", "image": image, "masks": MASKS, "report": "No pleural effusion."} | known)


def batch_of(model: Asarg, *studies: Study) -> dict[str, Any]:
    source = model.preprocessor()
    return source.collate([source(study, source.arrays(study), None) for study in studies])


def saved(model: Asarg) -> dict[str, Any]:
    """A checkpoint as Lightning writes it."""
    checkpoint = {"state_dict": {key: value.clone() for key, value in model.state_dict().items()}}
    model.on_save_checkpoint(checkpoint)
    return checkpoint


def learning(model: Asarg) -> set[str]:
    """Names of the parameters that a step would change."""
    batch = batch_of(model, film(0), film(1, report="Small effusion."))
    loss = model.train().loss(batch)
    assert loss.isfinite() and loss > 0
    loss.backward()
    return {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
