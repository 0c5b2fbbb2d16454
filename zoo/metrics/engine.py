"""One engine for the callback and `zoo.evaluate`: texts and ids in, a protocol's figures out."""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from datamodules.study import DataFault
from zoo.metrics import DEFAULT_PROTOCOL
from zoo.metrics.meteor import MetricUnavailable
from zoo.metrics.nlg import Pairs, Score
from zoo.metrics.protocols import PROTOCOLS, Metric, Protocol


def evaluate(
    references: Sequence[str],
    predictions: Sequence[str],
    ids: Sequence[str],
    protocol: str = DEFAULT_PROTOCOL,
    *,
    cheap: bool = False,
    per_study: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Scores predictions; the same texts give the same dictionary.

    Args:
        references: The reference reports, raw.
        predictions: The predicted reports, raw. An empty one scores 0 and is counted.
        ids: The studies' ids, unique.
        protocol: A key of `PROTOCOLS`.
        cheap: Leave out the metrics that are not worth their time at every validation.
        per_study: Add `per_study`: metric → the studies' values, in the order of `ids`.
        progress: Show a progress bar.

    Returns:
        `{"protocol", "version", "n", "n_empty_predictions", "metrics", "skipped", "provenance"}`; each metric is
        `{"value", "std", "overall"?, "protocol", "version"}`, with the population standard deviation over studies. A
        metric that cannot run stands in `skipped` with its reason and never takes the others down.

    Raises:
        DataFault: The lengths differ, an id comes twice, or there is nothing to score.
        KeyError: There is no such protocol.
    """
    rules = PROTOCOLS[protocol]
    _check(references, predictions, ids)
    pairs = Pairs([rules.prepare(text) for text in references], [rules.prepare(text) for text in predictions])
    chosen = {key: metric for key, metric in rules.metrics.items() if metric.cheap or not cheap}
    metrics, skipped, values = {}, {}, {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = get_console()  # the one that Lightning's bar uses, so that this bar goes below it
    with Progress(*columns, console=console, transient=True, disable=not (progress and console.is_terminal)) as bar:
        task = bar.add_task(f"Scoring {len(ids)} reports", total=len(chosen))
        for key, metric in chosen.items():
            bar.update(task, description=f"Scoring {len(ids)} reports: {metric.label}")
            outcome = attempt(metric, pairs)
            if isinstance(outcome, Score):
                metrics[key] = summary(outcome, rules)
                values[key] = outcome.values.tolist()
            else:
                skipped[key] = outcome
            bar.advance(task)
    result: dict[str, Any] = {
        "protocol": rules.id,
        "version": rules.version,
        "n": len(ids),
        "n_empty_predictions": sum(not rules.prepare(text) for text in predictions),
        "metrics": metrics,
        "skipped": skipped,
        "provenance": provenance(rules, zip(ids, references, predictions, strict=True)),
    }
    return result | ({"per_study": values} if per_study else {})


def _check(references: Sequence[str], predictions: Sequence[str], ids: Sequence[str]) -> None:
    if not len(references) == len(predictions) == len(ids):
        raise DataFault(
            f"{len(references)} references, {len(predictions)} predictions and {len(ids)} ids: give one of each a study"
        )
    if not ids:
        raise DataFault("there is no report to score")
    twice = sorted(study for study, times in Counter(ids).items() if times > 1)
    if twice:
        raise DataFault(f"{len(twice)} ids come more than once: {', '.join(twice[:5])}")


def attempt(metric: Metric, pairs: Pairs) -> Score | dict[str, Any]:
    """The metric's score, or the entry that says why there is none."""
    try:
        score = metric.score(pairs)
        if not np.isfinite(score.values).all():
            raise ArithmeticError("a value is not finite")
        return score
    except MetricUnavailable as missing:
        entry = {"value": None, "status": "skipped", "reason": missing.reason, "how_to": missing.how_to}
        return entry | ({"searched": missing.searched} if missing.searched else {})
    except Exception as error:  # whatever it is, it is this metric's own
        reason = f"{type(error).__name__}: {error}"
        return {
            "value": None,
            "status": "failed",
            "reason": reason,
            "how_to": "report this with the texts that cause it",
        }


def summary(score: Score, protocol: Protocol) -> dict[str, Any]:
    """A metric's entry: mean and population standard deviation over studies, the overall value if any, the protocol."""
    entry: dict[str, Any] = {"value": float(score.values.mean()), "std": float(score.values.std())}
    if score.overall is not None:
        entry["overall"] = score.overall
    return entry | {"protocol": protocol.id, "version": protocol.version}


def provenance(protocol: Protocol, rows: Iterable[tuple[str, str, str]]) -> dict[str, Any]:
    """What the figures depend on: definitions, package versions, and a fingerprint of ids and texts (no text)."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return {
        "source": protocol.source,
        "preparation": protocol.preparation,
        "definitions": {key: metric.how for key, metric in protocol.metrics.items()},
        "texts_sha256": digest.hexdigest(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in ("numpy", "nltk")},
    }
