"""Clinical efficacy by labels: which findings a report states, by a labeller that is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Label = Callable[[str], frozenset[str]]
# The phantom's labeller reads back the phantom's own phrases. Its figures say nothing about any clinical labeller's.
PHANTOM_FINDINGS = {"protocol": "phantom_findings", "version": 1}


def finding_scores(references: Sequence[frozenset[str]], predictions: Sequence[frozenset[str]]) -> dict[str, Any]:
    """Precision, recall and F1 of stating findings.

    Args:
        references: The findings in each study's reference report.
        predictions: The findings in its predicted report.

    Returns:
        `micro` (pooled over studies and labels), `macro` (unweighted mean over the labels that the references hold,
        so that it does not depend on what a system makes up), each with `precision`, `recall`, `f1`; and `labels`, the
        same for each label that occurs on either side, with `support`. 0/0 is 0.
    """
    every = sorted(frozenset().union(*references, *predictions))
    counts = {label: _count(label, references, predictions) for label in every}
    labels = {
        label: _figures(tp, fp, fn) | {"support": tp + fn, "predicted": tp + fp}
        for label, (tp, fp, fn) in counts.items()
    }
    held = [labels[label] for label in every if labels[label]["support"]]
    macro = {key: sum(row[key] for row in held) / len(held) if held else 0.0 for key in ("precision", "recall", "f1")}
    return {
        "micro": _figures(*(sum(column) for column in zip((0, 0, 0), *counts.values(), strict=True))),
        "macro": macro,
        "labels": labels,
    }


def _count(
    label: str, references: Sequence[frozenset[str]], predictions: Sequence[frozenset[str]]
) -> tuple[int, int, int]:
    pairs = [
        (label in reference, label in prediction) for reference, prediction in zip(references, predictions, strict=True)
    ]
    return pairs.count((True, True)), pairs.count((False, True)), pairs.count((True, False))


def _figures(tp: int, fp: int, fn: int) -> dict[str, float]:
    precision, recall = tp / (tp + fp) if tp + fp else 0.0, tp / (tp + fn) if tp + fn else 0.0
    return {"precision": precision, "recall": recall, "f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0}
