"""Precision, recall and F1 of labels against scikit-learn's definition worked out by hand."""

import pytest

from zoo.metrics.labels import finding_scores


def test_findings_by_hand():
    references = [frozenset("ab"), frozenset("a"), frozenset(), frozenset("b")]
    predictions = [frozenset("a"), frozenset("ac"), frozenset("a"), frozenset()]
    scores = finding_scores(references, predictions)
    assert scores["micro"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5}  # 2 right, 2 false, 2 missed
    assert scores["labels"]["a"] == {"precision": 2 / 3, "recall": 1.0, "f1": 0.8, "support": 2, "predicted": 3}
    assert scores["labels"]["c"]["support"] == 0
    assert scores["macro"] == {"precision": pytest.approx(1 / 3), "recall": 0.5, "f1": 0.4}  # of a and b


def test_nothing_to_find_is_zero():
    scores = finding_scores([frozenset()], [frozenset()])
    assert scores["micro"] == scores["macro"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert scores["labels"] == {}
