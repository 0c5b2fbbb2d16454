"""The attention view of RegionFormer's paper, and the LeGrad view of its code: for parity, not for localising.

Both give a number to each of the mapper's embedding tokens and lay the 40 numbers out as 5 rows of 8. **That grid is
not spatial.** One linear layer cuts the tokens from ONE pooled vector; no token has a place in the image, and their
order is as arbitrary as that of a layer's units: permute them, and the same text comes with a permuted picture. What
is stretched over an image in the paper (compared with LightVED-prhlt/RegionFormer at 742ad83, branch
show-attention-map) cannot show where the method looked. `patch_attribution` can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_modules.nets.caption_loss import caption_loss
from lit_modules.nets.prefix_mapper import PrefixMapper


def nearest_grid(n: int) -> tuple[int, int]:
    """`(rows, columns)` with `rows * columns == n`, as square as the factors of `n` allow, never higher than wide."""
    rows = next(rows for rows in range(math.isqrt(n), 0, -1) if n % rows == 0)
    return rows, n // rows


def attention_grid(weights: Sequence[Tensor], clip_length: int) -> Tensor:
    """How much the prefix attends to each embedding token, `(study, row, column)`, float32 from 0 to 1; not spatial.

    The mean over layers, heads and the prefix's queries, stretched to the study's own least and greatest value.

    Args:
        weights: Each layer's `(study, head, query, key)` of `PrefixMapper.with_attention`, or a gradient of that shape.
        clip_length: Embedding tokens; they stand before the prefix among the queries and the keys.
    """
    read = torch.stack([layer.detach()[:, :, clip_length:, :clip_length].float().mean((1, 2)) for layer in weights])
    read = read.mean(0)  # (study, token)
    read = read - read.amin(1, keepdim=True)
    read = read / (read.amax(1, keepdim=True) + 1e-8)
    return read.unflatten(1, nearest_grid(clip_length))


@torch.inference_mode(False)
@torch.enable_grad()
def legrad_grid(mapper: PrefixMapper, gpt: Any, embedding: Tensor, ids: Tensor, of_text: bool = False) -> Tensor:
    """LeGrad over the embedding tokens, `(study, row, column)`, float32 from 0 to 1; not spatial.

    The gradient on each layer's attention weights, its negative part cut off, read like the weights themselves. LeGrad
    as published (Bousselham et al., arXiv:2404.03214) takes the gradient of the score that is to be explained. The
    authors' code takes that of a loss, which keeps the weights that speak *against* the text; and the loss counts the
    prefix's positions too, as if token 0 had to be said at each.

    Args:
        mapper: The mapper; no gradient is left in it.
        gpt: The language model, in eval mode.
        embedding: `(study, prefix_size)`.
        ids: `(study, token)`, the texts, equally long.
        of_text: The gradient of the text's log-probability (LeGrad's sign) instead of that of the code's loss.
    """
    embedding, ids = embedding.detach().clone().requires_grad_(), ids.clone()
    prefix, weights = mapper.with_attention(embedding)
    words = gpt.get_input_embeddings()(ids)
    hidden = gpt.transformer(inputs_embeds=torch.cat((prefix, words), 1), use_cache=False).last_hidden_state
    if of_text:
        objective = -caption_loss(hidden, gpt.lm_head, ids, prefix.shape[1], reduction="sum")
    else:
        targets = torch.cat((ids.new_zeros(len(ids), prefix.shape[1] - 1), ids), 1)
        objective = caption_loss(hidden, gpt.lm_head, targets, 1, reduction="sum") / targets.shape[1]
    gradients = torch.autograd.grad(objective, weights)
    return attention_grid([gradient.relu() for gradient in gradients], mapper.settings.clip_length)
