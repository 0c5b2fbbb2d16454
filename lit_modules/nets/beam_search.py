"""ClipCap's beam search, which RegionFormer writes with, batched and with a cache.

Mokady et al., arXiv:2111.09734; the rule is that of the code, for no paper spells it out (compared with
LightVED-prhlt/RegionFormer at 84205cc). It is not transformers' `generate(num_beams=…)`: there, a finished text leaves
the beam and cannot be lost to running ones; here, it keeps its place, competes with them by mean log-probability at
every step, and can be pushed out. On short texts the two often differ.

Differs from the authors' code in: many studies at a time; the prefix is read once per study, not for every beam at
every step; a token is computed from the cache of those before it; finished beams are not computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datamodules.study import SettingsFault


@dataclass(frozen=True, eq=False)
class BeamResult:
    """What a search found, the best beam of each study first.

    Attributes:
        ids: `(study, beam, token)`, the stop token included; -1 after the end.
        scores: `(study, beam)`, the mean log-probability of a beam's tokens, the stop token's included.
        lengths: `(study, beam)`, tokens, the stop token included.
    """

    ids: Tensor
    scores: Tensor
    lengths: Tensor


@torch.no_grad()
def beam_search(
    model: Any,
    prefix_embeds: Tensor,
    beams: int = 5,
    max_new_tokens: int = 15,
    stop: int = 13,
    temperature: float = 1.0,
) -> BeamResult:
    """Searches for the texts that a language model gives the highest mean log-probability after a prefix.

    A study's result depends on no other study of the batch.

    Args:
        model: A causal language model of transformers, in eval mode.
        prefix_embeds: `(study, position, dim)`, what stands before the text, in the model's embedding space.
        beams: Texts that are followed (paper §4: 5).
        max_new_tokens: Longest text, tokens (paper §4: 15).
        stop: The token that ends a text; 13 is GPT-2's full stop.
        temperature: Logits are divided by it.

    Raises:
        SettingsFault: A number is out of range.
    """
    if beams < 1 or max_new_tokens < 1 or temperature <= 0:
        raise SettingsFault(
            f"beams={beams}, max_new_tokens={max_new_tokens}, temperature={temperature}: each must be above 0"
        )
    from transformers import DynamicCache

    cache: Any = DynamicCache(config=model.config)
    embed = model.get_input_embeddings()

    def successors(embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities and tokens of each row's best successors, `(row, successor)`: no beam can use more."""
        logits = model(inputs_embeds=embeds, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        logits = logits[:, -1].float() / temperature
        best, tokens = logits.topk(beams)
        return best - logits.logsumexp(-1, keepdim=True), tokens

    scores, token = successors(prefix_embeds)
    ids = token.new_full((*token.shape, max_new_tokens), -1)
    ids[..., 0] = token
    lengths, running = torch.ones_like(token), token != stop
    studies = torch.arange(len(ids), device=ids.device)
    rows = studies[:, None].expand_as(token)  # the cache's row that a beam continues
    for position in range(1, max_new_tokens):
        if not running.any():
            break
        cache.reorder_cache(rows[running])  # from here on, a row for each running beam, in the order of `running`
        best, tokens = successors(embed(token[running])[:, None])
        log_p = scores.new_full((*running.shape, beams), -torch.inf)
        log_p[..., 0] = 0.0  # a finished beam has one successor: itself
        log_p[running] = best
        next_token = tokens.new_full(log_p.shape, -1)
        next_token[running] = tokens
        grown = lengths + running
        means = ((scores * lengths)[..., None] + log_p) / grown[..., None]
        scores, chosen = means.flatten(1).topk(beams)
        parent, token = chosen // beams, next_token.flatten(1).gather(1, chosen)
        ids = ids.gather(1, parent[..., None].expand_as(ids))
        ids[..., position] = token
        lengths = grown.gather(1, parent)
        rows = (running.flatten().cumsum(0) - 1).view_as(running).gather(1, parent)
        running = running.gather(1, parent) & (token != stop)
    return BeamResult(ids, scores, lengths)
