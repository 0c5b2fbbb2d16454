"""BLEU, ROUGE and CIDEr from integer statistics that are counted once for each distinct pair of texts.

Reports repeat themselves (of the 1,323 oesophagus pairs released with Reg2RG, 311 are distinct), so a text is tokenised
once, a pair is compared once, and every variant of a metric (order, mean over studies or corpus) is arithmetic on the
same counts.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

MAX_ORDER = 4
Tokenise = Callable[[str], list[str]]


@dataclass(frozen=True, eq=False)
class Score:
    """A metric's outcome.

    Attributes:
        values: One value for each study, `(study,)`, float64.
        overall: The metric of the whole file at once, where the protocol states one beside the mean.
    """

    values: np.ndarray
    overall: float | None = None


class Pairs:
    """Prepared references and predictions, in the studies' order.

    Args:
        references: One text for each study.
        predictions: One text for each study.
    """

    def __init__(self, references: Sequence[str], predictions: Sequence[str]) -> None:
        positions: dict[tuple[str, str], int] = {}
        self.index = np.array(
            [positions.setdefault(pair, len(positions)) for pair in zip(references, predictions, strict=True)],
            dtype=np.intp,
        )
        self.distinct = list(positions)
        self._tokens: dict[Tokenise, list[tuple[list[str], list[str]]]] = {}
        self._counts: dict[Tokenise, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.index)

    def tokens(self, tokenise: Tokenise) -> list[tuple[list[str], list[str]]]:
        """`(reference, prediction)` as tokens, for each distinct pair."""
        if tokenise not in self._tokens:
            texts = {text: tokenise(text) for text in dict.fromkeys(text for pair in self.distinct for text in pair)}
            self._tokens[tokenise] = [(texts[reference], texts[prediction]) for reference, prediction in self.distinct]
        return self._tokens[tokenise]

    def counts(self, tokenise: Tokenise) -> np.ndarray:
        """`ngram_counts` for each study, `(study, 10)`, int64."""
        if tokenise not in self._counts:
            rows = [ngram_counts(prediction, reference) for reference, prediction in self.tokens(tokenise)]
            self._counts[tokenise] = np.array(rows, dtype=np.int64).reshape(-1, 2 * MAX_ORDER + 2)[self.index]
        return self._counts[tokenise]

    def each(self, score: Callable[[list[str], list[str]], float], tokenise: Tokenise) -> np.ndarray:
        """`score(reference, prediction)` for each study, `(study,)`, computed once for each distinct pair."""
        return np.array([score(*tokens) for tokens in self.tokens(tokenise)], dtype=np.float64)[self.index]


# Tokenisers


def tokenise_13a(text: str) -> list[str]:
    """mteval-v13a's tokens (the WMT standard), case kept."""
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(entity, character)
    text = f" {text} "
    for pattern, replacement in _RULES_13A:
        text = pattern.sub(replacement, text)
    return text.split()


_RULES_13A = (
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),  # punctuation, without ' , - .
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),  # period and comma, unless a digit stands before
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),  # … or behind
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),  # dash behind a digit
)


def tokenise_rouge(text: str) -> list[str]:
    """rouge_score's tokens without stemming: lower case, runs of `[a-z0-9]`."""
    return _ALPHANUMERIC.findall(text.lower())


_ALPHANUMERIC = re.compile(r"[a-z0-9]+")

tokenise_spaces: Tokenise = str.split

# Counts


def ngram_counts(prediction: list[str], reference: list[str]) -> list[int]:
    """Clipped n-gram matches (n = 1…4), the prediction's n-grams (n = 1…4), and both lengths in tokens."""
    matches, possible = [0] * MAX_ORDER, [max(0, len(prediction) - n) for n in range(MAX_ORDER)]
    for n in range(1, min(MAX_ORDER, len(prediction), len(reference)) + 1):
        fewer, more = Counter(ngrams(prediction, n)), Counter(ngrams(reference, n))
        if len(fewer) > len(more):
            fewer, more = more, fewer
        matches[n - 1] = sum(min(count, more[gram]) for gram, count in fewer.items() if gram in more)
    return [*matches, *possible, len(prediction), len(reference)]


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


# Metrics


def bleu(counts: np.ndarray, order: int) -> np.ndarray:
    """BLEU as in tensorflow/nmt and Hugging Face `evaluate` with `smooth=True`: each precision is (m + 1) / (p + 1).

    Args:
        counts: `ngram_counts`, `(…, 10)`; sums over studies give the corpus value.
        order: The longest n-gram.

    Returns:
        `(…)` in [0, 1]; 0 where the prediction or the reference has no token (there the original divides by zero).
    """
    matches, possible = counts[..., :order], counts[..., MAX_ORDER : MAX_ORDER + order]
    length, reference_length = counts[..., -2].astype(float), counts[..., -1].astype(float)
    empty = (length == 0) | (reference_length == 0)
    ratio = np.where(empty, 1.0, length) / np.where(empty, 1.0, reference_length)
    brevity = np.where(ratio > 1, 1.0, np.exp(1 - 1 / ratio))
    geometric_mean = np.exp(np.log((matches + 1) / (possible + 1)).sum(-1) / order)
    return np.where(empty, 0.0, geometric_mean * brevity)


def bleu_smoothed_13a(pairs: Pairs, order: int) -> Score:
    """Mean over studies of the smoothed BLEU on 13a tokens; overall is the same formula on the whole file's counts."""
    counts = pairs.counts(tokenise_13a)
    return Score(bleu(counts, order), float(bleu(counts.sum(0), order)))


def rouge_n(pairs: Pairs, order: int) -> np.ndarray:
    """rouge_score's ROUGE-n F1 without stemming, `(study,)`."""
    counts = pairs.counts(tokenise_rouge)
    reference_ngrams = np.maximum(counts[:, -1] - order + 1, 0)
    return _f1(counts[:, order - 1], counts[:, MAX_ORDER + order - 1], reference_ngrams)


def rouge_l(pairs: Pairs) -> np.ndarray:
    """rouge_score's ROUGE-L F1 without stemming, `(study,)`."""
    counts = pairs.counts(tokenise_rouge)
    return _f1(pairs.each(common_subsequence, tokenise_rouge), counts[:, -2], counts[:, -1])


def _f1(matches: np.ndarray, predicted: np.ndarray, expected: np.ndarray) -> np.ndarray:
    precision, recall = matches / np.maximum(predicted, 1), matches / np.maximum(expected, 1)
    total = precision + recall
    return 2 * precision * recall / np.where(total > 0, total, 1.0)


def bootstrap_means(values: np.ndarray, random: np.random.RandomState, resamples: int) -> np.ndarray:
    """Means of resamples with replacement, `(resample,)`; draws the numbers that rouge_score's aggregator draws."""
    return np.array([values[random.randint(0, len(values), size=len(values))].mean() for _ in range(resamples)])


def cider(pairs: Pairs, sigma: float = 6.0) -> Score:
    """CIDEr-D as in pycocoevalcap, one reference a study, on whitespace-separated cased words.

    Document frequencies come from the references given, so a value belongs to its set of studies (one study gives 0).
    """
    studies = np.bincount(pairs.index, minlength=len(pairs.distinct))
    grams: dict[str, list[Counter[tuple[str, ...]]]] = {}
    for text in dict.fromkeys(text for pair in pairs.distinct for text in pair):
        words = tokenise_spaces(text)
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
