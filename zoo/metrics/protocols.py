"""Protocols: what exactly a figure means.

A protocol fixes the text preparation, the tokeniser, the smoothing, the aggregation and the scale of each metric. Its
id and version travel with every value, because the same predictions score BLEU-1 0.45 or 0.53 depending on them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from zoo.metrics import nlg
from zoo.metrics.meteor import meteor
from zoo.metrics.nlg import Pairs, Score


@dataclass(frozen=True)
class Metric:
    """One metric of a protocol.

    Attributes:
        label: Its name in a table.
        score: Prepared pairs → its score.
        how: Tokeniser, smoothing and aggregation, in one line.
        cheap: Whether it is worth its time at every validation.
    """

    label: str
    score: Callable[[Pairs], Score]
    how: str
    cheap: bool = True


@dataclass(frozen=True)
class Protocol:
    """A set of metrics under one text preparation.

    Attributes:
        id: Its name on the command line.
        version: Raised whenever any value could change.
        source: Where the definition comes from.
        prepare: Raw text → the text that is scored.
        preparation: What `prepare` does, in words.
        metrics: Key in the JSON → metric.
    """

    id: str
    version: int
    source: str
    prepare: Callable[[str], str]
    preparation: str
    metrics: Mapping[str, Metric]


def strip_region_prefixes(text: str) -> str:
    """Drops Reg2RG's "The region 3 is lung: " prefixes and collapses white space."""
    return re.sub(r"\s+", " ", re.sub(r"The region \d+ is [^:]+: ", "", text)).strip()


def _reg2rg_rouge(pairs: Pairs, which: str) -> Score:
    """Mean F1; overall is the median of 1,000 bootstrap means as in `evaluate`: seed 42, drawn for 1, 2, then L."""
    values = nlg.rouge_l(pairs) if which == "l" else nlg.rouge_n(pairs, int(which))
    random = np.random.RandomState(42)
    random.randint(0, len(values), size="12l".index(which) * _RESAMPLES * len(values))  # what its predecessors draw
    return Score(values, float(np.median(nlg.bootstrap_means(values, random, _RESAMPLES))))


_RESAMPLES = 1000
_BLEU = "13a tokens, cased; one added to every precision, unigrams included; mean over studies (overall: one corpus)"
_ROUGE = "rouge_score F1 without stemming; mean over studies (overall: bootstrap median, seed 42)"

REG2RG = Protocol(
    id="reg2rg",
    version=1,
    source="Chen et al., Reg2RG, IEEE TMI 2025, §IV-A and its released evaluation code",
    prepare=strip_region_prefixes,
    preparation='prefixes "The region <n> is <name>: " removed, white space collapsed',
    metrics={
        **{f"bleu_{n}": Metric(f"BLEU-{n}", partial(nlg.bleu_smoothed_13a, order=n), _BLEU) for n in range(1, 5)},
        **{f"rouge_{n.lower()}": Metric(f"ROUGE-{n}", partial(_reg2rg_rouge, which=n.lower()), _ROUGE) for n in "12L"},
        "meteor": Metric(
            "METEOR", meteor, "NLTK (alpha 0.9, beta 3, gamma 0.5), WordNet 3.0; mean over studies", cheap=False
        ),
        "cider": Metric(
            "CIDEr", nlg.cider, "CIDEr-D (x10) on cased white-space words; document frequencies of these references"
        ),
    },
)

PROTOCOLS: Mapping[str, Protocol] = {protocol.id: protocol for protocol in (REG2RG,)}
