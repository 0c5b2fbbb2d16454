"""BLEU, ROUGE and CIDEr from integer statistics that are counted once for each distinct pair of texts.

Reports repeat themselves (of the 1,323 oesophagus pairs released with Reg2RG, 311 are distinct), so a text is tokenised
once, a pair is compared once, and every variant of a metric (order, smoothing, mean over studies or corpus, bootstrap
resample) is arithmetic on the same counts.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import Literal

import numpy as np

from zoo.metrics.pairs import Corpus, Pairs, Score, Tokenise

MAX_ORDER = 4
Smoothing = Literal["none", "add_one", "add_one_above_unigrams", "epsilon", "exponential", "tenth"]

# Counts


def counts(pairs: Pairs, tokenise: Tokenise) -> np.ndarray:
    """`ngram_counts` for each study, `(study, 10)`, int64."""

    def count() -> np.ndarray:
        rows = [ngram_counts(prediction, reference) for reference, prediction in pairs.tokens(tokenise)]
        return np.array(rows, dtype=np.int64).reshape(-1, 2 * MAX_ORDER + 2)[pairs.index]

    return pairs.once(("ngrams", tokenise), count)


def ngram_counts(prediction: list[str], reference: list[str]) -> list[int]:
    """Clipped n-gram matches (n = 1…4), the prediction's n-grams (n = 1…4), and both lengths in tokens."""
    matches, possible = [0] * MAX_ORDER, [max(0, len(prediction) - n) for n in range(MAX_ORDER)]
    for n in range(1, min(MAX_ORDER, len(prediction), len(reference)) + 1):
        fewer, more = Counter(ngrams(prediction, n)), Counter(ngrams(reference, n))
        if len(fewer) > len(more):
            fewer, more = more, fewer
        matches[n - 1] = sum(min(count, more[gram]) for gram, count in fewer.items() if gram in more)
        if not matches[n - 1]:
            break  # without a common n-gram there is no longer one
    return [*matches, *possible, len(prediction), len(reference)]


NGRAM_COLUMNS = (*(f"match_{n}" for n in range(1, 5)), *(f"possible_{n}" for n in range(1, 5)), "words", "expected")


def ngrams(tokens: list[str], n: int) -> zip[tuple[str, ...]]:
    """All n-grams, in order."""
    return zip(*(tokens[i:] for i in range(n)), strict=False)


def common_subsequence(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyrö 2004): an addition a token, not a table row."""
    positions: dict[str, int] = {}
    for i, token in enumerate(a):
        positions[token] = positions.get(token, 0) | 1 << i
    mask = row = (1 << len(a)) - 1
    for token in b:
        match = row & positions.get(token, 0)
        row = ((row + match) | (row - match)) & mask
    return len(a) - row.bit_count()


# BLEU


def bleu(counts: np.ndarray, order: int = MAX_ORDER, smoothing: Smoothing = "none") -> np.ndarray:
    """BLEU in all the variants that the field's packages compute.

    Args:
        counts: `ngram_counts`, `(…, 10)`; sums over studies give the corpus value.
        order: The longest n-gram.
        smoothing: What is done about n-grams that do not match.
            `none`: the product is 0 (Papineni et al. 2002; Hugging Face `evaluate` by default).
            `add_one`: each precision is (m + 1) / (p + 1) (tensorflow/nmt, `evaluate` with `smooth=True`).
            `add_one_above_unigrams`: the same from bigrams on (torchmetrics with `smooth=True`).
            `epsilon`: (m + 1e-15) / (p + 1e-9) (pycocoevalcap).
            `exponential`: the k-th precision without a match counts 1/2^k of a match (sacrebleu).
            `tenth`: a precision without a match counts 0.1 of one (NLTK's method 1).

    Returns:
        `(…)` in [0, 1]; 0 where the prediction or the reference has no token, where some of the originals divide by 0.
    """
    matches = counts[..., :order].astype(float)
    possible = counts[..., MAX_ORDER : MAX_ORDER + order].astype(float)
    length, expected = counts[..., -2].astype(float), counts[..., -1].astype(float)
    empty = (length == 0) | (expected == 0)
    if smoothing == "epsilon":
        matches, possible = matches + 1e-15, possible + 1e-9
        length, expected = length + 1e-15, expected + 1e-9
    elif smoothing.startswith("add_one"):
        more = np.ones(order)
        more[0] = smoothing == "add_one"
        matches, possible = matches + more, possible + more
    elif smoothing == "exponential":
        unmatched = (matches == 0) & (possible > 0)
        matches = np.where(unmatched, 0.5 ** np.cumsum(unmatched, -1), matches)
        empty = empty | (counts[..., 0] == 0)  # sacrebleu smooths only where something matches
    elif smoothing == "tenth":
        matches, possible = np.where(matches == 0, 0.1, matches), np.maximum(possible, 1)
        empty = empty | (counts[..., 0] == 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        precisions = np.where(possible > 0, matches / np.where(possible > 0, possible, 1.0), 0.0)
        geometric_mean = np.exp(np.log(precisions).sum(-1) / order)
        brevity = np.exp(np.minimum(0.0, 1 - expected / np.where(empty & (length == 0), 1.0, length)))
    return np.where(empty, 0.0, geometric_mean * brevity)


def bleu_mean(pairs: Pairs, order: int, tokenise: Tokenise, smoothing: Smoothing) -> Score:
    """Mean over studies; overall is the same formula on the whole file's counts."""
    table = counts(pairs, tokenise)
    return Score(bleu(table, order, smoothing), float(bleu(table.sum(0), order, smoothing)))


def bleu_corpus(pairs: Pairs, order: int, tokenise: Tokenise, smoothing: Smoothing) -> Score:
    """Corpus BLEU, with the studies' own values beside it; `ngram_statistics` says how it comes from the counts."""
    table = counts(pairs, tokenise)
    return Score(bleu(table, order, smoothing), statistics=table)


def ngram_statistics(name: str, order: int, smoothing: Smoothing) -> Corpus:
    """How corpus BLEU comes from summed counts; `name` says of which tokens."""
    return Corpus(name, NGRAM_COLUMNS, partial(bleu, order=order, smoothing=smoothing))


# ROUGE


def rouge_n(pairs: Pairs, order: int, tokenise: Tokenise) -> np.ndarray:
    """rouge_score's ROUGE-n F1, `(study,)`."""
    table = counts(pairs, tokenise)
    expected = np.maximum(table[:, -1] - order + 1, 0)
    return _f_measure(table[:, order - 1], table[:, MAX_ORDER + order - 1], expected)


def rouge_l(pairs: Pairs, tokenise: Tokenise, beta: float = 1.0) -> np.ndarray:
    """ROUGE-L, `(study,)`: rouge_score's F1, or pycocoevalcap's recall-weighted F with `beta` 1.2."""
    table = counts(pairs, tokenise)
    common = pairs.once(("common subsequence", tokenise), lambda: pairs.each(common_subsequence, tokenise))
    return _f_measure(common, table[:, -2], table[:, -1], beta)


def rouge_mean(pairs: Pairs, which: str, tokenise: Tokenise, beta: float = 1.0) -> Score:
    """Mean over studies of ROUGE-1, -2 or -L (`which` is `1`, `2` or `l`)."""
    return Score(rouge_l(pairs, tokenise, beta) if which == "l" else rouge_n(pairs, int(which), tokenise))


def _f_measure(matches: np.ndarray, predicted: np.ndarray, expected: np.ndarray, beta: float = 1.0) -> np.ndarray:
    precision, recall = matches / np.maximum(predicted, 1), matches / np.maximum(expected, 1)
    total = recall + beta**2 * precision
    return (1 + beta**2) * precision * recall / np.where(total > 0, total, 1.0)


def bootstrap_means(values: np.ndarray, random: np.random.RandomState, resamples: int) -> np.ndarray:
    """Means of resamples with replacement, `(resample,)`; draws the numbers that rouge_score's aggregator draws."""
    return np.array([values[random.randint(0, len(values), size=len(values))].mean() for _ in range(resamples)])


# CIDEr


def cider(pairs: Pairs, tokenise: Tokenise, sigma: float = 6.0) -> Score:
    """CIDEr-D as in pycocoevalcap, one reference a study (Vedantam et al. 2015, with the Gaussian length penalty).

    Document frequencies come from the references given, so a value belongs to its set of studies (one study gives 0);
    they stay as they are in bootstrap resamples and permutations.
    """
    studies = np.bincount(pairs.index, minlength=len(pairs.distinct))
    grams: dict[str, list[Counter[tuple[str, ...]]]] = {}
    for texts, tokens in zip(pairs.distinct, pairs.tokens(tokenise), strict=True):
        for text, words in zip(texts, tokens, strict=True):
            if text not in grams:
                grams[text] = [Counter(ngrams(words, n)) for n in range(1, MAX_ORDER + 1)]
    frequency: Counter[tuple[str, ...]] = Counter()
    for (reference, _), times in zip(pairs.distinct, studies.tolist(), strict=True):
        for counter in grams[reference]:
            for gram in counter:
                frequency[gram] += times
    rarest = math.log(len(pairs)) if len(pairs) else 0.0
    weight = {gram: rarest - math.log(times) for gram, times in frequency.items()}

    def vectors(text: str) -> list[tuple[dict[tuple[str, ...], float], float]]:
        found = [{gram: times * weight.get(gram, rarest) for gram, times in counter.items()} for counter in grams[text]]
        return [(vector, math.sqrt(sum(value * value for value in vector.values()))) for vector in found]

    cache = {text: vectors(text) for text in grams}
    bigrams = {text: counters[1].total() for text, counters in grams.items()}
    values = np.zeros(len(pairs.distinct))
    for i, (reference, prediction) in enumerate(pairs.distinct):
        penalty = math.exp(-((bigrams[prediction] - bigrams[reference]) ** 2) / (2 * sigma**2))
        for (mine, my_norm), (theirs, their_norm) in zip(cache[prediction], cache[reference], strict=True):
            if my_norm and their_norm:
                shared = sum(min(value, theirs[gram]) * theirs[gram] for gram, value in mine.items() if gram in theirs)
                values[i] += 10 / MAX_ORDER * penalty * shared / (my_norm * their_norm)
    return Score(values[pairs.index])
