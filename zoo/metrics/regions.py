"""Region by region: which regions were recognised (Reg2RG, Table III) and how well each was described (Table IV)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from zoo.metrics.engine import evaluate
from zoo.metrics.pairs import Tools

REFERENCE_EPSILON = 1e-5  # what Reg2RG's script adds to each denominator; its printed Table III was made without
Named = tuple[str, str | None]  # a region that was shown, and the name that the method gave it


def recognition(pairs: Iterable[Named], regions: Sequence[str], epsilon: float = 0.0) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 of naming each region, pooled over studies.

    As in Reg2RG's script, a region that was given no name, or one that is not among `regions`, counts as missed and as
    nobody's false alarm.

    Args:
        pairs: `(region, named)` for each region of each study.
        regions: The names there are, in the order of the result.
        epsilon: Added to each denominator; 0 makes 0/0 a 0.

    Returns:
        Region → `precision`, `recall`, `f1`, `tp`, `fp`, `fn`, for each region that occurs.
    """
    right: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    for region, named in pairs:
        if named == region:
            right[region] += 1
        else:
            missed[region] += 1
            if named in regions:
                wrong[str(named)] += 1

    def ratio(part: float, whole: float) -> float:
        return part / (whole + epsilon) if whole + epsilon else 0.0

    result = {}
    for region in regions:
        tp, fp, fn = right[region], wrong[region], missed[region]
        if tp + fp + fn:
            precision, recall = ratio(tp, tp + fp), ratio(tp, tp + fn)
            f1 = ratio(2 * precision * recall, precision + recall)
            result[region] = {"precision": precision, "recall": recall, "f1": f1, "tp": tp, "fp": fp, "fn": fn}
    return result


def recognition_mean(table: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Means over the regions that occur: `region_precision`, `region_recall`, `region_f1`."""
    names = ("precision", "recall", "f1")
    return {f"region_{name}": sum(row[name] for row in table.values()) / len(table) for name in names} if table else {}


def region_scores(
    named: Sequence[Named],
    texts: Mapping[str, Sequence[tuple[str, str, str]]],
    regions: Sequence[str],
    protocol: str,
    epsilon: float = 0.0,
    tools: Tools | None = None,
) -> dict[str, Any]:
    """One row a region: recognition, and the protocol's figures where both sides speak of the region.

    Args:
        named: See `recognition`.
        texts: Region → `(id, reference, prediction)` of the studies where both sides speak of it.
        regions: The names there are.
        protocol: How to score texts.
        epsilon: See `recognition`.
        tools: What metrics with weights may use.

    Returns:
        Region → `{"recognition", "n", "metrics", "classes", "skipped"}`; `n` counts the studies that both sides speak
        of.
    """
    result: dict[str, Any] = {}
    for region, row in recognition(named, regions, epsilon).items():
        result[region] = {"recognition": row, "n": 0, "metrics": {}, "classes": {}, "skipped": {}}
        if texts.get(region):
            ids, references, predictions = zip(*texts[region], strict=True)
            scored = evaluate(references, predictions, ids, protocol, resamples=0, tools=tools)
            result[region] |= {key: scored[key] for key in ("n", "metrics", "classes", "skipped")}
    return result


def region_texts_of_run(
    lines: Iterable[Mapping[str, Any]], regions: Sequence[str]
) -> dict[str, list[tuple[str, str, str]]]:
    """Region → `(id, reference, prediction)` from the lines of a `predictions.jsonl`.

    A text is filed under the name that the method gave, as in Reg2RG; a method that names no region at all is taken at
    the region that it was shown.
    """
    lines = list(lines)
    names = any(row["named"] for line in lines for row in line["regions"])
    result: dict[str, list[tuple[str, str, str]]] = {region: [] for region in regions}
    for line in lines:
        said: dict[str, list[str]] = {}
        for row in line["regions"]:
            said.setdefault(row["named"] if names else row["region"], []).append(row["prediction"] or "")
        for row in line["regions"]:
            prediction = " ".join(said.get(row["region"], [])).strip()
            if row["region"] in result and (row["reference"] or "").strip() and prediction:
                result[row["region"]].append((line["id"], row["reference"], prediction))
    return result


# Reports as Reg2RG's language model writes them: "The region 0 is lung: Both lungs are clear. The region 1 is …"


def named_regions(text: str) -> dict[str, str]:
    """`"region 0"` → the first word of the name that the text gives it; of two such the last one counts."""
    return dict(re.findall(r"The (region \d+) is (\w+)", text))


def regions_in(texts: Iterable[str]) -> tuple[str, ...]:
    """The region names that the texts use, sorted."""
    return tuple(sorted({name for text in texts for name in re.findall(r"The region \d+ is ([^:.]++):", text)}))


def split_regions(text: str, regions: Sequence[str]) -> dict[str, str]:
    """Region → its sentences; several passages on a region are joined by a space, empty ones dropped."""
    result = {}
    for region in regions:
        pattern = rf"The region \d+ is {re.escape(region)}:(.+?)(?=The region \d+ is|$)"
        passages = [passage.strip() for passage in re.findall(pattern, text, re.DOTALL)]
        if any(passages):
            result[region] = " ".join(filter(None, passages))
    return result


def region_scores_of_texts(
    references: Sequence[str],
    predictions: Sequence[str],
    ids: Sequence[str],
    protocol: str,
    tools: Tools | None = None,
) -> dict[str, Any]:
    """`region_scores` of reports that still carry their prefixes on both sides; empty where they do not."""
    regions = regions_in(references)
    if not regions or not regions_in(predictions):
        return {}
    full = {region.split()[0]: region for region in regions}
    named: list[Named] = []
    texts: dict[str, list[tuple[str, str, str]]] = {region: [] for region in regions}
    for study, reference, prediction in zip(ids, references, predictions, strict=True):
        said = named_regions(prediction)
        for number, word in named_regions(reference).items():
            if word in full:
                named.append((full[word], full.get(said.get(number, ""))))
        theirs, mine = split_regions(reference, regions), split_regions(prediction, regions)
        for region in theirs.keys() & mine.keys():
            texts[region].append((study, theirs[region], mine[region]))
    return region_scores(named, texts, regions, protocol, REFERENCE_EPSILON, tools)
