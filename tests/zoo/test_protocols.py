"""The protocols against everything that was published with them."""

import ast
import csv
import json
import os
from pathlib import Path

import pytest

from zoo.metrics.engine import summaries
from zoo.metrics.meteor_nltk import find_wordnet
from zoo.metrics.pairs import MetricUnavailable, Pairs
from zoo.metrics.protocols import PROTOCOLS, REG2RG
from zoo.metrics.tokenise import clean_r2gen, strip_region_prefixes

GOLDEN = Path(__file__).parents[1] / "golden"
TEXT = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_1", "rouge_2", "rouge_l", "meteor", "cider")
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
    metrics = {key: REG2RG.metrics[key] for key in TEXT}
    try:
        find_wordnet()
    except MetricUnavailable:
        del metrics["meteor"]
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


# What each protocol's metrics were computed with, by the recorded values' names. The recorded texts still had their
# white space; ours is collapsed first, which only pycocoevalcap's ROUGE-L could tell.
RECORDED = {
    "reg2rg": {f"bleu_{n}": f"hf.bleu{n}.smooth.mean" for n in (1, 4)}
    | {f"rouge_{n}": f"rouge_score.rouge{n.upper()}.nostem" for n in "12l"}
    | {"cider": "coco_raw.ciderD"},
    "regionformer": {f"bleu_{n}": f"coco_raw.bleu{n}" for n in range(1, 5)}
    | {"rouge_l": "rouge_score.rougeL.stem", "cider": "coco_raw.ciderD"},
    "overlay": {f"bleu_{n}": f"hf.bleu{n}.nosmooth.corpus" for n in (1, 4)}
    | {f"rouge_{n}": f"torchmetrics.rouge{n.upper()}.nostem" for n in "12l"},
    "coco": {f"bleu_{n}": f"coco_ptb.bleu{n}" for n in range(1, 5)}
    | {"rouge_l": "coco_ptb.rougeL", "cider": "coco_ptb.ciderD"},
    "radeval": {f"bleu_{n}": f"coco_raw.bleu{n}" for n in range(1, 5)}
    | {f"rouge_{n}": f"rouge_score.rouge{n.upper()}.stem" for n in "12l"},
}
PORTED = 5e-4  # of 23,646 texts three are cut into words otherwise than by Stanford's tokeniser


@pytest.mark.parametrize("protocol", RECORDED)
def test_values_equal_the_recorded_ones_of_the_packages(protocol, shared):
    golden = json.loads((shared / "golden" / "metrics" / "reg2rg_region_files.json").read_text())
    rules = PROTOCOLS[protocol]
    for region, others in golden["other_implementations"].items():
        texts = rows(shared / "real" / "reg2rg_released" / "radgenome" / f"{region.replace(' ', '_')}_reports.csv")
        sides = ([rules.prepare(row[f"{side}_combined_report"]) for row in texts] for side in ("GT", "Pred"))
        pairs = Pairs(*sides)
        values = summaries({key: rules.metrics[key].score(pairs) for key in RECORDED[protocol]}, rules)
        for key, name in RECORDED[protocol].items():
            single = name.startswith("torchmetrics")  # computed in float32
            exact = 1e-6 if single else PORTED if "ptb" in name else 1e-9
            assert values[key]["value"] == pytest.approx(others[name], abs=exact), (region, key)


def test_r2gen_scores_what_its_cleaning_and_pycocoevalcap_give(shared):
    texts = rows(shared / "real" / "reg2rg_released" / "radgenome" / "abdomen_reports.csv")
    rules = PROTOCOLS["r2gen"]
    pairs = Pairs(*([rules.prepare(row[f"{side}_combined_report"]) for row in texts] for side in ("GT", "Pred")))
    values = summaries({key: rules.metrics[key].score(pairs) for key in ("bleu_1", "bleu_4")}, rules)
    assert [round(values[key]["value"], 4) for key in ("bleu_1", "bleu_4")] == [0.4638, 0.2897]


def test_cleaning_of_r2gen_by_hand():
    text = "1. Heart size is NORMAL.  2. No pneumothorax, or effusion (small).\n3. ___ is stable.."
    assert clean_r2gen(text) == "heart size is normal . no pneumothorax or effusion small . is stable ."
    assert clean_r2gen(" .\n") == ""


def test_prefixes_are_stripped_as_by_the_released_code():
    for case in json.loads((GOLDEN / "metrics_synthetic.json").read_text())["strip"]:
        assert strip_region_prefixes(case["text"]) == case["out"]


def test_every_protocol_is_named_by_its_id_and_complete():
    for key, protocol in PROTOCOLS.items():
        assert key == protocol.id
        assert protocol.version >= 1
        assert protocol.source
        assert all(metric.how for metric in protocol.metrics.values())
    assert list(PROTOCOLS) == ["reg2rg", "regionformer", "asarg", "overlay", "coco", "r2gen", "radeval"]


RADEVAL = os.environ.get("ZOO_RADEVAL")


@pytest.mark.skipif(not RADEVAL, reason="set ZOO_RADEVAL to a clone of github.com/jbdel/RadEval to run its fixtures")
def test_radeval_equals_the_fixtures_of_its_own_tests():
    fixtures = Path(str(RADEVAL)) / "tests" / "fixtures"
    tree = ast.parse((fixtures / "regression_samples.py").read_text())
    texts = {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)}
    expected = json.loads((fixtures / "expected_scores_cpu.json").read_text())
    rules = PROTOCOLS["radeval"]
    pairs = Pairs(*([rules.prepare(text) for text in texts[side]] for side in ("REFS", "HYPS")))
    names = {"bleu_1": "bleu_1", "bleu_2": "bleu_2", "bleu_3": "bleu_3", "bleu_4": "bleu"}
    names |= {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
    values = summaries({key: rules.metrics[key].score(pairs) for key in names}, rules)
    for key, name in names.items():
        assert round(values[key]["value"], 4) == expected["detailed"][name], key
    for key in ("bleu_4", "rouge_1", "rouge_2", "rouge_l"):
        found = rules.metrics[key].score(pairs).values
        assert found == pytest.approx(expected["per_sample"][names[key]], rel=1e-9, abs=1e-15), key
