"""The protocol `reg2rg` against everything that was published with it."""

import csv
import json
from pathlib import Path

import pytest

from zoo.metrics.meteor_nltk import find_wordnet
from zoo.metrics.pairs import MetricUnavailable, Pairs
from zoo.metrics.protocols import PROTOCOLS, REG2RG
from zoo.metrics.tokenise import strip_region_prefixes

GOLDEN = Path(__file__).parents[1] / "golden"
# Table IV of the paper, its NLG half, in per cent.
TABLE_IV = {
    "abdomen": (1517, 39.50, 25.13, 43.33, 38.52),
    "bone": (1509, 41.05, 28.49, 47.15, 42.13),
    "breast": (56, 22.46, 13.63, 23.14, 21.96),
    "esophagus": (1323, 59.58, 45.16, 56.39, 57.49),
    "heart": (1418, 39.85, 27.44, 44.75, 43.19),
    "lung": (1514, 27.22, 15.51, 31.74, 30.82),
    "mediastinum": (1513, 37.65, 20.09, 41.98, 33.68),
    "pleura": (1169, 37.20, 26.91, 38.84, 47.21),
    "thyroid": (42, 21.83, 10.64, 19.49, 19.47),
    "trachea and bronchie": (1401, 48.42, 38.93, 61.47, 56.18),
}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def released(shared) -> dict:
    """Region → metric → its score on the released predictions."""
    folder = shared / "real" / "reg2rg_released" / "radgenome"
    if not folder.is_dir():
        pytest.skip(f"no released predictions in {folder}")
    try:
        find_wordnet()
        metrics = REG2RG.metrics
    except MetricUnavailable:
        metrics = {key: metric for key, metric in REG2RG.metrics.items() if key != "meteor"}
    scores = {}
    for region in TABLE_IV:
        texts = rows(folder / f"{region.replace(' ', '_')}_reports.csv")
        sides = ([REG2RG.prepare(row[f"{side}_combined_report"]) for row in texts] for side in ("GT", "Pred"))
        pairs = Pairs(*sides)
        scores[region] = {key: metric.score(pairs) for key, metric in metrics.items()}
    return scores


def test_every_published_figure_of_every_region(released, shared):
    published = rows(shared / "real" / "reg2rg_released" / "radgenome" / "nlg_evaluation_results_all_regions.csv")
    assert {row["region"] for row in published} == set(TABLE_IV)
    wrong, compared = [], 0
    for row in published:
        for key, score in released[row["region"]].items():
            label = REG2RG.metrics[key].label
            figures = {label: f"{score.values.mean():.4f}±{score.values.std():.4f}"}
            if score.overall is not None:
                figures[f"Overall_{label}"] = f"{score.overall:.4f}"
            compared += len(figures)
            wrong += [(row["region"], name, got, row[name]) for name, got in figures.items() if got != row[name]]
    assert not wrong
    assert compared == sum(17 if "meteor" in scores else 15 for scores in released.values())


def test_table_iv(released):
    for region, (amount, *figures) in TABLE_IV.items():
        for key, printed in zip(("bleu_1", "bleu_4", "meteor", "rouge_l"), figures, strict=True):
            if key in released[region]:
                score = released[region][key]
                assert len(score.values) == amount
                assert f"{100 * score.values.mean():.2f}" == f"{printed:.2f}", (region, key)


def test_values_equal_the_recorded_ones_to_twelve_digits(released, shared):
    golden = json.loads((shared / "golden" / "metrics" / "reg2rg_region_files.json").read_text())
    for region, others in golden["other_implementations"].items():
        scores = released[region]
        for order in range(1, 5):
            for name, value in (
                ("mean", scores[f"bleu_{order}"].values.mean()),
                ("corpus", scores[f"bleu_{order}"].overall),
            ):
                key = f"hf.bleu{order}.smooth.{name}"
                if key in others:
                    assert value == pytest.approx(others[key], abs=1e-11), (region, key)
        for key, name in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
            assert scores[key].values.mean() == pytest.approx(others[f"rouge_score.{name}.nostem"], abs=1e-11), (
                region,
                key,
            )
        assert scores["cider"].values.mean() == pytest.approx(others["coco_raw.ciderD"], abs=1e-9), region


def test_prefixes_are_stripped_as_by_the_released_code():
    for case in json.loads((GOLDEN / "metrics_synthetic.json").read_text())["strip"]:
        assert strip_region_prefixes(case["text"]) == case["out"]


def test_every_protocol_is_named_by_its_id_and_complete():
    for key, protocol in PROTOCOLS.items():
        assert key == protocol.id
        assert protocol.version >= 1
        assert protocol.source
        assert all(metric.how for metric in protocol.metrics.values())
    assert list(REG2RG.metrics) == [
        "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_1", "rouge_2", "rouge_l", "meteor", "cider"
    ]  # fmt: skip
