"""Figures on screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from zoo.metrics.protocols import PROTOCOLS


def show(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the figures of `zoo.evaluate` or of a run's `metrics.json`.

    The method stands beside its baselines; its groups, whole examinations and regions follow where it has them.

    Args:
        result: What `engine.evaluate` returns, or the content of `metrics.json`.
        console: Where to print; the screen by default.
    """
    console = console or Console()
    console.print(_title(result, "Reports"), style="bold", highlight=False)
    console.print(_main_table(result))
    for (reason, how_to), absent in absent_metrics(result).items():
        advice = f"{' · '.join(absent)} absent: {reason}. To have it: {how_to}."
        console.print(advice, style="yellow", highlight=False)
    if result.get("groups"):
        console.print(_title(result, "By group"), style="bold", highlight=False)
        console.print(_group_table(result))
    if result.get("examinations"):
        whole = result["examinations"]
        console.print(_title(result | whole, "Texts joined", "examinations"), style="bold", highlight=False)
        console.print(_main_table(whole))
    if result.get("regions"):
        console.print(_title(result, "Regions"), style="bold", highlight=False)
        console.print(_region_table(result))
    if result.get("length"):
        length = result["length"]
        console.print(
            f"Length: {length['prediction']['mean']:.1f} words, references {length['reference']['mean']:.1f}; "
            f"KL divergence {length['kl_divergence']:.3f} nats",
            highlight=False,
        )
    if result["n_empty_predictions"]:
        console.print(
            f"{result['n_empty_predictions']} of {result['n']} predictions are empty; they score 0.", style="yellow"
        )


def absent_metrics(result: Mapping[str, Any]) -> dict[tuple[str, str], list[str]]:
    """Reason and advice → the metrics that are absent for it; a labeller's averages are named once."""
    found: dict[tuple[str, str], list[str]] = {}
    for key, entry in result["skipped"].items():
        names = found.setdefault((entry["reason"], entry["how_to"]), [])
        name = label(key, result)
        family = name.rsplit(" ", 1)[0] if "-" in name.rsplit(" ", 1)[-1] else name
        if family not in names:
            names.append(family)
    return found


def label(key: str, result: Mapping[str, Any]) -> str:
    """A metric's name for people."""
    metrics = PROTOCOLS[result["protocol"]].metrics
    if key in metrics:
        return metrics[key].label
    return key.replace("phantom_findings", "findings").replace("_", " ").replace(" f1", " F1")


def _title(result: Mapping[str, Any], what: str, units: str = "studies") -> str:
    place = "".join(f", {result[key]}" for key in ("split",) if result.get(key))
    phantom = "phantom, not patients: " if result.get("phantom") else ""
    return f"{phantom}{what}{place}, {result['n']} {units}, protocol {result['protocol']} (version {result['version']})"


def _main_table(result: Mapping[str, Any]) -> Table:
    baselines: Mapping[str, Any] = result.get("baselines") or {}
    table = Table()
    table.add_column("", min_width=20)
    table.add_column("method" if baselines else "value", justify="right", style="bold", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    for name in baselines or ("std", "overall"):
        table.add_column(name.replace("_", " "), justify="right", max_width=8)
    for key, entry in result["metrics"].items():
        if baselines:
            rest = [baseline["metrics"].get(key, {}).get("value") for baseline in baselines.values()]
        else:
            rest = [entry.get("std"), entry.get("overall")]
        interval = "–".join(f"{end:.3f}" for end in entry.get("ci95") or ()) or "–"
        table.add_row(label(key, result), _figure(entry["value"]), interval, *map(_figure, rest))
    return table


def _group_table(result: Mapping[str, Any]) -> Table:
    groups = result["groups"]
    table = Table()
    table.add_column("", min_width=20)
    for name, part in {"all": result, **groups}.items():
        table.add_column(f"{name} ({part['n']})", justify="right", no_wrap=True)
    for key, entry in result["metrics"].items():
        apart = [part["metrics"].get(key, {}).get("value") for part in groups.values()]
        table.add_row(label(key, result), *map(_figure, [entry["value"], *apart]))
    return table


def _region_table(result: Mapping[str, Any]) -> Table:
    table = Table()
    table.add_column("", no_wrap=True)
    for name in ("precision", "recall", "F1", "texts", "BLEU-4", "ROUGE-L"):
        table.add_column(name, justify="right")
    for name, region in result["regions"].items():
        recognition, metrics = region["recognition"], region["metrics"]
        figures = [recognition["precision"], recognition["recall"], recognition["f1"]]
        texts = [metrics.get(key, {}).get("value") for key in ("bleu_4", "rouge_l")]
        table.add_row(name, *map(_figure, figures), str(region["n"]), *map(_figure, texts))
    return table


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
