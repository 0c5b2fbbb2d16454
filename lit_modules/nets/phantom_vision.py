"""How `checkpoints/phantom-vit3d` was taught: a small ViT3D and Perceiver that have seen CTs, in the place of RadFM's.

The paper's volume encoder and adapter come pretrained, and the encoder stays frozen (§IV-B). So small ones are taught
on phantom patients of other seeds: from a region's crop (and from the whole volume) they say which words the region's
report will use. The encoder comes first, then the adapter on top of it. The heads that spoke are thrown away.

    python -m lit_modules.nets.phantom_vision encoder --out checkpoints/phantom-vit3d
    python -m lit_modules.nets.phantom_vision adapter --out checkpoints/phantom-vit3d
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import Progress, track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from datamodules.phantom.patient import draw_patient
from datamodules.phantom.render import render_ct
from lit_modules.nets import backbones
from lit_modules.nets.perceiver import Perceiver, PerceiverSettings
from lit_modules.nets.phantom_language import content_words
from lit_modules.nets.region_crops import GLOBAL, region_crops
from lit_modules.nets.vit3d import Encoder3D, ViT3D

FIRST_PATIENT = 2_000_000  # datasets draw seeds from 2**32 (crc32): a patient meets one of these by 4e-6
SIZE = (64, 64, 24)
ENCODER = Encoder3D(
    64, 24, patch_size=8, patch_frames=6, dim=96, depth=3, heads=4, dim_head=24, mlp_dim=192, channels=1
)
ADAPTER = PerceiverSettings(depth=2, latents=4, heads=4, dim_head=32)
BATCH = 32


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


def draw(patients: int, workers: int) -> list[Crop]:
    """The crops of so many patients."""
    seeds = range(FIRST_PATIENT, FIRST_PATIENT + patients)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        drawn = track(pool.imap(crops_of, seeds, chunksize=4), "drawing", total=patients)
        return [crop for one in drawn for crop in one]


def labels_of(crops: list[Crop]) -> Tensor:
    """`(crop, word)` of zeros and ones; a column for every word that occurs."""
    tokenizer = backbones.build_tokenizer("phantom:llama")
    said = [content_words(crop.text, tokenizer) for crop in crops]
    columns = {word: column for column, word in enumerate(sorted({word for words in said for word in words}))}
    labels = torch.zeros(len(crops), len(columns))
    for row, words in enumerate(said):
        labels[row, [columns[word] for word in words]] = 1.0
    return labels


class Speaker(nn.Module):
    """Says which words apply: from the mean over an encoder's tokens, and from the loudest of them."""

    def __init__(self, body: nn.Module, dim: int, words: int) -> None:
        super().__init__()
        self.body, self.norm = body, nn.LayerNorm(dim)
        self.mean, self.loudest = nn.Linear(dim, words), nn.Linear(dim, words, bias=False)

    def forward(self, seen: Tensor) -> Tensor:
        """What `body` takes → logits `(volume, word)`."""
        tokens = self.norm(self.body(seen))
        return self.mean(tokens.mean(1)) + self.loudest(tokens).amax(1)


def volumes_of(crops: list[Crop], part: list[int]) -> Tensor:
    """`(volume, 1, height, width, depth)`."""
    return torch.from_numpy(np.stack([crops[index].volume for index in part])).float()[:, None]


def teach(
    speaker: Speaker,
    see: Callable[[list[int]], Tensor],
    labels: Tensor,
    epochs: int,
    of: int,
    lr: float = 1e-3,
) -> None:
    """Trains a speaker.

    Args:
        speaker: What is trained.
        see: Rows → what its body takes.
        labels: `(row, word)`.
        epochs: Rounds over all rows.
        of: The learning rate falls (one cycle) as if for so many rounds.
        lr: AdamW's, at its highest.
    """
    rounds = len(labels) // BATCH
    optimizer = torch.optim.AdamW(speaker.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=of * rounds, pct_start=0.1)
    with Progress() as bar:
        task = bar.add_task("teaching", total=epochs * rounds)
        for epoch in range(epochs):
            order, total = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch)).tolist(), 0.0
            for start in range(0, rounds * BATCH, BATCH):
                part = order[start : start + BATCH]
                loss = F.binary_cross_entropy_with_logits(speaker(see(part)), labels[part])
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(speaker.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                total += loss.item()
                bar.update(task, advance=1)
            bar.console.print(f"round {epoch + 1}: loss {total / rounds:.4f}")


def teach_encoder(out: Path, patients: int, epochs: int, of: int, workers: int) -> None:
    """Writes `vit3d.safetensors`, under ViT3D's own names."""
    torch.manual_seed(0)
    crops = draw(patients, workers)
    labels, encoder = labels_of(crops), ViT3D(ENCODER)
    speaker = Speaker(encoder, ENCODER.dim, labels.shape[1])
    teach(speaker, lambda part: volumes_of(crops, part), labels, epochs, of)
    save_file(encoder.state_dict(), out / "vit3d.safetensors")


def teach_adapter(out: Path, patients: int, epochs: int, of: int, workers: int) -> None:
    """Writes `perceiver.safetensors`, under Perceiver's own names; reads `vit3d.safetensors`."""
    torch.manual_seed(0)
    crops = draw(patients, workers)
    labels, encoder, adapter = labels_of(crops), ViT3D(ENCODER).eval(), Perceiver(ENCODER.dim, ADAPTER)
    encoder.load_state_dict(load_file(out / "vit3d.safetensors"))
    rows = [list(range(start, min(start + BATCH, len(crops)))) for start in range(0, len(crops), BATCH)]
    with torch.inference_mode():
        seen = torch.cat([encoder(volumes_of(crops, part)).half() for part in track(rows, "encoding")]).clone()
    speaker = Speaker(adapter, ENCODER.dim, labels.shape[1])
    teach(speaker, lambda part: seen[part].float(), labels, epochs, of)
    save_file(adapter.state_dict(), out / "perceiver.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["encoder", "adapter"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    if chosen.stage == "encoder":
        teach_encoder(chosen.out, 1000, 3, 8, chosen.workers)
    else:
        teach_adapter(chosen.out, 700, 8, 8, chosen.workers)
