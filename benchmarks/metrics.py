"""The protocol `reg2rg` on 1,000 pairs: counts shared by all metrics, against plain per-sample use of the packages.

`python -m benchmarks.metrics [--pairs 1000]` prints seconds, factors and the largest difference. Pairs are drawn from
made-up sentences, about 35 words each and three in ten repeated (region reports repeat more). The plain side loops over
studies: BLEU for each order from its own n-gram counts, rouge_score, NLTK's METEOR, pycocoevalcap's CIDEr. Hugging
Face `evaluate` does the same inside; what it adds at each call is not counted. Loading WordNet is timed by itself.
"""

from __future__ import annotations

import argparse
import importlib
import math
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np

from zoo.metrics.nlg import ngrams
from zoo.metrics.pairs import MetricUnavailable, Pairs
from zoo.metrics.protocols import REG2RG
from zoo.metrics.tokenise import tokenise_13a

Texts = list[str]


def draw(number: int, seed: int = 0) -> tuple[Texts, Texts]:
    """References and predictions of `number` studies."""
    random_ = random.Random(seed)
    organs = ("heart", "lung", "liver", "aorta", "trachea", "spleen", "kidney", "thyroid", "pleura", "vertebra")
    states = ("normal", "enlarged", "clear", "open", "calcified", "reduced in density", "increased in size")
    sentences = [
        f"The {random_.choice(organs)} is {random_.choice(states)}, measuring {random_.randint(2, 90)} mm "
        f"in the {random_.choice(('left', 'right', 'upper', 'lower'))} {random_.choice(organs)}."
        for _ in range(300)
    ]

    def report() -> str:
        return " ".join(random_.choices(sentences[: random_.choice((20, 300))], k=random_.randint(1, 4)))

    kinds = [(report(), report()) for _ in range(round(0.7 * number))]
    pairs = kinds + random_.choices(kinds, k=number - len(kinds))
    return [reference for reference, _ in pairs], [prediction for _, prediction in pairs]


def plain_bleu(references: Texts, predictions: Texts, order: int) -> np.ndarray:
    """Smoothed BLEU a study at a time, everything counted anew for each order."""
    values = []
    for reference, prediction in zip(references, predictions, strict=True):
        theirs, mine = tokenise_13a(reference), tokenise_13a(prediction)
        logs = 0.0
        for n in range(1, order + 1):
            matches = Counter(ngrams(mine, n)) & Counter(ngrams(theirs, n))
            logs += math.log((matches.total() + 1) / (max(0, len(mine) - n + 1) + 1))
        brevity = 1.0 if len(mine) > len(theirs) else math.exp(1 - len(theirs) / len(mine))
        values.append(math.exp(logs / order) * brevity)
    return np.array(values)


def plain_rouge(references: Texts, predictions: Texts, kind: str) -> np.ndarray:
    """rouge_score a study at a time."""
    scorer = importlib.import_module("rouge_score.rouge_scorer").RougeScorer([kind], use_stemmer=False)
    pairs = zip(references, predictions, strict=True)
    return np.array([scorer.score(reference, prediction)[kind].fmeasure for reference, prediction in pairs])


def plain_cider(references: Texts, predictions: Texts) -> np.ndarray:
    """pycocoevalcap."""
    cider = importlib.import_module("pycocoevalcap.cider.cider").Cider()
    sides = ({i: [text] for i, text in enumerate(side)} for side in (references, predictions))
    return np.asarray(cider.compute_score(*sides)[1])


def plain_meteor(references: Texts, predictions: Texts) -> np.ndarray:
    """NLTK's `meteor_score` a study at a time; raises `LookupError` where NLTK finds no WordNet of its own."""
    wordnet = importlib.import_module("nltk.corpus").wordnet
    score = importlib.import_module("nltk.translate.meteor_score").meteor_score
    tokenise = importlib.import_module("nltk.tokenize.destructive").NLTKWordTokenizer().tokenize
    values = []
    for pair in zip(references, predictions, strict=True):
        theirs, mine = ([word for part in re.split(r"(?<=[.!?])\s+", text) for word in tokenise(part)] for text in pair)
        values.append(score([theirs], mine, wordnet=wordnet))
    return np.array(values)


PLAIN: dict[str, Callable[[Texts, Texts], np.ndarray]] = {
    **{f"bleu_{n}": partial(plain_bleu, order=n) for n in range(1, 5)},
    **{f"rouge_{n.lower()}": partial(plain_rouge, kind=f"rouge{n}") for n in "12L"},
    "meteor": plain_meteor,
    "cider": plain_cider,
}


def measure(score: Callable[[], np.ndarray | None]) -> tuple[np.ndarray | None, float]:
    """Values (`None` where something is not at hand) and seconds."""
    begun = time.perf_counter()
    try:
        values = score()
    except (LookupError, MetricUnavailable) as missing:
        print(str(missing).strip().splitlines()[0])
        return None, 0.0
    return values, time.perf_counter() - begun


def main() -> None:
    """Prints a row a metric."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1000)
    references, predictions = draw(parser.parse_args().pairs)
    few = Pairs(references[:2], predictions[:2])
    loads = [measure(lambda: REG2RG.metrics["meteor"].score(few).values)[1]]
    loads.append(measure(lambda: plain_meteor(references[:2], predictions[:2]))[1])
    print(f"loading NLTK and WordNet: {loads[0]:.1f} s here, {loads[1]:.1f} s more for NLTK's own reader")

    begun = time.perf_counter()
    pairs = Pairs(references, predictions)
    totals = [0.0, time.perf_counter() - begun]
    print(f"{len(references)} pairs, {len(pairs.distinct)} distinct")
    print(f"{'':10}{'plain':>10}{'here':>10}{'factor':>9}  largest difference")
    for key, metric in REG2RG.metrics.items():
        ours, own = measure(partial(lambda metric: metric.score(pairs).values, metric))
        expected, plain = measure(partial(PLAIN[key], references, predictions))
        if ours is None or expected is None:
            continue
        totals = [totals[0] + plain, totals[1] + own]
        print(f"{key:10}{plain:9.3f}s{own:9.3f}s{plain / own:8.1f}x  {np.abs(ours - expected).max():.1e}")
    print(f"{'together':10}{totals[0]:9.3f}s{totals[1]:9.3f}s{totals[0] / totals[1]:8.1f}x")


if __name__ == "__main__":
    main()
