"""The learning rate over a fit: a linear warm-up from 0, then a fall to 0 at the last step."""

from __future__ import annotations

import math
from typing import Literal


def rate(step: int, total: int, warmup_share: float, decay: Literal["linear", "cosine"]) -> float:
    """Share of the learning rate at an optimiser step.

    Args:
        step: From 0.
        total: Steps of the whole fit; 0 while it is not known: the optimizer asks for its first rate before, so a
            warm-up has at least that one step.
        warmup_share: Share of all steps in which the rate grows.
        decay: The shape of the fall.
    """
    warmup = max(bool(warmup_share), math.ceil(warmup_share * total))
    if step < warmup:
        return step / warmup
    span = max(1, total - warmup)
    if decay == "linear":
        return max(0.0, (total - step) / span)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / span)))
