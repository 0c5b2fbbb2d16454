"""Labels' precision, recall and F1 by hand and as torchmetrics has them."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multilabel_f1_score, multilabel_precision, multilabel_recall

from zoo.metrics.labels import (
    averaged,
    by_study,
    class_figures,
    counts,
    finding_intervals,
    finding_scores,
    label_metrics,
)
from zoo.metrics.pairs import Pairs

KINDS = [(average, figure) for average in ("micro", "macro", "weighted") for figure in ("precision", "recall", "f1")]


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


def test_intervals_of_findings_by_enumeration():
    references = [frozenset("a"), frozenset("b")]
    predictions = [frozenset("a"), frozenset("c")]
    intervals = finding_intervals(references, predictions, 999)
    # Of the four resamples one has only the study that is right, one only the other.
    assert intervals["micro"] == {figure: [0.0, 1.0] for figure in ("precision", "recall", "f1")}
    assert intervals["macro"]["f1"] == [0.0, 0.5]  # of a and b; where one is absent it counts 0
    assert finding_intervals(references[:1], predictions[:1], 99)["micro"]["f1"] is None


def counts_by_hand() -> np.ndarray:
    """Three labels, four studies: a right twice, missed once; b made up twice; c right once, missed once."""
    references = np.array([[1, 0, 1], [1, 0, 0], [1, 0, 1], [0, 0, 0]], dtype=bool)
    predictions = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 0], [0, 0, 0]], dtype=bool)
    return counts(references, predictions)


def test_averages_by_hand():
    table = counts_by_hand()
    assert table.shape == (4, 9) and table.sum(0).tolist() == [2, 0, 1, 0, 2, 0, 1, 0, 1]
    values = {(average, figure): averaged(table.sum(0), average, figure) for average, figure in KINDS}
    assert values["micro", "precision"] == pytest.approx(3 / 5)
    assert values["micro", "recall"] == pytest.approx(3 / 5)
    assert values["macro", "precision"] == pytest.approx((1 + 0 + 1) / 3)
    assert values["macro", "recall"] == pytest.approx((2 / 3 + 0 + 1 / 2) / 3)
    assert values["macro", "f1"] == pytest.approx((4 / 5 + 0 + 2 / 3) / 3)
    assert values["weighted", "precision"] == pytest.approx((3 * 1 + 0 * 0 + 2 * 1) / 5)
    assert values["weighted", "recall"] == pytest.approx((3 * 2 / 3 + 2 * 1 / 2) / 5)
    assert values["weighted", "f1"] == pytest.approx((3 * 4 / 5 + 2 * 2 / 3) / 5)
    assert [averaged(row, "micro", "f1") for row in table] == pytest.approx([1, 2 / 3, 0, 0])  # a report's own


def test_averages_as_torchmetrics_has_them():
    functions = {"precision": multilabel_precision, "recall": multilabel_recall, "f1": multilabel_f1_score}
    random = np.random.default_rng(0)
    references, predictions = random.random((2, 50, 7)) < np.linspace(0, 0.6, 7)  # the first label occurs nowhere
    sums = counts(references, predictions).sum(0)
    tensors = torch.from_numpy(predictions).int(), torch.from_numpy(references).int()
    for average, figure in KINDS:
        expected = functions[figure](*tensors, num_labels=7, average=average).item()
        assert averaged(sums, average, figure) == pytest.approx(expected, abs=1e-6)
    none = [function(*tensors, num_labels=7, average="none").tolist() for function in functions.values()]
    rows = class_figures(sums, "abcdefg").values()
    assert np.allclose([[row[figure] for row in rows] for figure in functions], none, atol=1e-6)
    assert [row["support"] for row in rows] == references.sum(0).tolist()
    assert [row["predicted"] for row in rows] == predictions.sum(0).tolist()


def test_many_resamples_are_one_call():
    sums = np.random.default_rng(1).integers(0, 5, size=(20, 3, 9))
    for average, figure in KINDS:
        together = averaged(sums, average, figure)
        assert together.shape == (20, 3)
        assert together[7, 2] == averaged(sums[7, 2], average, figure)
    assert not averaged(np.zeros(9), "weighted", "f1")


def test_a_labeller_has_twelve_metrics_and_runs_once():
    calls = []

    def matrices(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
        calls.append(1)
        return by_study(pairs, np.array([[letter in text for letter in "abc"] for text in pairs.texts]))

    pairs = Pairs(["a c", "a", "a c", ""], ["a c", "a b", "b", ""])
    metrics = label_metrics("letters_3", ["A", "B", "C"], matrices)
    assert len(metrics) == 12 and {key.rsplit("_", 2)[0] for key in metrics} == {"letters_3"}
    scores = {key: score(pairs) for key, (score, _) in metrics.items()}
    assert len(calls) == 1
    corpus = metrics["letters_3_weighted_f1"][1]
    assert corpus is not None and corpus.labels == ("A", "B", "C") and corpus.name == "letters_3"
    assert corpus.columns[:4] == ("tp A", "tp B", "tp C", "fp A")
    statistics = scores["letters_3_weighted_f1"].statistics
    assert np.array_equal(statistics, counts_by_hand())  # the same studies as above, as texts
    assert corpus.formula(statistics.sum(0)) == pytest.approx((3 * 4 / 5 + 2 * 2 / 3) / 5)
    assert metrics["letters_3_samples_f1"][1] is None
    assert scores["letters_3_samples_f1"].values == pytest.approx([1, 2 / 3, 0, 0])
