"""The prefix mapper: one image embedding becomes the tokens that a frozen language model reads before it writes.

Mokady et al., "ClipCap", arXiv:2111.09734, §3.3 (the transformer mapping network), as RegionFormer uses it (paper §3
and App. A; compared with LightVED-prhlt/RegionFormer at 84205cc). One linear layer lays the embedding out as tokens;
learned constants stand behind them; a transformer without positions and without a mask reads both; what comes out in
the constants' place is the prefix. Module names follow the authors' state dict under `clip_project.`.

Differs from the authors' code in: attention by `scaled_dot_product_attention`; dropout, which they build and never
apply, is not there.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.study import SettingsFault


@dataclass(frozen=True)
class PrefixMapperSettings:
    """The size of a `PrefixMapper`; the defaults are RegionFormer's with one embedding of CLIP ViT-B/32 and GPT-2.

    Attributes:
        prefix_size: Width of the embedding that comes in; two of them side by side (image, mask) are 1024.
        dim: Width of the language model's embeddings.
        prefix_length: Tokens that come out.
        clip_length: Tokens that the embedding is laid out as.
        layers: Transformer layers.
        heads: Attention heads.
        mlp_ratio: Hidden width of the feed-forward layers, in multiples of `dim`.
    """

    prefix_size: int = 512
    dim: int = 768
    prefix_length: int = 40
    clip_length: int = 40
    layers: int = 8
    heads: int = 8
    mlp_ratio: float = 2.0


class MapperAttention(nn.Module):
    """Every token attends to every token; only the last projection has a bias."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_queries = nn.Linear(dim, dim, bias=False)
        self.to_keys_values = nn.Linear(dim, 2 * dim, bias=False)
        self.project = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, weights: list[Tensor] | None) -> Tensor:
        q = self.to_queries(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_keys_values(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if weights is None:
            read = F.scaled_dot_product_attention(q, k, v)
        else:
            weights.append((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1))
            read = weights[-1] @ v
        return self.project(read.transpose(1, 2).flatten(2))


class MapperLayer(nn.Module):
    """Attention, then a feed-forward network, each on normalised tokens and added to them."""

    def __init__(self, settings: PrefixMapperSettings) -> None:
        super().__init__()
        dim, hidden = settings.dim, round(settings.dim * settings.mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = MapperAttention(dim, settings.heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(dim, hidden), relu=nn.ReLU(), fc2=nn.Linear(hidden, dim)),
        )

    def forward(self, tokens: Tensor, weights: list[Tensor] | None) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens), weights)
        return tokens + self.mlp(self.norm2(tokens))


class PrefixMapper(nn.Module):
    """`(study, prefix_size)` → `(study, prefix_length, dim)`.

    Raises:
        SettingsFault: `dim` is no multiple of `heads`.
    """

    def __init__(self, settings: PrefixMapperSettings) -> None:
        super().__init__()
        if settings.dim % settings.heads:
            raise SettingsFault(f"dim={settings.dim} is no multiple of heads={settings.heads}")
        self.settings = settings
        self.prefix_const = nn.Parameter(torch.randn(settings.prefix_length, settings.dim))
        self.linear = nn.Linear(settings.prefix_size, settings.clip_length * settings.dim)
        layers = nn.ModuleList(MapperLayer(settings) for _ in range(settings.layers))
        self.transformer = nn.ModuleDict({"layers": layers})

    def forward(self, embedding: Tensor) -> Tensor:
        return self._prefix(embedding, None)

    def with_attention(self, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The prefix, and each layer's attention weights `(study, head, query, key)`.

        Queries and keys are the embedding's tokens first, then the constants' (`clip_length + prefix_length`). The
        prefix was computed from these very weights, so its gradient reaches them. The embedding's tokens are cut from
        one vector: they have no place in the image.
        """
        weights: list[Tensor] = []
        return self._prefix(embedding, weights), weights

    def _prefix(self, embedding: Tensor, weights: list[Tensor] | None) -> Tensor:
        seen = self.linear(embedding).unflatten(-1, (self.settings.clip_length, self.settings.dim))
        tokens = torch.cat((seen, self.prefix_const.expand(len(embedding), -1, -1)), dim=1)
        for layer in cast(nn.ModuleList, self.transformer["layers"]):
            tokens = layer(tokens, weights)
        return tokens[:, self.settings.clip_length :]
