"""All figures of a run, from the lines of its `predictions.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.metrics.engine import evaluate
from zoo.metrics.labels import PHANTOM_FINDINGS, Label, finding_scores
from zoo.metrics.lengths import length_distribution
from zoo.metrics.protocols import PROTOCOLS
from zoo.metrics.regions import recognition, recognition_mean, region_scores, region_texts_of_run

RECOGNITION = {"protocol": "region_recognition", "version": 1}
Line = Mapping[str, Any]


def quick_metrics(lines: Sequence[Line], protocol: str, regions: Sequence[str], label: Label | None) -> dict[str, Any]:
    """What is worth its time at every validation: cheap text metrics, region recognition, findings."""
    return _report_metrics(lines, protocol, regions, label, cheap=True, progress=False)


def run_metrics(
    lines: Sequence[Line],
    protocol: str,
    regions: Sequence[str] = (),
    label: Label | None = None,
    baselines: Mapping[str, str] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Everything that `metrics.json` holds about the predictions. The same lines give the same dictionary.

    Args:
        lines: `{"id", "reference", "prediction", "regions": [{"region", "named", "reference", "prediction"}], …}`.
        protocol: How to score texts.
        regions: The dataset's region names.
        label: What reads findings out of a text.
        baselines: Name → a report that is scored in place of every prediction, on the same studies.
        progress: Show a progress bar.

    Returns:
        `engine.evaluate`'s dictionary, its `metrics` with `region_precision`, `region_recall`, `region_f1` and
        `phantom_findings_{micro,macro}_{precision,recall,f1}` added where they apply; `regions` (see `region_scores`),
        `findings` (by label), `length`, and `baselines` (name → `{"metrics", "skipped"}`).
    """
    result = _report_metrics(lines, protocol, regions, label, cheap=False, progress=progress)
    references, predictions = [line["reference"] for line in lines], [line["prediction"] for line in lines]
    result["regions"] = region_scores(_named(lines), region_texts_of_run(lines, regions), regions, protocol)
    result["length"] = length_distribution(references, predictions, PROTOCOLS[protocol].prepare)
    result["baselines"] = {}
    for name, report in (baselines or {}).items():
        trivial = [
            {"id": line["id"], "reference": line["reference"], "prediction": report, "regions": []} for line in lines
        ]
        scored = _report_metrics(trivial, protocol, regions, label, cheap=False, progress=progress)
        result["baselines"][name] = {key: scored[key] for key in ("metrics", "skipped")}
    return result


def _report_metrics(
    lines: Sequence[Line], protocol: str, regions: Sequence[str], label: Label | None, cheap: bool, progress: bool
) -> dict[str, Any]:
    references, predictions = [line["reference"] for line in lines], [line["prediction"] for line in lines]
    result = evaluate(references, predictions, [line["id"] for line in lines], protocol, cheap=cheap, progress=progress)
    means = recognition_mean(recognition(_named(lines), regions))
    result["metrics"] |= {key: {"value": value, **RECOGNITION} for key, value in means.items()}
    if label is not None:
        try:
            read = {text: label(text) for text in dict.fromkeys([*references, *predictions])}
        except Exception as error:  # a labeller's fault must not cost the other figures
            reason = f"{type(error).__name__}: {error}"
            entry = {"value": None, "status": "failed", "reason": reason, "how_to": "repair the labeller"}
            result["skipped"]["phantom_findings"] = entry
            return result
        scores = finding_scores([read[text] for text in references], [read[text] for text in predictions])
        for average in ("micro", "macro"):
            for key, value in scores[average].items():
                result["metrics"][f"phantom_findings_{average}_{key}"] = {"value": value, **PHANTOM_FINDINGS}
        result["findings"] = {"references": "the labeller on the reference text", "labels": scores["labels"]}
    return result


def _named(lines: Sequence[Line]) -> list[tuple[str, str | None]]:
    return [(row["region"], row["named"]) for line in lines for row in line["regions"]]
