"""One engine for the callback and `zoo.evaluate`: texts and ids in, a protocol's figures out."""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any

import numpy as np
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from datamodules.study import DataFault
from zoo.metrics import DEFAULT_PROTOCOL
from zoo.metrics.labels import class_figures
from zoo.metrics.pairs import MetricUnavailable, Pairs, Score, Tools
from zoo.metrics.per_study import UNITS, Clusters, columns_of
from zoo.metrics.protocols import PROTOCOLS, Metric, Protocol
from zoo.metrics.significance import RESAMPLES, Aggregate, bootstrap_ci, mean, resample
from zoo.metrics.weights import sha256_of


def evaluate(
    references: Sequence[str],
    predictions: Sequence[str],
    ids: Sequence[str],
    protocol: str | Protocol = DEFAULT_PROTOCOL,
    *,
    clusters: Clusters | None = None,
    cheap: bool = False,
    resamples: int = RESAMPLES,
    per_study: bool = False,
    progress: bool = False,
    tools: Tools | None = None,
) -> dict[str, Any]:
    """Scores predictions; the same texts give the same dictionary.

    Args:
        references: The reference reports, raw.
        predictions: The predicted reports, raw. An empty one scores 0 and is counted.
        ids: The studies' ids, unique.
        protocol: A key of `PROTOCOLS`, or a protocol.
        clusters: The studies' patients or examinations, where some share one: intervals then resample these, and
            `per_study` numbers them in the column of their name.
        cheap: Leave out the metrics that are not worth their time at every validation.
        resamples: Bootstrap resamples behind each 95 % interval; 0 makes none.
        per_study: Add `per_study`: the columns of a `per_study.StudyTable`, in the order of `ids`.
        progress: Show a progress bar.
        tools: What metrics with weights may use.

    Returns:
        `{"protocol", "version", "n", "n_empty_predictions", "metrics", "classes", "skipped", "provenance"}`; each
        metric is `{"value", "ci95", "std"?, "overall"?, "protocol", "version"}`, with the population standard deviation
        over studies. `classes` holds the figures of each label of metrics that have labels. A metric that cannot run
        stands in `skipped` with its reason and never takes the others down.

    Raises:
        DataFault: The lengths differ, an id comes twice, or there is nothing to score.
        KeyError: There is no such protocol.
    """
    rules = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
    _check(references, predictions, ids)
    tools = replace(tools or Tools(), used={})
    pairs = Pairs([rules.prepare(text) for text in references], [rules.prepare(text) for text in predictions], tools)
    chosen = {key: metric for key, metric in rules.metrics.items() if metric.cheap or not cheap}
    scores: dict[str, Score] = {}
    skipped = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = get_console()  # the one that Lightning's bar uses, so that this bar goes below it
    with Progress(*columns, console=console, transient=True, disable=not (progress and console.is_terminal)) as bar:
        task = bar.add_task(f"Scoring {len(ids)} reports", total=len(chosen))
        for key, metric in chosen.items():
            bar.update(task, description=f"Scoring {len(ids)} reports: {metric.label}")
            outcome = attempt(metric, pairs)
            if isinstance(outcome, Score):
                scores[key] = outcome
            else:
                skipped[key] = outcome
            bar.advance(task)
    table = {name: column for key in scores for name, column in columns_of(key, chosen[key], scores[key]).items()}
    if clusters is not None:
        table = {clusters.unit: clusters.numbers()} | table
    result: dict[str, Any] = {
        "protocol": rules.id,
        "version": rules.version,
        "n": len(ids),
        "n_empty_predictions": sum(not rules.prepare(text) for text in predictions),
        "metrics": summaries(scores, rules, resamples, clusters),
        "classes": _classes(scores, rules),
        "skipped": skipped,
        "provenance": provenance(rules, zip(ids, references, predictions, strict=True), resamples, clusters)
        | {"weights": {name: sha256_of(path) for name, path in sorted(tools.used.items())}},
    }
    return result | ({"per_study": {name: column.tolist() for name, column in table.items()}} if per_study else {})


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
        if not all(np.isfinite(part).all() for part in (score.values, score.statistics) if part is not None):
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


def summaries(
    scores: dict[str, Score],
    protocol: Protocol,
    resamples: int = 0,
    clusters: Clusters | None = None,
) -> dict[str, Any]:
    """Each metric's entry: its value, 95 % interval, standard deviation over studies, overall value, and protocol."""
    corpora = {key: protocol.metrics[key].corpus for key in scores}
    names = {key: key if corpus is None else f"{corpus.name}." for key, corpus in corpora.items()}
    tables = {names[key]: _statistics(score) for key, score in scores.items()}  # shared statistics once
    n = len(next(iter(tables.values()))) if tables else 0
    drawn = None
    if tables and resamples:
        drawn = resample(np.concatenate(list(tables.values()), axis=1), clusters.names if clusters else None, resamples)
    if drawn is not None:
        ends = np.cumsum([table.shape[1] for table in tables.values()])[:-1]
        resampled = dict(zip(tables, np.split(drawn[0], ends, axis=1), strict=True))
    result = {}
    for key, score in scores.items():
        corpus, name = corpora[key], names[key]
        aggregate = mean if corpus is None else _of_sums(corpus.formula)
        entry: dict[str, Any] = {"value": float(aggregate(tables[name].sum(0), n))}
        if resamples:
            interval = None if drawn is None else bootstrap_ci(resampled[name], aggregate, drawn[1])
            entry["ci95"] = None if interval is None else list(interval)
        if score.values is not None:
            entry["std"] = float(score.values.std())
        if score.overall is not None:
            entry["overall"] = score.overall
        result[key] = entry | {"protocol": protocol.id, "version": protocol.version}
    return result


def _statistics(score: Score) -> np.ndarray:
    table = score.statistics if score.statistics is not None else np.asarray(score.values)[:, None]
    return np.asarray(table, dtype=np.float64)


def _of_sums(formula: Callable[[np.ndarray], np.ndarray]) -> Aggregate:
    return lambda sums, n: formula(sums)


def _classes(scores: dict[str, Score], protocol: Protocol) -> dict[str, Any]:
    """Figures of each label, for each set of labels among the metrics."""
    found: dict[str, Any] = {}
    for key, score in scores.items():
        corpus = protocol.metrics[key].corpus
        if corpus is not None and corpus.labels and corpus.name not in found:
            found[corpus.name] = class_figures(_statistics(score).sum(0), corpus.labels)
    return found


def provenance(
    protocol: Protocol,
    rows: Iterable[tuple[str, str, str]],
    resamples: int = 0,
    clusters: Clusters | None = None,
) -> dict[str, Any]:
    """What the figures depend on: definitions, package versions, and a fingerprint of ids and texts (no text)."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    drawn = "studies" if clusters is None else UNITS[clusters.unit]
    return {
        "source": protocol.source,
        "preparation": protocol.preparation,
        "definitions": {key: metric.how for key, metric in protocol.metrics.items()},
        "texts_sha256": digest.hexdigest(),
        "intervals": {"method": f"percentile bootstrap over {drawn}", "resamples": resamples, "seed": 0},
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in ("numpy", "nltk")},
    }
