"""The Perceiver resampler: learned latents read any number of tokens and come back as a few.

Alayrac et al., "Flamingo", arXiv:2204.14198, as RadFM (Wu et al., arXiv:2308.02463) pre-trained it and Reg2RG uses it
(paper §IV-B: 32 embeddings a volume). Module names follow the authors' state dict.

Differs from the authors' code in: attention by `scaled_dot_product_attention`; no frame and time axes, which Reg2RG
never uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class PerceiverSettings:
    """The size of a `Perceiver`.

    Attributes:
        depth: Layers.
        latents: Embeddings that come out for each volume.
        heads: Attention heads.
        dim_head: Width of a head.
        ff_mult: Hidden width of the feed-forward layers, in multiples of the token's width.
    """

    depth: int = 6
    latents: int = 32
    heads: int = 8
    dim_head: int = 64
    ff_mult: int = 4


class PerceiverAttention(nn.Module):
    """Latents attend to the volume's tokens and to themselves; none of the projections has a bias."""

    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_media = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)

    def forward(self, tokens: Tensor, latents: Tensor) -> Tensor:
        tokens, latents = self.norm_media(tokens), self.norm_latents(latents)
        q = self.to_q(latents).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(torch.cat((tokens, latents), dim=1)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Perceiver(nn.Module):
    """`(batch, token, dim)` → `(batch, latent, dim)`."""

    def __init__(self, dim: int, settings: PerceiverSettings) -> None:
        super().__init__()
        hidden = dim * settings.ff_mult
        self.latents = nn.Parameter(torch.randn(settings.latents, dim))
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(dim, settings.heads, settings.dim_head),
                    nn.Sequential(
                        nn.LayerNorm(dim),
                        nn.Linear(dim, hidden, bias=False),
                        nn.GELU(),
                        nn.Linear(hidden, dim, bias=False),
                    ),
                ]
            )
            for _ in range(settings.depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        latents = self.latents.expand(tokens.shape[0], -1, -1)
        for layer in self.layers:
            attention, feed_forward = cast(nn.ModuleList, layer)
            latents = attention(tokens, latents) + latents
            latents = feed_forward(latents) + latents
        return self.norm(latents)
