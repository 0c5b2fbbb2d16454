"""Which patches of the image and of the mask speak for a text: integrated gradients over CLIP's patch tokens.

Sundararajan et al., "Axiomatic Attribution for Deep Networks", arXiv:1703.01365, §3. The whole frozen chain (CLIP,
mapper, language model) gives the text a log-probability. All patch tokens of a study, the image's and the mask's
together, move in a straight line from those of a baseline (black image, black mask) to the study's own; positions and
CLS stay. A patch's number is what its own way contributed: its token's change times the mean gradient on it. The
numbers of all patches add up to what the study gained over the baseline (completeness, their Proposition 1), but for
the error of the integration, which is returned.

Unlike the grid in `attention_view`, a patch token has a place in the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_AT_ONCE = 8  # points of the path; more need more memory and are no faster


@dataclass(frozen=True, eq=False)
class Attribution:
    """What each patch contributed to a score, in the score's unit (a text's log-probability: nats).

    Attributes:
        maps: `(view, row, column)`, float32; above 0 speaks for the text, below 0 against it.
        score: Of the study.
        baseline_score: Of the baseline.
        remainder: `score - baseline_score - maps.sum()`, the error of the integration.
    """

    maps: Tensor
    score: float
    baseline_score: float
    remainder: float


def patch_tokens(clip: Any, pixels: Tensor) -> Tensor:
    """`(view, channel, size, size)`, normalised → `(view, patch, hidden)`, row by row, without positions."""
    embed = clip.vision_model.embeddings.patch_embedding
    return embed(pixels.to(embed.weight.dtype)).flatten(2).mT


def image_embeds(clip: Any, tokens: Tensor) -> Tensor:
    """`(view, patch, hidden)` → `(view, dim)`: the rest of `CLIPVisionModelWithProjection`, of no special length."""
    body = clip.vision_model
    cls = body.embeddings.class_embedding.expand(len(tokens), 1, -1)
    embedded = torch.cat((cls, tokens), 1) + body.embeddings.position_embedding.weight
    hidden = body.encoder(inputs_embeds=body.pre_layrnorm(embedded)).last_hidden_state
    return clip.visual_projection(body.post_layernorm(hidden[:, 0]))


@torch.inference_mode(False)  # a caller may be in it, and no gradient flows there
@torch.enable_grad()
def patch_attribution(
    clip: Any,
    views: Tensor,
    baselines: Tensor,
    score: Callable[[Tensor], Tensor],
    steps: int = 32,
) -> Attribution:
    """Integrated gradients of a score over the patch tokens of a study's views.

    A patch that equals the baseline's gets exactly 0. No gradient is left in any parameter.

    Args:
        clip: `CLIPVisionModelWithProjection`, in eval mode.
        views: `(view, channel, size, size)`, normalised pixels: image, mask or both.
        baselines: The same shape; where the path begins.
        score: `(step, view, dim)`, embeddings of length 1 → `(step,)`; each step on its own.
        steps: Midpoints on the path at which the gradient is taken; the remainder tells whether they are enough.

    Raises:
        ValueError: `baselines` has another shape than `views`.
    """
    if views.shape != baselines.shape:
        raise ValueError(f"baselines {tuple(baselines.shape)} must have the shape of the views {tuple(views.shape)}")
    with torch.no_grad():
        # Two calls of one shape: equal patches at one place come out bit for bit equal.
        start, end = patch_tokens(clip, baselines), patch_tokens(clip, views)

    def scores_at(positions: Tensor) -> tuple[Tensor, Tensor]:
        """The path's points `(step, view, patch, hidden)` and their scores `(step,)`."""
        points = torch.lerp(start, end, positions[:, None, None, None]).requires_grad_()
        embeds = image_embeds(clip, points.flatten(0, 1)).float()
        return points, score(F.normalize(embeds, dim=-1).unflatten(0, points.shape[:2]))

    mean_gradient = torch.zeros_like(start)
    for positions in ((torch.arange(steps).to(start) + 0.5) / steps).split(_AT_ONCE):
        points, scores = scores_at(positions)
        mean_gradient += torch.autograd.grad(scores.sum(), points)[0].sum(0) / steps
    with torch.no_grad():
        baseline_score, study_score = scores_at(start.new_tensor([0.0, 1.0]))[1].tolist()
    maps = ((end - start) * mean_gradient).float().sum(-1)
    rows = views.shape[-1] // clip.config.patch_size
    return Attribution(
        maps.unflatten(1, (rows, -1)),
        study_score,
        baseline_score,
        study_score - baseline_score - maps.sum().item(),
    )


def sentence_log_probability(gpt: Any, prefix: Tensor, ids: Tensor) -> Tensor:
    """The log-probability of a text after each prefix, `(step,)`, nats: the sum over its tokens.

    Args:
        gpt: A causal language model of transformers, in eval mode.
        prefix: `(step, position, dim)`, what stands before the text, in the model's embedding space.
        ids: `(token,)`, the text.

    Raises:
        ValueError: The text has no token.
    """
    if not len(ids):
        raise ValueError("a text without a token has no log-probability to explain")
    ids = ids.clone()  # a tensor made in inference mode could not be kept for the gradient
    words = gpt.get_input_embeddings()(ids[:-1]).expand(len(prefix), -1, -1)
    embeds = torch.cat((prefix, words), 1)
    logits = gpt(inputs_embeds=embeds, use_cache=False, logits_to_keep=len(ids)).logits
    return -F.cross_entropy(logits.float().mT, ids.expand(len(prefix), -1), reduction="none").sum(1)
