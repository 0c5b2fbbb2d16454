"""`zoo.evaluate` from the command line, and the engine behind it."""

import dataclasses
import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datamodules.study import DataFault
from zoo.evaluate import main
from zoo.metrics import engine
from zoo.metrics.engine import evaluate
from zoo.metrics.pairs import MetricUnavailable, Pairs, Score, Tools
from zoo.metrics.per_study import read_table
from zoo.metrics.weights import locate

TEXT = {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_1", "rouge_2", "rouge_l", "meteor", "cider"}
LABELS = {
    f"radbert_ct_18_{average}_{figure}"
    for average in ("micro", "macro", "weighted", "samples")
    for figure in ("precision", "recall", "f1")
}
KEYS = TEXT | LABELS
GOOD = [
    ("a", "No nodule is seen.", "A nodule is seen."),
    ("b", "Heart is normal, lungs are clear.", "Heart is normal."),
]


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(path: Path) -> Path:
    return jsonl(path, [{"id": i, "reference": r, "prediction": p, "raw": p, "regions": []} for i, r, p in GOOD])


def test_json_and_table(tmp_path, capsys):
    assert main([str(run(tmp_path / "predictions.jsonl")), "--json", str(tmp_path / "out" / "scores.json")]) == 0
    result = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert (result["protocol"], result["version"], result["n"], result["n_empty_predictions"]) == ("reg2rg", 1, 2, 0)
    assert set(result["metrics"]) | set(result["skipped"]) == KEYS
    for key, entry in result["metrics"].items():
        assert (entry["protocol"], entry["version"]) == ("reg2rg", 1)
        assert 0 <= entry["value"] <= (10 if key == "cider" else 1)
        low, high = entry["ci95"]
        assert low <= entry["value"] <= high
    table = read_table(tmp_path / "out" / "scores.per_study.csv")
    assert table.ids == ["a", "b"]
    sums, aggregate = table.metric("bleu_1")
    assert aggregate(sums.sum(0), 2) == result["metrics"]["bleu_1"]["value"]
    assert "nodule" not in (tmp_path / "out" / "scores.per_study.csv").read_text()
    # By hand: (4 + 1) / (5 + 1), and (4 + 1) / (4 + 1) at half the reference's length.
    assert result["metrics"]["bleu_1"]["value"] == pytest.approx((5 / 6 + math.exp(-1)) / 2)
    assert "BLEU-4" in capsys.readouterr().out


def csv_file(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def test_csv_with_named_columns_quotes_line_breaks_and_a_byte_order_mark(tmp_path):
    text = '\ufeffstudy,truth,said\r\na,"No ""large"" nodule,\nlungs clear.","No nodule."\r\nb,Heart is normal.,""\r\n'
    options = ["--id", "study", "--reference", "truth", "--prediction", "said", "--json", str(tmp_path / "s.json")]
    assert main([str(csv_file(tmp_path / "p.csv", text)), *options]) == 0
    result = json.loads((tmp_path / "s.json").read_text())
    assert (result["n"], result["n_empty_predictions"]) == (2, 1)
    assert result["provenance"]["columns"] == {"id": "study", "reference": "truth", "prediction": "said"}
    direct = evaluate(['No "large" nodule,\nlungs clear.', "Heart is normal."], ["No nodule.", ""], ["a", "b"])
    assert result["metrics"] == direct["metrics"]


HEADER = "id,reference,prediction\n"
FAULTS = {
    "missing prediction": (HEADER + "a,Normal.,Normal.\nb,Normal.,\n", ["line 3, b", "prediction is missing"]),
    "missing reference": (HEADER + "a,,Normal.\n", ["line 2, a", "reference is missing"]),
    "nan": (HEADER + "a,Normal.,NaN\n", ["line 2, a", "'NaN'"]),
    "number": (HEADER + "a,Normal.,0.53\n", ["line 2, a", "not a text: 0.53"]),
    "two faults": (HEADER + "a,Normal.,\nb,12,Normal.\n", ["line 2, a", "line 3, b"]),
    "duplicate id": (HEADER + "a,Normal.,Normal.\na,Normal.,Clear.\n", ["line 3, a", "line 2 already"]),
    "no id": (HEADER + ",Normal.,Normal.\n", ["line 2", "holds no id"]),
    "missing column": ("id,report,prediction\na,b,c\n", ["--reference", "'id', 'report', 'prediction'"]),
    "empty": ("", ["is empty"]),
    "header only": (HEADER, ["no rows"]),
    "comma": (HEADER + "a,Normal, clear.,Normal.\n", ["line 2", "4 cells under 3 columns"]),
    "quote": (HEADER + 'a,Normal "large".,Normal.\n', ["line 2", "quotation mark"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_a_csv_are_named(name, tmp_path, capsys):
    content, expected = FAULTS[name]
    assert main([str(csv_file(tmp_path / "p.csv", content))]) == 3
    message = capsys.readouterr().err
    assert all(part in message for part in [*expected, "p.csv"]), message


def test_faults_of_a_jsonl_are_named(tmp_path, capsys):
    rows = [
        {"id": "a", "reference": "Normal.", "prediction": None},
        {"id": "b", "reference": "Normal.", "prediction": ["Normal."]},
        {"id": "c", "reference": "Normal.", "prediction": float("nan")},
        {"id": "d", "reference": "Normal."},
        {"id": "e", "reference": "", "prediction": "Normal."},
    ]
    assert main([str(jsonl(tmp_path / "p.jsonl", rows))]) == 3
    message = capsys.readouterr().err
    assert [message.count(f", {study}: ") for study in "abcde"] == [1, 1, 1, 1, 1]
    assert "not a text: a list" in message
    assert main([str(csv_file(tmp_path / "q.jsonl", '{"id": 1,\n'))]) == 3
    assert "line 1: not JSON" in capsys.readouterr().err


def test_a_named_column_that_is_absent_lists_those_there_are(tmp_path, capsys):
    assert main([str(run(tmp_path / "p.jsonl")), "--prediction", "Pred_combined_report"]) == 3
    message = capsys.readouterr().err
    assert "lacks --prediction 'Pred_combined_report'" in message
    assert "'id', 'reference', 'prediction', 'raw', 'regions'" in message
    assert len(message.splitlines()) == 1


def test_usage(tmp_path, capsys):
    assert main([str(run(tmp_path / "p.jsonl")), "--protocol", "reg2rgg"]) == 2
    assert "choose from reg2rg" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere.csv")]) == 3
    assert "nowhere.csv" in capsys.readouterr().err
    assert main([]) == 2


def test_the_released_files_work_as_they_are(shared, tmp_path):
    file = shared / "real" / "reg2rg_released" / "radgenome" / "breast_reports.csv"
    if not file.is_file():
        pytest.skip(f"no {file}")
    names = ["--id", "AccNum", "--reference", "GT_combined_report", "--prediction", "Pred_combined_report"]
    assert main([str(file), "--protocol", "reg2rg", *names, "--json", str(tmp_path / "named.json")]) == 0
    assert main([str(file), "--json", str(tmp_path / "found.json")]) == 0
    named, found = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("named", "found"))
    assert named == found
    assert named["n"] == 56
    assert round(named["metrics"]["bleu_1"]["value"], 4) == 0.2246


def test_the_command_loads_no_network_library():
    program = (
        "import sys; from zoo.evaluate import main; code = main(sys.argv[1:]);"
        "print(code, sorted({'torch', 'lightning', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_scoring_loads_no_network_library(tmp_path):
    program = (
        "import sys; from zoo.evaluate import main; code = main(sys.argv[1:]);"
        "print(code, sorted({'torch', 'lightning', 'transformers'} & set(sys.modules)))"
    )
    arguments = [str(run(tmp_path / "p.jsonl")), "--json", str(tmp_path / "s.json")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


# The engine


def test_a_family_of_metrics_that_cannot_be_had_is_tried_once():
    tried = []

    def make():
        tried.append(1)
        raise MetricUnavailable("no weights", "bring them")

    pairs = Pairs(["a"], ["a"])
    for _ in range(3):
        with pytest.raises(MetricUnavailable, match="no weights"):
            pairs.once("labels", make)
    assert tried == [1]


def test_the_record_names_the_weights_that_were_used(tmp_path, monkeypatch):
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "net.pth").write_bytes(b"weights")

    def heavy(pairs: Pairs):
        locate("some", ["net.pth"], pairs.tools, how_to="put it there")
        return Score(np.ones(len(pairs)))

    metrics = dict(engine.PROTOCOLS["reg2rg"].metrics)
    protocol = dataclasses.replace(
        engine.PROTOCOLS["reg2rg"], metrics={"rouge_1": dataclasses.replace(metrics["rouge_1"], score=heavy)}
    )
    tools = Tools(weights=tmp_path)
    used = evaluate(["a"], ["a"], ["1"], protocol, tools=tools)["provenance"]["weights"]
    assert used == {"some/net.pth": hashlib.sha256(b"weights").hexdigest()}
    assert evaluate(["a"], ["a"], ["1"], "overlay", cheap=True, tools=tools)["provenance"]["weights"] == {}


def test_a_failing_metric_leaves_the_others(monkeypatch):
    def broken(pairs: Pairs):
        raise RuntimeError("no luck")

    def absent(pairs: Pairs):
        raise MetricUnavailable("WordNet 3.0 is not at hand", "install it", ["/here"])

    metrics = dict(engine.PROTOCOLS["reg2rg"].metrics)
    metrics["rouge_1"] = dataclasses.replace(metrics["rouge_1"], score=broken)
    metrics["meteor"] = dataclasses.replace(metrics["meteor"], score=absent)
    protocol = dataclasses.replace(engine.PROTOCOLS["reg2rg"], metrics=metrics)
    monkeypatch.setattr(engine, "PROTOCOLS", {"reg2rg": protocol})
    result = evaluate(["a b"], ["a b"], ["1"])
    assert set(result["metrics"]) == TEXT - {"rouge_1", "meteor"}
    assert result["skipped"]["rouge_1"]["status"] == "failed"
    assert "no luck" in result["skipped"]["rouge_1"]["reason"]
    assert result["skipped"]["meteor"] == {
        "value": None, "status": "skipped", "reason": "WordNet 3.0 is not at hand",
        "how_to": "install it", "searched": ["/here"],
    }  # fmt: skip


def test_values_of_each_study_stand_in_the_order_of_ids():
    result = evaluate(["a b c d", "x y"], ["q", "x y"], ["1", "2"], cheap=True, per_study=True)
    assert "meteor" not in result["metrics"]
    assert result["per_study"]["rouge_l"] == [0.0, 1.0]
    assert result["metrics"]["rouge_l"]["value"] == 0.5
    assert result["metrics"]["rouge_l"]["std"] == 0.5


def test_the_same_texts_give_the_same_result_and_the_fingerprint_knows_their_ids():
    once, again, other = (evaluate(["a b"], ["a c"], [name], cheap=True) for name in ("1", "1", "2"))
    assert once == again
    assert once["provenance"]["texts_sha256"] != other["provenance"]["texts_sha256"]


def test_the_engine_refuses_what_it_cannot_pair():
    for references, ids in ((["a"], ["1", "2"]), (["a", "b"], ["1", "1"]), ([], [])):
        with pytest.raises(DataFault):
            evaluate(references, references, ids)
