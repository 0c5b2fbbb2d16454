"""Protocols: what exactly a figure means.

A protocol fixes the text preparation, the tokenisers, the smoothing, the aggregation, the label sets and the scale of
each metric. Its id and version travel with every value, because the same predictions score BLEU-1 0.45 or 0.53
depending on them. `docs/protocols.md` explains each one, its source and what it reproduces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from zoo.metrics import nlg
from zoo.metrics.bertscore import DISTILBERT, ROBERTA_LARGE, Encoder, bertscore
from zoo.metrics.chexbert import Uncertain, chexbert_metrics
from zoo.metrics.labels import Scored
from zoo.metrics.meteor_jar import corpus as meteor_statistics
from zoo.metrics.meteor_jar import meteor_15
from zoo.metrics.meteor_nltk import meteor
from zoo.metrics.pairs import Corpus, Pairs, Score, Tokenise
from zoo.metrics.ptb import tokenise_ptb
from zoo.metrics.radbert_ct import radbert_metrics
from zoo.metrics.radgraph import Level, radgraph
from zoo.metrics.rules14 import rules14_metrics
from zoo.metrics.tokenise import (
    clean_r2gen,
    one_line,
    strip_region_prefixes,
    tokenise_13a,
    tokenise_rouge,
    tokenise_rouge_stemmed,
    tokenise_spaces,
)


@dataclass(frozen=True)
class Metric:
    """One metric of a protocol.

    Attributes:
        label: Its name in a table.
        score: Prepared pairs → its score.
        how: Tokeniser, smoothing and aggregation, in one line.
        cheap: Whether it is worth its time at every validation.
        corpus: How its value comes from sums over studies; `None`: it is the mean of the studies' values.
    """

    label: str
    score: Callable[[Pairs], Score]
    how: str
    cheap: bool = True
    corpus: Corpus | None = None


@dataclass(frozen=True)
class Protocol:
    """A set of metrics under one text preparation.

    Attributes:
        id: Its name on the command line.
        version: Raised whenever any value could change.
        source: Where the definition comes from.
        certain: Whether the source states or releases the definition, or it is inferred.
        prepare: Raw text → the text that is scored.
        preparation: What `prepare` does, in words.
        metrics: Key in the JSON → metric.
        printed_scale: What its source multiplies figures by when it prints them.
    """

    id: str
    version: int
    source: str
    certain: bool
    prepare: Callable[[str], str]
    preparation: str
    metrics: Mapping[str, Metric]
    printed_scale: float = 1.0


# Families of metrics

ONE_LINE = "white space and control characters collapsed to single spaces; case and punctuation kept"
SPACES, PTB = "cased white-space words", "Stanford PTB tokens, lower case, without punctuation"


def _bleu_coco(tokenise: Tokenise, tokens: str, name: str) -> dict[str, Metric]:
    how = f"pycocoevalcap's corpus BLEU on {tokens}"
    return {
        f"bleu_{n}": Metric(
            f"BLEU-{n}",
            partial(nlg.bleu_corpus, order=n, tokenise=tokenise, smoothing="epsilon"),
            how,
            corpus=nlg.ngram_statistics(f"ngrams_{name}", n, "epsilon"),
        )
        for n in range(1, 5)
    }


def _rouge_f1(stemmed: bool, which: str = "12L") -> dict[str, Metric]:
    tokenise = tokenise_rouge_stemmed if stemmed else tokenise_rouge
    how = f"rouge_score F1 {'with' if stemmed else 'without'} stemming; mean over studies"
    metric = partial(partial, nlg.rouge_mean, tokenise=tokenise)
    return {f"rouge_{n.lower()}": Metric(f"ROUGE-{n}", metric(which=n.lower()), how) for n in which}


def _rouge_coco(tokenise: Tokenise, tokens: str) -> dict[str, Metric]:
    score = partial(nlg.rouge_mean, which="l", tokenise=tokenise, beta=1.2)
    return {"rouge_l": Metric("ROUGE-L", score, f"pycocoevalcap's F with beta 1.2 on {tokens}; mean over studies")}


def _cider(tokenise: Tokenise, tokens: str) -> dict[str, Metric]:
    how = f"CIDEr-D (x10) on {tokens}; document frequencies of these references; mean over studies"
    return {"cider": Metric("CIDEr", partial(nlg.cider, tokenise=tokenise), how)}


def _meteor_15(tokenise: Tokenise | None, tokens: str, name: str, key: str = "meteor") -> dict[str, Metric]:
    how = f"METEOR 1.5 (English, normalised) on {tokens}; aggregate of its statistics over studies"
    corpus = meteor_statistics(f"meteor_15_{name}")
    label = "METEOR" if key == "meteor" else "METEOR 1.5"
    return {key: Metric(label, partial(meteor_15, tokenise=tokenise), how, cheap=False, corpus=corpus)}


_NLTK = "NLTK (alpha 0.9, beta 3, gamma 0.5), WordNet 3.0; mean over studies"
_METEOR_NLTK = {"meteor": Metric("METEOR", meteor, _NLTK, cheap=False)}


def _bertscore(encoder: Encoder, settings: str) -> dict[str, Metric]:
    kinds: dict[Literal["p", "r", "f1"], str] = {"p": "precision", "r": "recall", "f1": "F1"}
    how = f"{settings}; mean over studies"
    return {
        f"bertscore_{which}": Metric(
            f"BERTScore {name}", partial(bertscore, encoder=encoder, which=which), how, cheap=False
        )
        for which, name in kinds.items()
    }


def _labels(found: Mapping[str, Scored], name: str, how: str) -> dict[str, Metric]:
    return {
        key: Metric(f"{name} {_averaged(key)}", score, how, cheap=False, corpus=corpus)
        for key, (score, corpus) in found.items()
    }


def _averaged(key: str) -> str:
    average, figure = key.rsplit("_", 2)[-2:]
    return f"{average}-{figure.replace('f1', 'F1')}"


def _chexbert(uncertain: Uncertain, sizes: Sequence[Literal[14, 5]] = (14, 5)) -> dict[str, Metric]:
    counts_as = f"uncertain counts as {uncertain}; No Finding is one of the 14"
    return {
        key: metric
        for size in sizes
        for key, metric in _labels(
            chexbert_metrics(size, uncertain), f"CheXbert-{size}", f"CheXbert on both texts; {counts_as}"
        ).items()
    }


def _radgraph() -> dict[str, Metric]:
    how = "RadGraph-XL on both texts; F1 of sets, tokens as written (radgraph 0.1.18 of PyPI); mean over studies"
    levels: tuple[Level, ...] = ("simple", "partial", "complete")
    return {
        f"radgraph_{level}": Metric(f"RadGraph {level}", partial(radgraph, level=level), how, cheap=False)
        for level in levels
    }


# Reg2RG


def _bleu_reg2rg() -> dict[str, Metric]:
    how = "13a tokens, cased; one added to every precision, unigrams included; mean over studies (overall: one corpus)"
    score = partial(partial, nlg.bleu_mean, tokenise=tokenise_13a, smoothing="add_one")
    return {f"bleu_{n}": Metric(f"BLEU-{n}", score(order=n), how) for n in range(1, 5)}


def _rouge_reg2rg(pairs: Pairs, which: str) -> Score:
    """Mean F1; overall is the median of 1,000 bootstrap means as in `evaluate`: seed 42, drawn for 1, 2, then L."""
    values = nlg.rouge_mean(pairs, which, tokenise_rouge).values
    assert values is not None
    random = np.random.RandomState(42)
    random.randint(0, len(values), size="12l".index(which) * _RESAMPLES * len(values))  # what its predecessors draw
    return Score(values, float(np.median(nlg.bootstrap_means(values, random, _RESAMPLES))))


def _rouge_reg2rg_metric(n: str) -> Metric:
    how = "rouge_score F1 without stemming; mean over studies (overall: bootstrap median, seed 42)"
    return Metric(f"ROUGE-{n}", partial(_rouge_reg2rg, which=n.lower()), how)


_RESAMPLES = 1000

REG2RG = Protocol(
    id="reg2rg",
    version=1,
    source="Chen et al., Reg2RG, IEEE TMI 2025, §IV-A and its released evaluation code",
    certain=True,
    prepare=strip_region_prefixes,
    preparation='prefixes "The region <n> is <name>: " removed, white space collapsed',
    metrics={
        **_bleu_reg2rg(),
        **{f"rouge_{n.lower()}": _rouge_reg2rg_metric(n) for n in "12L"},
        **_METEOR_NLTK,
        **_cider(tokenise_spaces, SPACES),
        **_labels(
            radbert_metrics(),
            "RadBERT-CT-18",
            "CT-CLIP's RadBERT classifier on both texts, 18 labels, probability at least 0.5; the paper prints micro",
        ),
    },
    printed_scale=100,
)  # fmt: skip

REGIONFORMER = Protocol(
    id="regionformer",
    version=1,
    source="RegionFormer (PadChest-GR); settings of the scorers in the authors' other public repository",
    certain=False,
    prepare=one_line,
    preparation=ONE_LINE,
    metrics={
        **_bleu_coco(tokenise_spaces, SPACES, "spaces"),
        **_rouge_f1(stemmed=True, which="L"),
        **_cider(tokenise_spaces, SPACES),
        **_bertscore(DISTILBERT, "distilbert-base-uncased, layer 5, no idf, rescaled with bert-score's baseline"),
        **_chexbert("positive", (5, 14)),
        **_radgraph(),
    },
    printed_scale=100,
)

ASARG = Protocol(
    id="asarg",
    version=1,
    source="ASaRG (MIMIC-CXR), §IV; it names no tool: METEOR as the paper that it cites, the others as for captions",
    certain=False,
    prepare=one_line,
    preparation=ONE_LINE,
    metrics={
        **_bleu_coco(tokenise_ptb, PTB, "ptb"),
        **_METEOR_NLTK,
        **_meteor_15(tokenise_ptb, PTB, "ptb", key="meteor_15"),
        **_rouge_coco(tokenise_ptb, PTB),
        **_cider(tokenise_ptb, PTB),
        **_chexbert("positive", (14,)),
    },
)

OVERLAY = Protocol(
    id="overlay",
    version=1,
    source="Overlay-SFT (CANDID-PTX), Tables 2 and 3; it names no tool: Hugging Face `evaluate` by default settings",
    certain=False,
    prepare=one_line,
    preparation=ONE_LINE,
    metrics={
        **{
            f"bleu_{n}": Metric(
                f"BLEU-{n}",
                partial(nlg.bleu_corpus, order=n, tokenise=tokenise_13a, smoothing="none"),
                "corpus BLEU on 13a tokens, cased, without smoothing",
                corpus=nlg.ngram_statistics("ngrams_13a", n, "none"),
            )
            for n in range(1, 5)
        },
        **_rouge_f1(stemmed=False),
        **_bertscore(ROBERTA_LARGE, "roberta-large, layer 17, no idf, not rescaled"),
    },
)

COCO = Protocol(
    id="coco",
    version=1,
    source="the COCO caption evaluation (pycocoevalcap 1.2)",
    certain=True,
    prepare=one_line,
    preparation=ONE_LINE,
    metrics={
        **_bleu_coco(tokenise_ptb, PTB, "ptb"),
        **_meteor_15(tokenise_ptb, PTB, "ptb"),
        **_rouge_coco(tokenise_ptb, PTB),
        **_cider(tokenise_ptb, PTB),
    },
)

_R2GEN_WORDS = "words of the cleaned text"
R2GEN = Protocol(
    id="r2gen",
    version=1,
    source="R2Gen and its descendants: cleaning of MIMIC-CXR reports, pycocoevalcap without its tokeniser",
    certain=True,
    prepare=clean_r2gen,
    preparation="R2Gen's cleaning of both sides: lower case, no enumeration or punctuation, sentences joined by ' . '",
    metrics={
        **_bleu_coco(tokenise_spaces, _R2GEN_WORDS, "spaces"),
        **_meteor_15(None, _R2GEN_WORDS, "spaces"),
        **_rouge_coco(tokenise_spaces, _R2GEN_WORDS),
        **_cider(tokenise_spaces, _R2GEN_WORDS),
        **_chexbert("negative", (14, 5)),
    },
)

RADEVAL = Protocol(
    id="radeval",
    version=1,
    source="RadEval 2.2 (MIT licence), its default metrics that a report's text and local encoders allow",
    certain=True,
    prepare=one_line,
    preparation=ONE_LINE,
    metrics={
        **_bleu_coco(tokenise_spaces, SPACES, "spaces"),
        **_rouge_f1(stemmed=True),
        **_bertscore(DISTILBERT, "distilbert-base-uncased, layer 5, no idf, rescaled with bert-score's baseline"),
        **_chexbert("positive", (14, 5)),
        **_radgraph(),
    },
)

RULES14 = Protocol(
    id="rules14",
    version=1,
    source="this project: a few phrases for drawn radiographs; not CheXbert, and never on the leaderboard",
    certain=True,
    prepare=one_line,
    preparation=ONE_LINE,
    metrics=_labels(rules14_metrics(), "rules14", "this project's phrases on both texts; uncertain counts as positive"),
)

PROTOCOLS: Mapping[str, Protocol] = {
    protocol.id: protocol for protocol in (REG2RG, REGIONFORMER, ASARG, OVERLAY, COCO, R2GEN, RADEVAL)
}
