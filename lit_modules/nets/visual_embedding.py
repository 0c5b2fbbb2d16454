"""Reg2RG's volumes and masks as embeddings that a language model reads (paper §III-B and §III-C)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_modules.nets.perceiver import Perceiver, PerceiverSettings
from lit_modules.nets.vit3d import Encoder3D, ViT3D

FRAME = 4  # rows of <image>, </image>, <region>, </region>
VOXELS_AT_ONCE = 16 * 256 * 256 * 64  # bounds the encoder's memory; 16 volumes of the paper's size


class VisualEmbedding(nn.Module):
    """Volumes and masks to rows of the language model's embedding table.

    Args:
        vision: Encoder of volumes.
        mask_encoder: Encoder of masks; `None` where geometry is not shown.
        perceiver: Resampler.
        dim: Width of the language model's embeddings.
        freeze_vision: The encoder of volumes is not trained; it then records nothing for a backward pass.
    """

    def __init__(
        self,
        vision: Encoder3D,
        mask_encoder: Encoder3D | None,
        perceiver: PerceiverSettings,
        dim: int,
        freeze_vision: bool,
    ) -> None:
        super().__init__()
        self.vision_encoder = ViT3D(vision).requires_grad_(not freeze_vision)
        self.perceiver = Perceiver(vision.dim, perceiver)
        self.fc = nn.Linear(vision.dim, dim)
        if mask_encoder is not None:
            self.mask_encoder = ViT3D(mask_encoder)
            self.mask_fc = nn.Linear(mask_encoder.dim, dim)
        self.image_token_weight = nn.Parameter(torch.randn(2, dim))
        self.region_token_weight = nn.Parameter(torch.randn(2, dim))
        self.latents = perceiver.latents

    def texture(self, volumes: Tensor) -> Tensor:
        """`(volume, channel, height, width, depth)` → `(volume, latent, dim)` (paper Eq. 3 and 7)."""
        dtype, at_once = self.fc.weight.dtype, max(1, VOXELS_AT_ONCE // volumes.shape[2:].numel())
        tokens = torch.cat([self.vision_encoder(part.to(dtype)) for part in volumes.split(at_once)])
        return self.fc(self.perceiver(tokens))

    def geometry(self, masks: Tensor) -> Tensor:
        """`(mask, 1, height, width, depth)`, fractional after resizing → `(mask, dim)` (paper Eq. 4)."""
        return self.mask_fc(self.mask_encoder(masks.to(self.fc.weight.dtype)).mean(1))

    def forward(
        self, volumes: Tensor, volume_rows: Tensor, masks: Tensor, mask_rows: Tensor, shape: tuple[int, int]
    ) -> Tensor:
        """The rows of each study's special tokens, in the order of their ids.

        Encoders run even on no volume or mask at all, so that every process of a distributed run has their gradients.

        Args:
            volumes: `(volume, channel, height, width, depth)` of all studies, whole ones and regions.
            volume_rows: `(volume, 2)`: the study and the first of its rows that each volume fills.
            masks: `(mask, 1, height, width, depth)` of all studies.
            mask_rows: `(mask, 2)`, likewise.
            shape: Studies and rows.

        Returns:
            `(study, special token, dim)`; rows of what is not shown are zero and never asked for.
        """
        frame = torch.cat((self.image_token_weight, self.region_token_weight))
        rows = frame.new_zeros(*shape, frame.shape[1])
        rows[:, :FRAME] = frame
        study, first = volume_rows.T[..., None]
        texture = self.texture(volumes).to(rows.dtype)  # autocast may have changed it
        rows[study, first + torch.arange(self.latents, device=first.device)] = texture
        if hasattr(self, "mask_encoder"):
            study, first = mask_rows.T
            rows[study, first] = self.geometry(masks).to(rows.dtype)
        return rows
