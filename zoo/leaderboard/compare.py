"""Systems against a baseline, from per-study tables: no texts, no models once a system is scored.

The first system is the baseline. Single runs are compared study by study (paired permutation, bootstrap over studies);
where a system comes as several runs (seeds), all are compared by Welch's test over the runs' values.
"""

from __future__ import annotations

import itertools
import json
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from rich.console import Console
from rich.table import Table

from datamodules.study import DataFault
from zoo.command import UsageError
from zoo.leaderboard.submission import hashed_id
from zoo.leaderboard.systems import Run, System
from zoo.metrics.protocols import PROTOCOLS
from zoo.metrics.significance import (
    RESAMPLES,
    TRIALS,
    Alternative,
    Measured,
    holm,
    paired_differences,
    welch,
)


@dataclass(frozen=True)
class Entry:
    """One system in one metric.

    Attributes:
        value: The metric's value; over several runs their mean.
        ci95: Its bootstrap interval over studies; `None` where runs are compared, or for a single study.
        sd: Standard deviation over runs, ddof 1; `None` for one run.
        values: Each run's value.
        difference: To the baseline, positive where this system's value is larger; `None` for the baseline itself, as
            are all that follow.
        difference_ci95: Its interval.
        p: Of the test that `Comparison.test` names; `None` where none could be made.
        p_holm: The same adjusted for all systems that are compared with the baseline in this metric.
        effect: Cohen's d_z over studies, or Hedges' g over runs.
        warning: What to keep in mind about the test; mostly empty.
    """

    value: float
    ci95: tuple[float, float] | None
    sd: float | None
    values: tuple[float, ...]
    difference: float | None = None
    difference_ci95: tuple[float, float] | None = None
    p: float | None = None
    p_holm: float | None = None
    effect: float | None = None
    warning: str = ""


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        protocol: The protocol's id.
        version: Its version.
        n: The number of studies.
        phantom: Whether the studies are the phantom's.
        baseline: The first system's name.
        test: What was tested, how often and with what seed, in one line.
        effect: The name of the effect size.
        metrics: Metric → system → entry, the baseline first.
        notes: What else there is to know, a sentence each.
    """

    protocol: str
    version: int
    n: int
    phantom: bool
    baseline: str
    test: str
    effect: str
    metrics: dict[str, dict[str, Entry]]
    notes: tuple[str, ...]

    def as_json(self) -> str:
        """The comparison as JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


# Comparing


def compare(
    systems: Sequence[System],
    metrics: Sequence[str] | None = None,
    trials: int = TRIALS,
    seed: int = 0,
    *,
    resamples: int = RESAMPLES,
    common: bool = False,
    alternative: Alternative = "two-sided",
) -> Comparison:
    """Compares every system with the first.

    Args:
        systems: The baseline, then the others; see `systems.load_systems`.
        metrics: Keys of the protocol's metrics; all that every system has by default.
        trials: Swaps of the permutation test.
        seed: Of the bootstrap and the permutation test.
        resamples: Of the bootstrap.
        common: Whether to go on with the studies that all share, where the systems are not on the same ones.
        alternative: Of Welch's test, a system against the baseline; the permutation test is two-sided.

    Raises:
        UsageError: Fewer than two systems; different protocols or versions; different studies; an unknown metric.
        DataFault: An id comes twice in a table; the same study has different references in two systems.
    """
    if len(systems) < 2:
        raise UsageError("a comparison needs at least two systems")
    runs = [(system.name if len(system.runs) == 1 else run.source, run) for system in systems for run in system.runs]
    _check_protocols(runs)
    ids = _study_ids(runs)
    shared = _shared_studies([name for name, _ in runs], ids, common)
    _check_references(runs, ids, set(shared))
    keys, notes = _choose_metrics(runs, metrics)
    if any(len(shared) < len(studies) for studies in ids):
        sizes = ", ".join(f"{name}: {len(studies)}" for (name, _), studies in zip(runs, ids, strict=True))
        notes.append(f"Only the {len(shared)} studies that all share are compared ({sizes}).")
    measured = iter([_measure(run, studies, shared, keys) for (_, run), studies in zip(runs, ids, strict=True)])
    groups = [[next(measured) for _ in system.runs] for system in systems]
    if len(runs) == len(systems):
        rows = _paired([group[0] for group in groups], trials, resamples, seed)
        test, effect = _paired_test(len(shared), trials, resamples, seed), "Cohen's d_z over studies"
        notes.append("One run a system: how much another seed would change is in no interval and no p.")
    else:
        rows = _over_runs(groups, keys, alternative)
        test, effect = _welch_test(alternative), "Hedges' g over runs"
    if len(systems) > 2:
        notes.append(f"Holm's p allows for {len(systems) - 1} systems against one baseline, metric by metric.")
    notes.append("No p allows for looking at several metrics.")
    names = [system.name for system in systems]
    found = {key: dict(zip(names, _adjusted(rows[key]), strict=True)) for key in keys}
    table, phantom = runs[0][1].table, any(run.phantom for _, run in runs)
    return Comparison(table.protocol, table.version, len(shared), phantom, names[0], test, effect, found, tuple(notes))


def _check_protocols(runs: Sequence[tuple[str, Run]]) -> None:
    (name, run), *others = runs
    for other, theirs in others:
        mine = f"protocol {run.table.protocol} version {run.table.version}"
        that = f"protocol {theirs.table.protocol} version {theirs.table.version}"
        if mine != that:
            raise UsageError(
                f"{name} ({run.source}) is scored by {mine}, {other} ({theirs.source}) by {that}: these must not be "
                "compared; score the predictions of both by one protocol (name predictions files, and --protocol)"
            )


def _study_ids(runs: Sequence[tuple[str, Run]]) -> list[list[str]]:
    """Each run's ids, hashed where one of them has only hashes."""
    hashing = any(run.hashed for _, run in runs)
    result = []
    for _, run in runs:
        ids = [hashed_id(study) for study in run.table.ids] if hashing and not run.hashed else list(run.table.ids)
        twice = sorted(study for study, times in Counter(ids).items() if times > 1)
        if twice:
            raise DataFault(f"{run.source}: {len(twice)} ids come more than once: {', '.join(twice[:5])}")
        result.append(ids)
    return result


def _shared_studies(names: Sequence[str], ids: Sequence[list[str]], common: bool) -> list[str]:
    shared = set(ids[0]).intersection(*ids[1:])
    for name, studies in zip(names[1:], ids[1:], strict=True):
        both = len(set(ids[0]) & set(studies))
        if not both:
            raise UsageError(f"{names[0]} and {name} have no study in common: nothing to compare")
        if both < max(len(ids[0]), len(studies)) and not common:
            raise UsageError(
                f"{names[0]} and {name} are not on the same studies: {both} are shared; {name} lacks "
                f"{len(ids[0]) - both} of {names[0]}'s {len(ids[0])}, {names[0]} lacks {len(studies) - both} of "
                f"{name}'s {len(studies)}; --common compares what is shared"
            )
    if not shared:
        raise UsageError("there is no study that all systems share: nothing to compare")
    return [study for study in ids[0] if study in shared]


def _check_references(runs: Sequence[tuple[str, Run]], ids: Sequence[list[str]], shared: set[str]) -> None:
    """Refuses systems that were scored against different texts under the same ids."""
    known: dict[str, tuple[str, str]] = {}
    differing: Counter[tuple[str, str]] = Counter()
    for (name, run), studies in zip(runs, ids, strict=True):
        for raw, study in zip(run.table.ids, studies, strict=True):
            if study in shared and raw in run.references:
                text, owner = known.setdefault(study, (run.references[raw], name))
                differing[owner, name] += text != run.references[raw]
    for (owner, name), times in differing.items():
        if times:
            raise DataFault(
                f"{owner} and {name} have different references for {times} of {len(shared)} shared studies: they "
                "are not scored on the same data"
            )


def _choose_metrics(runs: Sequence[tuple[str, Run]], metrics: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The metrics, and notes on those that only some systems have."""
    has = [(name, run.table.keys()) for name, run in runs]
    known = list(PROTOCOLS[runs[0][1].table.protocol].metrics)
    lacking = {key: [name for name, keys in has if key not in keys] for key in known}
    for key in metrics or ():
        if key not in known:
            raise UsageError(f"protocol {runs[0][1].table.protocol} has no metric {key!r}; it has {', '.join(known)}")
        if lacking[key]:
            raise UsageError(f"{', '.join(dict.fromkeys(lacking[key]))} has no {key}: it was not computed there")
    chosen = list(metrics) if metrics else [key for key in known if not lacking[key]]
    if not chosen:
        raise UsageError("there is no metric that all systems have")
    partly = [key for key in known if 0 < len(lacking[key]) < len(runs)] if not metrics else []
    notes = [f"Left out, as not all systems have them: {', '.join(partly)}."] if partly else []
    if "cider" in chosen:
        notes.append("CIDEr's document frequencies stay those of the file that was scored, in every resample.")
    return chosen, notes


def _measure(run: Run, ids: Sequence[str], shared: Sequence[str], keys: Sequence[str]) -> dict[str, Measured]:
    places = {study: place for place, study in enumerate(ids)}
    order = np.array([places[study] for study in shared])
    result = {}
    for key in keys:
        table, aggregate = run.table.metric(key)
        values = run.table.columns.get(key)
        result[key] = Measured(table[order], aggregate, None if values is None else values[order])
    return result


def _paired(
    systems: Sequence[Mapping[str, Measured]], trials: int, resamples: int, seed: int
) -> dict[str, list[Entry]]:
    baseline, *others = systems
    rows: dict[str, list[Entry]] = {key: [] for key in baseline}
    for other in others:
        found = paired_differences(other, baseline, resamples=resamples, trials=trials, seed=seed)
        for key, each in found.items():
            rows[key] = rows[key] or [Entry(each.value_b, each.ci95_b, None, (each.value_b,))]
            measured = (each.value_a, each.ci95_a, None, (each.value_a,))
            rows[key].append(Entry(*measured, each.difference, each.ci95, each.p, None, each.effect))
    return rows


def _over_runs(
    systems: Sequence[Sequence[Mapping[str, Measured]]], keys: Sequence[str], alternative: Alternative
) -> dict[str, list[Entry]]:
    rows = {}
    for key in keys:
        baseline, *others = [tuple(_value(run[key]) for run in runs) for runs in systems]
        tests = [welch(values, baseline, alternative) for values in others]
        rows[key] = [Entry(tests[0].mean_b, None, tests[0].sd_b, baseline)]
        rows[key] += [
            Entry(w.mean_a, None, w.sd_a, values, w.difference, w.ci95, w.p, None, w.effect, w.warning)
            for values, w in zip(others, tests, strict=True)
        ]
    return rows


def _value(measured: Measured) -> float:
    return float(measured.aggregate(measured.table.sum(0), len(measured.table)))


def _adjusted(entries: Sequence[Entry]) -> list[Entry]:
    """The entries of one metric with Holm's p-values, over those that were tested."""
    tested = [entry.p for entry in entries if entry.p is not None]
    adjusted = iter(holm(tested))
    return [entry if entry.p is None else replace(entry, p_holm=next(adjusted)) for entry in entries]


def _paired_test(n: int, trials: int, resamples: int, seed: int) -> str:
    swaps = f"all {2**n} swaps" if 2**n <= trials else f"{trials:,} random swaps"
    intervals = f"95 % percentile bootstrap over {n} studies, {resamples:,} resamples"
    return f"paired permutation test, two-sided, {swaps}; {intervals}; seed {seed}"


def _welch_test(alternative: Alternative) -> str:
    side = "two-sided" if alternative == "two-sided" else f"one-sided ({alternative} than the baseline)"
    return f"Welch's t-test over runs, {side}; ± is the standard deviation over runs (ddof 1)"


# Showing


def show(comparison: Comparison, console: Console | None = None) -> None:
    """Prints a comparison: a block for each metric, in it a line for each system.

    Args:
        comparison: What `compare` returned.
        console: Where to print; the screen by default.
    """
    console = console or Console()
    names = list(next(iter(comparison.metrics.values())))
    letters = dict(zip(names, _letters(), strict=False))  # long names would push the figures off the screen
    phantom = "phantom, not patients: " if comparison.phantom else ""
    title = f"{phantom}{comparison.n} studies, protocol {comparison.protocol} (version {comparison.version})"
    console.print(title, style="bold", highlight=False)
    for name in names:
        baseline = " (baseline)" if name == comparison.baseline else ""
        console.print(f"{letters[name]}  {name}{baseline}", highlight=False, markup=False)
    labels = PROTOCOLS[comparison.protocol].metrics
    console.print(_table(show_header=True))
    for key, entries in comparison.metrics.items():
        console.print(labels[key].label, style="bold", highlight=False)
        table = _table(show_header=False)
        for name, entry in entries.items():
            table.add_row(letters[name], *_cells(entry))
        console.print(table)
    console.print(f"Test: {comparison.test}. Effect: {comparison.effect}.", highlight=False)
    for note in comparison.notes:
        console.print(note, highlight=False)
    every = [(name, entry.warning) for row in comparison.metrics.values() for name, entry in row.items()]
    for name, warning in dict.fromkeys(every):
        if warning:
            console.print(f"{letters[name]}: {warning}.", style="yellow", highlight=False)


_COLUMNS = (("", 2), ("value", 23), ("difference", 26), ("p", 6), ("Holm p", 6), ("effect", 6))


def _table(show_header: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), show_header=show_header)
    for heading, width in _COLUMNS:
        table.add_column(heading, min_width=width, justify="right" if heading else "left", no_wrap=True)
    return table


def _letters() -> Iterator[str]:
    """A, B, …, Z, A2, B2, …"""
    return (f"{letter}{'' if turn == 1 else turn}" for turn in itertools.count(1) for letter in string.ascii_uppercase)


def _cells(entry: Entry) -> list[str]:
    spread = f" ± {entry.sd:.4f} ({len(entry.values)})" if entry.sd is not None else ""
    value = f"{entry.value:.4f}{spread}{_interval(entry.ci95)}"
    if entry.difference is None:
        return [value]
    tests = ((entry.p, ".4f"), (entry.p_holm, ".4f"), (entry.effect, "+.2f"))
    numbers = ["–" if number is None else f"{number:{form}}" for number, form in tests]
    return [value, f"{entry.difference:+.4f}{_interval(entry.difference_ci95, '+')}", *numbers]


def _interval(interval: tuple[float, float] | None, sign: str = "") -> str:
    return f" [{interval[0]:{sign}.4f}, {interval[1]:{sign}.4f}]" if interval else ""
