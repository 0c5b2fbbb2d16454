"""All figures of a run, from the lines of its `predictions.jsonl`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.metrics.engine import RESAMPLES, evaluate
from zoo.metrics.labels import PHANTOM_FINDINGS, Label, finding_intervals, finding_scores
from zoo.metrics.lengths import length_distribution
from zoo.metrics.pairs import Tools
from zoo.metrics.per_study import Clusters
from zoo.metrics.protocols import PROTOCOLS, RULES14
from zoo.metrics.regions import recognition, recognition_mean, region_scores, region_texts_of_run

RECOGNITION = {"protocol": "region_recognition", "version": 1}
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Scoring:
    """How a run's reports are scored.

    Attributes:
        protocol: A key of `PROTOCOLS`.
        regions: The dataset's region names, in the order of a report.
        label: What reads findings out of a text, where the dataset brings such a thing.
        rules14: Add the figures of the rule labeller, which is made for drawn radiographs.
        tools: What metrics with weights may use.
    """

    protocol: str
    regions: Sequence[str] = ()
    label: Label | None = None
    rules14: bool = False
    tools: Tools = Tools()


def quick_metrics(lines: Sequence[Line], scoring: Scoring) -> dict[str, Any]:
    """What is worth its time at every validation: cheap text metrics, region recognition, findings."""
    return _report_metrics(lines, scoring, cheap=True)


def run_metrics(
    lines: Sequence[Line],
    scoring: Scoring,
    baselines: Mapping[str, Mapping[str, str]] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Everything that `metrics.json` holds about the predictions. The same lines give the same dictionary.

    Args:
        lines: `{"id", "reference", "prediction", "regions": [{"region", "named", "reference", "prediction"}], …}`, by
            choice with the `group`, the `examination` and the `patient` that a study is of.
        scoring: How to score them.
        baselines: Name → study id → a report that is scored in place of the prediction.
        progress: Show a progress bar.

    Returns:
        `engine.evaluate`'s dictionary with `per_study`, its `metrics` with `region_precision`, `region_recall`,
        `region_f1` and `phantom_findings_{micro,macro}_{precision,recall,f1}` added where they apply; `regions` (see
        `region_scores`), `findings` (by label), `length`, and `baselines` (name → `{"metrics", "skipped"}`). Where
        studies have groups, `groups` (name → `{"n", "metrics", "skipped"}`, the largest first): the same protocol on
        a group's pairs alone, so that CIDEr's document frequencies come from the group's own references; of a baseline
        only what is cheap, without intervals. Where studies share patients, or else examinations, intervals resample
        these, and `provenance` says which. Where they share examinations, `examinations` (`{"n", "protocol", "version",
        "metrics", "skipped"}`) scores each as one report.
    """
    result = _report_metrics(lines, scoring, progress=progress)
    references, predictions = [line["reference"] for line in lines], [line["prediction"] for line in lines]
    texts = region_texts_of_run(lines, scoring.regions)
    result["regions"] = region_scores(_named(lines), texts, scoring.regions, scoring.protocol, tools=scoring.tools)
    result["length"] = length_distribution(references, predictions, PROTOCOLS[scoring.protocol].prepare)
    result |= group_scores(lines, scoring, progress=progress)
    if len({_examination(line) for line in lines}) < len(lines):
        scored = _report_metrics(_joined(lines), scoring, progress=progress)
        result["examinations"] = {key: scored[key] for key in ("n", "protocol", "version", "metrics", "skipped")}
    result["baselines"] = {}
    for name, reports in (baselines or {}).items():
        trivial = [line | {"prediction": reports[line["id"]], "regions": []} for line in map(dict, lines)]
        scored = _report_metrics(trivial, scoring, progress=progress)
        apart = group_scores(trivial, scoring, cheap=True)
        result["baselines"][name] = {key: scored[key] for key in ("metrics", "skipped")} | apart
    return result


def group_scores(
    lines: Sequence[Line], scoring: Scoring, cheap: bool = False, progress: bool = False
) -> dict[str, Any]:
    """`{"groups": …}` as in `run_metrics`; nothing where no line has a `group`."""
    sizes = Counter(line["group"] for line in lines if "group" in line)
    groups = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        scored = _report_metrics([line for line in lines if line.get("group") == name], scoring, cheap, progress)
        if "findings" in scored and not any(row["support"] for row in scored["findings"]["labels"].values()):
            # No reference states a finding: the figures would be 0 whatever a method says.
            scored["metrics"] = {k: v for k, v in scored["metrics"].items() if not k.startswith("phantom_findings")}
        groups[name] = {key: scored[key] for key in ("n", "metrics", "skipped")}
    return {"groups": groups} if groups else {}


def _examination(line: Line) -> str:
    return line.get("examination", line["id"])


def clusters_of(lines: Sequence[Line]) -> Clusters | None:
    """The lines' patients, or where no line names one their examinations; `None` where none are shared."""
    known = any("patient" in line for line in lines)
    names = [("patient", line["patient"]) if "patient" in line else ("", _examination(line)) for line in lines]
    return Clusters("patient" if known else "examination", names) if len(set(names)) < len(names) else None


def _joined(lines: Sequence[Line]) -> list[Line]:
    """A line for each examination, with its patient: its texts in the dataset's order, joined by spaces."""
    parts: dict[str, list[Line]] = {}
    for line in lines:
        parts.setdefault(_examination(line), []).append(line)
    return [
        {"id": name, "regions": []}
        | ({"patient": said[0]["patient"]} if "patient" in said[0] else {})
        | {side: " ".join(line[side] for line in said if line[side]) for side in ("reference", "prediction")}
        for name, said in parts.items()
    ]


def _report_metrics(
    lines: Sequence[Line], scoring: Scoring, cheap: bool = False, progress: bool = False
) -> dict[str, Any]:
    references, predictions = [line["reference"] for line in lines], [line["prediction"] for line in lines]
    ids, resamples = [line["id"] for line in lines], 0 if cheap else RESAMPLES
    clusters = clusters_of(lines)
    result = evaluate(
        references,
        predictions,
        ids,
        scoring.protocol,
        clusters=clusters,
        cheap=cheap,
        resamples=resamples,
        per_study=not cheap,
        progress=progress,
        tools=scoring.tools,
    )
    means = recognition_mean(recognition(_named(lines), scoring.regions))
    result["metrics"] |= {key: {"value": value, **RECOGNITION} for key, value in means.items()}
    if scoring.rules14:
        add_rules14(result, references, predictions, ids, clusters)
    if scoring.label is not None:
        _add_findings(result, references, predictions, scoring.label, resamples, clusters)
    return result


def add_rules14(
    result: dict[str, Any],
    references: Sequence[str],
    predictions: Sequence[str],
    ids: Sequence[str],
    clusters: Clusters | None = None,
) -> None:
    """Adds the rule labeller's figures to `engine.evaluate`'s dictionary, under their own protocol."""
    scored = evaluate(references, predictions, ids, RULES14, clusters=clusters)
    for part in ("metrics", "classes", "skipped"):
        result[part] |= scored[part]


def _add_findings(
    result: dict[str, Any],
    references: Sequence[str],
    predictions: Sequence[str],
    label: Label,
    resamples: int,
    clusters: Clusters | None,
) -> None:
    try:
        read = {text: label(text) for text in dict.fromkeys([*references, *predictions])}
    except Exception as error:  # a labeller's fault must not cost the other figures
        reason = f"{type(error).__name__}: {error}"
        entry = {"value": None, "status": "failed", "reason": reason, "how_to": "repair the labeller"}
        result["skipped"]["phantom_findings"] = entry
        return
    sides = [read[text] for text in references], [read[text] for text in predictions]
    scores = finding_scores(*sides)
    names = clusters.names if clusters else None
    intervals = finding_intervals(*sides, resamples, names) if resamples else {}
    for average in ("micro", "macro"):
        for key, value in scores[average].items():
            interval = {"ci95": intervals[average][key]} if intervals else {}
            result["metrics"][f"phantom_findings_{average}_{key}"] = {"value": value, **interval, **PHANTOM_FINDINGS}
    result["findings"] = {"references": "the labeller on the reference text", "labels": scores["labels"]}


def _named(lines: Sequence[Line]) -> list[tuple[str, str | None]]:
    return [(row["region"], row["named"]) for line in lines for row in line["regions"]]
