"""Clinical efficacy by labels: precision, recall and F1 of stating what the reference states.

Whatever reads labels out of a text (CheXbert, RadBERT-CT, rules, the phantom's own reader), the figures come from the
studies' true positives, false positives and false negatives, with the conventions of scikit-learn's
`classification_report` on indicator matrices: macro is over all labels, weighted is by the references' support, samples
is the mean of each report's own figure, and 0/0 is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from zoo.metrics.pairs import Corpus, Pairs, Score
from zoo.metrics.significance import bootstrap_ci, resample

Label = Callable[[str], frozenset[str]]
# The phantom's labeller reads back the phantom's own phrases. Its figures say nothing about any clinical labeller's.
PHANTOM_FINDINGS = {"protocol": "phantom_findings", "version": 1}
FIGURES = ("precision", "recall", "f1")
AVERAGES = ("micro", "macro", "weighted", "samples")
Matrices = Callable[[Pairs], tuple[np.ndarray, np.ndarray]]
Scored = tuple[Callable[[Pairs], Score], Corpus | None]


def label_metrics(prefix: str, labels: Sequence[str], matrices: Matrices) -> dict[str, Scored]:
    """The twelve metrics of a labeller.

    Args:
        prefix: What their keys begin with; also the name of their statistics.
        labels: The labels, in the matrices' order.
        matrices: Pairs → what the references and the predictions state, each `(study, label)`, bool.

    Returns:
        `<prefix>_<average>_<figure>` → how to score it, and how its value comes from sums over studies (`samples`: it
        is the mean of the studies' values).
    """
    columns = tuple(f"{kind} {label}" for kind in ("tp", "fp", "fn") for label in labels)
    metrics: dict[str, Scored] = {}
    for average in AVERAGES:
        for figure in FIGURES:
            key = f"{prefix}_{average}_{figure}"
            if average == "samples":
                metrics[key] = partial(_of_studies, matrices=matrices, figure=figure), None
            else:
                formula = partial(averaged, average=average, figure=figure)
                metrics[key] = partial(_summed, matrices=matrices), Corpus(prefix, columns, formula, tuple(labels))
    return metrics


def _summed(pairs: Pairs, matrices: Matrices) -> Score:
    return Score(values=None, statistics=_counts_of(pairs, matrices))


def _of_studies(pairs: Pairs, matrices: Matrices, figure: str) -> Score:
    return Score(values=averaged(_counts_of(pairs, matrices), average="micro", figure=figure))


def _counts_of(pairs: Pairs, matrices: Matrices) -> np.ndarray:
    return pairs.once(("label counts", matrices), lambda: counts(*matrices(pairs)))


def counts(references: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Each study's true positives, false positives and false negatives, 0 or 1, `(study, 3 * label)`, float64.

    Args:
        references: `(study, label)`, bool.
        predictions: The same shape.
    """
    parts = (references & predictions, ~references & predictions, references & ~predictions)
    return np.concatenate(parts, axis=1).astype(np.float64)


def averaged(sums: np.ndarray, average: str, figure: str) -> np.ndarray:
    """A figure from counts.

    Args:
        sums: Counts, or sums of them over studies, `(…, 3 * label)`.
        average: `micro` pools the labels, `macro` is the labels' plain mean, `weighted` their mean by support.
        figure: `precision`, `recall` or `f1`.

    Returns:
        `(…)`, float64.
    """
    tp, fp, fn = np.split(np.asarray(sums, dtype=np.float64), 3, axis=-1)
    if average == "micro":
        return _figure(figure, tp.sum(-1), fp.sum(-1), fn.sum(-1))
    each = _figure(figure, tp, fp, fn)
    if average == "macro":
        return each.mean(-1) if each.shape[-1] else np.zeros(each.shape[:-1])
    support = tp + fn
    return _ratio((each * support).sum(-1), support.sum(-1))


def _figure(figure: str, tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> np.ndarray:
    if figure == "precision":
        return _ratio(tp, tp + fp)
    if figure == "recall":
        return _ratio(tp, tp + fn)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Where both are 0 it is 0."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def class_figures(sums: np.ndarray, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Each label's own `precision`, `recall`, `f1`, and how many references and predictions state it.

    Args:
        sums: Counts summed over studies, `(3 * label,)`.
        labels: The labels.
    """
    tp, fp, fn = np.split(np.asarray(sums, dtype=np.float64), 3)
    figures = {figure: _figure(figure, tp, fp, fn).tolist() for figure in FIGURES}
    return {
        label: {figure: values[place] for figure, values in figures.items()}
        | {"support": int(tp[place] + fn[place]), "predicted": int(tp[place] + fp[place])}
        for place, label in enumerate(labels)
    }


def by_study(pairs: Pairs, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels of texts as labels of studies' references and predictions.

    Args:
        pairs: The studies.
        rows: Labels of `pairs.texts`, `(text, label)`.

    Returns:
        References and predictions, each `(study, label)`.
    """
    place = {text: row for row, text in enumerate(pairs.texts)}
    sides = (np.array([place[pair[side]] for pair in pairs.distinct], dtype=np.intp) for side in (0, 1))
    reference, prediction = (rows[side[pairs.index]] for side in sides)
    return reference, prediction


def finding_scores(references: Sequence[frozenset[str]], predictions: Sequence[frozenset[str]]) -> dict[str, Any]:
    """Precision, recall and F1 of stating findings, where no fixed list of labels is given.

    Args:
        references: The findings in each study's reference report.
        predictions: The findings in its predicted report.

    Returns:
        `micro` (pooled over studies and labels), `macro` (unweighted mean over the labels that the references hold,
        so that it does not depend on what a system makes up), each with `precision`, `recall`, `f1`; and `labels`, the
        same for each label that occurs on either side, with `support`. 0/0 is 0.
    """
    every = sorted(frozenset().union(*references, *predictions))
    sums = counts(_indicators(references, every), _indicators(predictions, every)).sum(0)
    labels: Mapping[str, Mapping[str, float]] = class_figures(sums, every)
    held = [row for row in labels.values() if row["support"]]
    return {
        "micro": {figure: float(averaged(sums, "micro", figure)) for figure in FIGURES},
        "macro": {figure: sum(row[figure] for row in held) / len(held) if held else 0.0 for figure in FIGURES},
        "labels": labels,
    }


def finding_intervals(
    references: Sequence[frozenset[str]],
    predictions: Sequence[frozenset[str]],
    resamples: int,
    clusters: Sequence[Hashable] | None = None,
) -> dict[str, dict[str, list[float] | None]]:
    """95 % bootstrap intervals, over studies or clusters of them, of `finding_scores`' `micro` and `macro`.

    Macro stays over the labels that the references hold as a whole; one that a resample lacks counts 0 there.
    """
    held = sorted(frozenset().union(*references))
    every = [*held, *sorted(frozenset().union(*predictions) - set(held))]
    table = counts(_indicators(references, every), _indicators(predictions, every))
    kept = np.tile(np.arange(len(every)) < len(held), 3)
    drawn = resample(table, clusters, resamples)
    intervals: dict[str, dict[str, list[float] | None]] = {}
    for average, columns in (("micro", np.ones_like(kept)), ("macro", kept)):
        for figure in FIGURES:
            formula = partial(averaged, average=average, figure=figure)
            found = None
            if drawn is not None:
                found = bootstrap_ci(drawn[0][:, columns], lambda sums, n, of=formula: of(sums), drawn[1])  # type: ignore[misc]
            intervals.setdefault(average, {})[figure] = None if found is None else list(found)
    return intervals


def _indicators(findings: Sequence[frozenset[str]], labels: Sequence[str]) -> np.ndarray:
    rows = [[label in found for label in labels] for found in findings]
    return np.array(rows, dtype=bool).reshape(len(findings), len(labels))
