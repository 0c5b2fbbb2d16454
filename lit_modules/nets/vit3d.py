"""A Vision Transformer over volumes, as RadFM pre-trained it (Wu et al., arXiv:2308.02463) and Reg2RG uses it twice.

Reg2RG's volume encoder and its mask encoder are this network at two sizes (paper §IV-B). Module names follow the
authors' state dict, so that their files load by name. Axes follow the authors too: `(batch, channel, height, width,
depth)`, depth last; tokens run over height, then width, then depth, depth fastest.

Differs from the authors' code in: attention by `scaled_dot_product_attention`; a one-channel volume may be given to
a three-channel encoder and counts as repeated on every channel, without the copies being made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.study import SettingsFault


@dataclass(frozen=True)
class Encoder3D:
    """The size of a `ViT3D`.

    Attributes:
        image_size: Largest height and width, in voxels; with `patch_size` it sets the grid of learned positions.
        frames: Largest depth, in voxels.
        patch_size: Height and width of a patch, in voxels.
        patch_frames: Depth of a patch, in voxels.
        dim: Width of a token; a multiple of three, one third for each axis' position.
        depth: Transformer layers.
        heads: Attention heads.
        dim_head: Width of a head; `heads * dim_head` need not be `dim`.
        mlp_dim: Hidden width of the feed-forward layers.
        channels: Channels of the volume.
        dropout: After the embedding, on attention weights and in the feed-forward layers.
    """

    image_size: int
    frames: int
    patch_size: int
    patch_frames: int
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    channels: int = 3
    dim_head: int = 64
    dropout: float = 0.1

    @property
    def grid(self) -> tuple[int, int, int]:
        """Learned positions along height, width and depth."""
        side = self.image_size // self.patch_size
        return side, side, self.frames // self.patch_frames

    def check(self, size: tuple[int, ...]) -> None:
        """Refuses a volume of `size` `(height, width, depth)` voxels that this encoder cannot read, saying why."""
        if self.dim % 3:
            raise SettingsFault(f"dim={self.dim} must be a multiple of three: one third for each axis' position")
        patch = (self.patch_size, self.patch_size, self.patch_frames)
        for name, voxels, step, positions in zip(("height", "width", "depth"), size, patch, self.grid, strict=True):
            if voxels % step or not 0 < voxels // step <= positions:
                fits = f"multiples of {step} up to {step * positions}"
                raise SettingsFault(f"a {name} of {voxels} voxels does not fit the encoder: it takes {fits}")


class Patchify(nn.Module):
    """`(batch, channel, height, width, depth)` → `(batch, token, patch voxels × channel)`, channel fastest."""

    def __init__(self, patch_size: int, patch_frames: int) -> None:
        super().__init__()
        self.patch = (patch_size, patch_size, patch_frames)

    def forward(self, volumes: Tensor) -> Tensor:
        batch, channels, *size = volumes.shape
        (h, w, d), (p, q, r) = (n // step for n, step in zip(size, self.patch, strict=True)), self.patch
        patches = volumes.view(batch, channels, h, p, w, q, d, r).permute(0, 2, 4, 6, 3, 5, 7, 1)
        return patches.reshape(batch, h * w * d, p * q * r * channels)


class LearnedPosition3D(nn.Module):
    """One learned table an axis; a token's position is the three rows side by side.

    A grid smaller than the tables reads every n-th row, the last of each n (n = table length // grid length).
    """

    def __init__(self, features: int, rows: int, columns: int, depths: int) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(rows, features)
        self.col_embed = nn.Embedding(columns, features)
        self.dep_embed = nn.Embedding(depths, features)
        for table in (self.row_embed, self.col_embed, self.dep_embed):
            nn.init.uniform_(table.weight)

    def forward(self, height: int, width: int, depth: int) -> Tensor:
        """Positions of a `height × width × depth` grid of tokens: `(token, 3 × features)`."""
        tables = (self.row_embed.weight, self.col_embed.weight, self.dep_embed.weight)
        rows = []
        for table, length in zip(tables, (height, width, depth), strict=True):
            step = table.shape[0] // length
            rows.append(table[step - 1 : step * length : step])
        row, column, dep = rows
        grid = (height, width, depth, -1)
        parts = (row[:, None, None].expand(grid), column[None, :, None].expand(grid), dep[None, None].expand(grid))
        return torch.cat(parts, dim=-1).flatten(0, 2)


class SelfAttention(nn.Module):
    """Multi-head self-attention over `(batch, token, dim)`; no bias on queries, keys and values."""

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, dim), nn.Dropout(dropout))

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.to_qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear, GELU, Linear, with dropout after each; layers are numbered as in the authors' files."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim), nn.Dropout(dropout)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(tokens)


class PreNorm(nn.Module):
    """A residual branch: `x + fn(LayerNorm(x))`."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.fn(self.norm(tokens))


class Transformer(nn.Module):
    """Pre-norm layers, without a final norm."""

    def __init__(self, size: Encoder3D) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PreNorm(size.dim, SelfAttention(size.dim, size.heads, size.dim_head, size.dropout)),
                    PreNorm(size.dim, FeedForward(size.dim, size.mlp_dim, size.dropout)),
                ]
            )
            for _ in range(size.depth)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        for layer in self.layers:
            for branch in cast(nn.ModuleList, layer):
                tokens = branch(tokens)
        return tokens


class ViT3D(nn.Module):
    """Volumes to tokens: patches, learned positions, transformer; no class token and no final norm."""

    def __init__(self, size: Encoder3D) -> None:
        super().__init__()
        self.size = size
        patch_dim = size.patch_size**2 * size.patch_frames * size.channels
        self.to_patch_embedding = nn.Sequential(
            Patchify(size.patch_size, size.patch_frames),
            nn.LayerNorm(patch_dim),
            nn.Linear(patch_dim, size.dim),
            nn.LayerNorm(size.dim),
        )
        self.pos_embedding = LearnedPosition3D(size.dim // 3, *size.grid)
        self.dropout = nn.Dropout(size.dropout)
        self.transformer = Transformer(size)

    def forward(self, volumes: Tensor) -> Tensor:
        """Encodes `(batch, channel, height, width, depth)` as `(batch, token, dim)`.

        One channel may stand for all of `size.channels`.
        """
        tokens = self.patch_embedding(volumes) + self.positions(volumes)
        return self.transformer(self.dropout(tokens))

    def positions(self, volumes: Tensor) -> Tensor:
        """The learned positions of `volumes`' tokens, `(token, dim)`."""
        height, width, depth = volumes.shape[2:]
        return self.pos_embedding(
            height // self.size.patch_size, width // self.size.patch_size, depth // self.size.patch_frames
        )

    def patch_embedding(self, volumes: Tensor) -> Tensor:
        """The embedded patches, `(batch, token, dim)`, before positions."""
        channels = self.size.channels
        if volumes.shape[1] == channels:
            return self.to_patch_embedding(volumes)
        # Repeated channels have the mean and variance of one, so norm and projection fold into weights of one channel:
        # a third of the memory and of the multiplications.
        modules: list[Any] = list(self.to_patch_embedding)
        patchify, norm, project, last_norm = modules
        weight = project.weight.float()
        folded = (weight * norm.weight.float()).unflatten(1, (-1, channels)).sum(-1)
        bias = project.bias.float() + weight @ norm.bias.float()
        patches = patchify(volumes)
        patches = F.layer_norm(patches, patches.shape[-1:], eps=norm.eps)
        return last_norm(F.linear(patches, folded.to(patches.dtype), bias.to(patches.dtype)))
