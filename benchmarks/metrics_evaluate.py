"""The Hugging Face side of `benchmarks.metrics`, run by the Python of an environment that has `evaluate`.

`python metrics_evaluate.py PAIRS.json METRICS OUT.json`: METRICS is the folder `metrics` of a clone of
github.com/huggingface/evaluate, so that nothing is fetched. It is used as in Reg2RG's evaluation: a call for each
report, each order of BLEU by itself, then the whole file ("Overall").
"""

import importlib
import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Times BLEU and ROUGE and writes seconds and each report's values."""
    source, metrics, out = map(Path, sys.argv[1:])
    evaluate = importlib.import_module("evaluate")
    pairs = json.loads(source.read_text())
    loaded = {name: evaluate.load(str(metrics / name)) for name in ("bleu", "rouge")}
    result = {}
    for order in range(1, 5):
        settings = {"max_order": order, "smooth": True}
        begun = time.perf_counter()
        values = [
            loaded["bleu"].compute(predictions=[prediction], references=[[reference]], **settings)["bleu"]
            for reference, prediction in pairs
        ]
        references, predictions = ([[pair[0]] for pair in pairs], [pair[1] for pair in pairs])
        overall = loaded["bleu"].compute(predictions=predictions, references=references, **settings)["bleu"]
        result[f"bleu_{order}"] = {"seconds": time.perf_counter() - begun, "values": values, "overall": overall}
    kinds = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}
    begun = time.perf_counter()
    scores = [
        loaded["rouge"].compute(predictions=[prediction], references=[reference], rouge_types=list(kinds))
        for reference, prediction in pairs
    ]
    seconds = (time.perf_counter() - begun) / len(kinds)
    for name, key in kinds.items():
        result[key] = {"seconds": seconds, "values": [float(score[name]) for score in scores]}
    out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
