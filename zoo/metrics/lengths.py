"""How long reports are beside their references (Reg2RG, Fig. 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

BIN = 10  # words
PRIOR = 0.5  # added to each bin's count, so that an empty bin gives a finite divergence


def length_distribution(
    references: Sequence[str], predictions: Sequence[str], prepare: Callable[[str], str]
) -> dict[str, Any]:
    """Histograms of report lengths and the Kullback-Leibler divergence between them.

    The paper plots kernel densities without naming kernel or direction. Here lengths are white-space words of the
    prepared text in bins of 10 words from 0 to the longest report of either side, half a count is added to each
    bin (Jeffreys), and the divergence is KL(reference ‖ prediction) in nats.

    Args:
        references: Reference reports.
        predictions: Predicted reports, as many.
        prepare: The protocol's text preparation.

    Returns:
        `unit`, `bin_width`, `reference` and `prediction` (each `counts`, `mean`, `median`), `kl_divergence`,
        `direction`.
    """
    words = [np.array([len(prepare(text).split()) for text in side]) for side in (references, predictions)]
    edges = np.arange(0, max(int(side.max()) for side in words) + BIN + 1, BIN)
    counts = [np.histogram(side, edges)[0] for side in words]
    theirs, mine = ((count + PRIOR) / (count + PRIOR).sum() for count in counts)
    sides = [
        {"counts": count.tolist(), "mean": float(side.mean()), "median": float(np.median(side))}
        for side, count in zip(words, counts, strict=True)
    ]
    return {
        "unit": "words",
        "bin_width": BIN,
        "reference": sides[0],
        "prediction": sides[1],
        "kl_divergence": float((theirs * np.log(theirs / mine)).sum()),
        "direction": "reference || prediction, nats, 0.5 added to each bin",
    }
