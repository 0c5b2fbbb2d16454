"""How `checkpoints/phantom-vit3d` was taught: a small ViT3D that has seen CTs, in the place of RadFM's.

The paper's volume encoder comes pretrained and stays frozen (§IV-B). So a small one is taught on phantom patients of
other seeds: from a region's crop (and from the whole volume) it says which words the region's report will use. Only the
encoder is kept; the head that spoke is thrown away.

    python -m lit_modules.nets.phantom_vision --out checkpoints/phantom-vit3d/vit3d.safetensors
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import Progress, track
from safetensors.torch import save_file
from torch import Tensor, nn

from datamodules.phantom.patient import draw_patient
from datamodules.phantom.render import render_ct
from lit_modules.nets import backbones
from lit_modules.nets.phantom_language import content_words
from lit_modules.nets.region_crops import GLOBAL, region_crops
from lit_modules.nets.vit3d import Encoder3D, ViT3D

FIRST_PATIENT = 2_000_000  # seeds far from those of any phantom dataset, and from the language model's
SIZE = (64, 64, 24)
ENCODER = Encoder3D(
    64, 24, patch_size=8, patch_frames=6, dim=96, depth=3, heads=4, dim_head=24, mlp_dim=192, channels=1
)


@dataclass(frozen=True)
class Crop:
    """A volume `(height, width, depth)`, float16 in [-1, 1], and what is said about it."""

    volume: np.ndarray
    text: str


def crops_of(seed: int) -> list[Crop]:
    """The whole and every region of a patient that the report speaks of."""
    study = render_ct(draw_patient(seed))
    assert study.volume is not None and study.masks is not None and study.regions is not None
    volumes = region_crops(study.volume, study.masks, SIZE, geometry=False).volumes
    texts = {GLOBAL: " ".join(study.regions.values()), **study.regions}
    return [Crop(volumes[name].astype(np.float16), text) for name, text in texts.items() if name in volumes]


class Speaker(nn.Module):
    """The encoder and a head that says which words apply: from the mean over tokens, and from the loudest token."""

    def __init__(self, encoder: ViT3D, dim: int, words: int) -> None:
        super().__init__()
        self.encoder, self.norm = encoder, nn.LayerNorm(dim)
        self.mean, self.loudest = nn.Linear(dim, words), nn.Linear(dim, words, bias=False)

    def forward(self, volumes: Tensor) -> Tensor:
        """`(volume, 1, height, width, depth)` → logits `(volume, word)`."""
        tokens = self.norm(self.encoder(volumes))
        return self.mean(tokens.mean(1)) + self.loudest(tokens).amax(1)


def batches(crops: list[Crop], labels: Tensor, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches of volumes and labels."""
    order = torch.randperm(len(crops), generator=torch.Generator().manual_seed(seed)).tolist()
    for start in range(0, len(order) - size + 1, size):
        part = order[start : start + size]
        volumes = torch.from_numpy(np.stack([crops[index].volume for index in part])).float()[:, None]
        yield volumes, labels[part]


def labels_of(crops: list[Crop]) -> Tensor:
    """`(crop, word)` of zeros and ones; a column for every word that occurs."""
    tokenizer = backbones.build_tokenizer("phantom:llama")
    said = [content_words(crop.text, tokenizer) for crop in crops]
    columns = {word: column for column, word in enumerate(sorted({word for words in said for word in words}))}
    labels = torch.zeros(len(crops), len(columns))
    for row, words in enumerate(said):
        labels[row, [columns[word] for word in words]] = 1.0
    return labels


def teach(out: Path, patients: int, epochs: int, workers: int, lr: float = 1e-3) -> None:
    """Draws patients, teaches an encoder and writes its weights under ViT3D's own names."""
    torch.manual_seed(0)
    seeds = range(FIRST_PATIENT, FIRST_PATIENT + patients)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        drawn = track(pool.imap(crops_of, seeds, chunksize=4), "drawing", total=patients)
        crops = [crop for one in drawn for crop in one]
    labels = labels_of(crops)
    encoder = ViT3D(ENCODER)
    speaker = Speaker(encoder, ENCODER.dim, labels.shape[1])
    size, rate = 32, lr
    steps = epochs * (len(crops) // size)
    optimizer = torch.optim.AdamW(speaker.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    with Progress() as bar:
        task = bar.add_task("teaching", total=steps)
        for epoch in range(epochs):
            total = 0.0
            for volumes, wanted in batches(crops, labels, size, epoch):
                loss = F.binary_cross_entropy_with_logits(speaker(volumes), wanted)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(speaker.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                total += loss.item()
                bar.update(task, advance=1)
            bar.console.print(f"epoch {epoch + 1}: loss {total / (len(crops) // size):.4f}")
            out.parent.mkdir(parents=True, exist_ok=True)
            save_file(encoder.state_dict(), out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=1200)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    teach(chosen.out, chosen.patients, chosen.epochs, chosen.workers)
