"""What came out of a study: figures of every run, mean ± sd over seeds, and whether the expectations held."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.command import UsageError
from zoo.leaderboard.render import label_of
from zoo.metrics.significance import welch
from zoo.run_directory import RunDirectory
from zoo.studies.cases import Cases, read_cases
from zoo.studies.design import Design, Point
from zoo.studies.runs import finished


@dataclass(frozen=True)
class Row:
    """A point's figures.

    Attributes:
        point: The point.
        figures: Metric → seed → value; a seed without the metric is left out.
        studies: Seed → number of studies that were scored.
    """

    point: Point
    figures: Mapping[str, Mapping[int, float]]
    studies: Mapping[int, int]

    def mean(self, metric: str) -> float | None:
        """Over the seeds that have the metric."""
        values = self.figures[metric].values()
        return statistics.fmean(values) if values else None

    def sd(self, metric: str) -> float | None:
        """Standard deviation over seeds, ddof 1; `None` of fewer than two."""
        values = self.figures[metric].values()
        return statistics.stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Outcome:
    """What became of an expectation `better > worse` in one metric.

    Attributes:
        better: The point expected to have the larger figures.
        worse: The other.
        metric: Its key.
        difference: Mean of `better` − mean of `worse`, each over its own seeds; `None` where one has no figure.
        paired: For each seed that both have: its difference, in the order of the seeds.
        p: Of Welch's one-sided test over all seeds of both; `None` where it cannot be made.
        warning: What to keep in mind about the test.
    """

    better: str
    worse: str
    metric: str
    difference: float | None
    paired: tuple[float, ...]
    p: float | None
    warning: str

    @property
    def held(self) -> bool | None:
        """In the mean; `None` where it is not known."""
        return None if self.difference is None else self.difference > 0

    @property
    def held_in(self) -> int:
        """The number of seeds in which it held."""
        return sum(difference > 0 for difference in self.paired)

    @property
    def sd(self) -> float | None:
        """Of the seeds' differences, ddof 1."""
        return statistics.stdev(self.paired) if len(self.paired) > 1 else None


@dataclass(frozen=True)
class Results:
    """A study's figures.

    Attributes:
        design: The study.
        overrides: `key=value` arguments that held for all runs.
        scored: `phantom`, `split`, `protocol` and `version`, the same of all runs.
        rows: Arms by the mean of the first metric, the largest on top, each with its points in order.
        outcomes: Expectation by expectation, metric by metric.
        notes: What else there is to know, a sentence each.
        cases: The figures of single cases, where the study's plot is of them.
    """

    design: Design
    overrides: tuple[str, ...]
    scored: Mapping[str, Any]
    rows: tuple[Row, ...]
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...]
    cases: Cases | None = None

    def title(self) -> str:
        """What was scored, and how."""
        phantom = "phantom, not patients: " if self.scored["phantom"] else ""
        seeds = ", ".join(map(str, self.design.seeds))
        parts = [f"recipe {self.design.recipe}", f"split {self.scored['split']}", f"{studies_text(self.rows)} studies",
                 f"protocol {self.scored['protocol']} (version {self.scored['version']})", f"seeds {seeds}",
                 *self.overrides]  # fmt: skip
        return f"{phantom}{self.design.name}, {', '.join(parts)}"

    def as_json(self) -> str:
        """Everything, with every run's figures; the same runs give the same text."""
        rows = [
            {
                "name": row.point.name, "arm": row.point.arm, "at": row.point.at, "settings": dict(row.point.settings),
                "metrics": {
                    metric: {"mean": row.mean(metric), "sd": row.sd(metric), "seeds": len(row.figures[metric])}
                    for metric in self.design.metrics
                },
                "runs": [
                    {
                        "seed": seed, "hash": run.digest, "folder": str(run.folder), "n": row.studies.get(seed),
                        "values": {metric: row.figures[metric].get(seed) for metric in self.design.metrics},
                    }
                    for seed, run in row.point.runs.items()
                ],
            }
            for row in self.rows
        ]  # fmt: skip
        expect = [
            {
                "better": out.better, "worse": out.worse, "metric": out.metric, "held": out.held,
                "held_in_seeds": out.held_in, "seeds": len(out.paired), "difference": out.difference,
                "differences": list(out.paired), "sd": out.sd, "welch_p_one_sided": out.p, "warning": out.warning,
            }
            for out in self.outcomes
        ]  # fmt: skip
        head = {
            "study": self.design.name, "recipe": self.design.recipe, "description": self.design.description,
            **self.scored, "metrics": list(self.design.metrics), "seeds": list(self.design.seeds),
            "axis": self.design.axis, "overrides": list(self.overrides),
        }  # fmt: skip
        cases = {"cases": self.cases.as_json()} if self.cases else {}
        result = {**head, "points": rows, "expect": expect, **cases, "notes": list(self.notes)}
        return json.dumps(result, indent=1, ensure_ascii=False) + "\n"


def metric_label(metric: str) -> str:
    """A metric's name for people; a group's name after it."""
    group, _, key = metric.rpartition("/")
    return f"{label_of(key)} ({group})" if group else label_of(key)


def studies_text(rows: Sequence[Row]) -> str:
    """The number of studies that were scored, or from fewest to most."""
    counts = sorted({n for row in rows for n in row.studies.values()})
    return "–".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else "0"


def collect(
    design: Design, points: Sequence[Point], failed: Mapping[str, str], overrides: Sequence[str] = ()
) -> Results | None:
    """Reads the figures of every finished run.

    Args:
        design: The study.
        points: Its points.
        failed: Digest of a run that failed → why.
        overrides: `key=value` arguments that held for all runs.

    Returns:
        `None` where no run is finished.

    Raises:
        UsageError: Runs were scored in different ways, so that no table may hold them all.
    """
    done = {
        (point.name, seed): run
        for point in points
        for seed, at in point.runs.items()
        if (run := finished(at.folder)) is not None
    }
    if not done:
        return None
    metrics = {place: json.loads(run.metrics.read_text(encoding="utf-8")) for place, run in done.items()}
    scored = _scored_alike({done[place]: content for place, content in metrics.items()})
    notes = [
        f"{point.name}, seed {seed}: no figures: {failed.get(run.digest, 'not made yet')}"
        for point in points
        for seed, run in point.runs.items()
        if (point.name, seed) not in done
    ]
    rows = []
    absent: dict[str, list[str]] = {}
    for point in points:
        own = {seed: metrics[point.name, seed] for seed in point.runs if (point.name, seed) in metrics}
        figures = {}
        for metric in design.metrics:
            found = {seed: _figure(content, metric) for seed, content in own.items()}
            figures[metric] = {seed: value for seed, value in found.items() if isinstance(value, float)}
            reasons = dict.fromkeys(reason for reason in found.values() if isinstance(reason, str))
            for reason in reasons:
                absent.setdefault(f"{metric_label(metric)} absent: {reason}", []).append(point.name)
        rows.append(Row(point, figures, {seed: content["n"] for seed, content in own.items()}))
    notes += [f"{what} ({', '.join(names)})" for what, names in absent.items()]
    rows = _ordered(rows, design.metrics[0])
    by_name = {row.point.name: row for row in rows}
    outcomes = [
        _outcome(by_name[better], by_name[worse], metric)
        for better, worse in design.expect
        for metric in design.metrics
    ]
    notes += _protocol_notes(design, metrics.values()) + _commit_notes(done.values())
    cases = None
    if design.plot == "box":
        had = [metric for metric in design.metrics if any(row.figures[metric] for row in rows)]
        cases, told = read_cases([row.point for row in rows], had, done)
        notes += told
    return Results(design, tuple(overrides), scored, tuple(rows), tuple(outcomes), tuple(notes), cases)


def _scored_alike(contents: Mapping[RunDirectory, Mapping[str, Any]]) -> dict[str, Any]:
    """`phantom`, `split`, `protocol` and `version` of all runs."""
    ways: dict[str, list[RunDirectory]] = {}
    keys = ("phantom", "split", "protocol", "version")
    for run, content in contents.items():
        ways.setdefault(json.dumps({key: content.get(key) for key in keys}), []).append(run)
    if len(ways) > 1:
        lines = [f"\n       {way}: {len(runs)} runs, e.g. {runs[0].path}" for way, runs in ways.items()]
        raise UsageError(f"the runs were not scored alike; delete the folders of those to make anew:{''.join(lines)}")
    return json.loads(next(iter(ways)))


def _figure(content: Mapping[str, Any], metric: str) -> float | str:
    """A metric's value in a run's `metrics.json`, or why it has none."""
    group, _, key = metric.rpartition("/")
    if group:
        groups = content.get("groups") or {}
        if group not in groups:
            return f"the run has no group {group!r}, only {', '.join(groups) or 'none'}"
        content = {"skipped": content.get("skipped", {})} | groups[group]
    value = (content["metrics"].get(key) or {}).get("value")
    if value is not None:
        return float(value)
    skipped = content.get("skipped", {}).get(key)
    return f"{skipped['reason']}; {skipped['how_to']}" if skipped else "it is not among the run's figures"


def _ordered(rows: Sequence[Row], metric: str) -> list[Row]:
    means: dict[str, list[float]] = {}
    for row in rows:
        mean = row.mean(metric)
        means.setdefault(row.point.arm, []).extend([] if mean is None else [mean])
    ranks = {arm: statistics.fmean(values) if values else float("-inf") for arm, values in means.items()}
    arms = sorted(ranks, key=lambda arm: -ranks[arm])
    return sorted(rows, key=lambda row: arms.index(row.point.arm))


def _outcome(better: Row, worse: Row, metric: str) -> Outcome:
    names = better.point.name, worse.point.name
    one, other = better.figures[metric], worse.figures[metric]
    if not one or not other:
        return Outcome(*names, metric, None, (), None, "")  # the notes say why
    test = welch(list(one.values()), list(other.values()), "greater")
    paired = tuple(one[seed] - other[seed] for seed in one if seed in other)
    return Outcome(*names, metric, test.difference, paired, test.p, test.warning)


def _protocol_notes(design: Design, contents: Any) -> list[str]:
    """Metrics that have a protocol of their own, and the sizes of groups."""
    found: dict[str, None] = {}
    for content in contents:
        for metric in design.metrics:
            group, _, key = metric.rpartition("/")
            part = content.get("groups", {}).get(group, {}) if group else content
            entry = part.get("metrics", {}).get(key, {})
            own = {name: entry.get(name, content[name]) for name in ("protocol", "version")}
            if own != {name: content[name] for name in own}:
                found[f"{metric_label(metric)}: protocol {own['protocol']} (version {own['version']})"] = None
            if group and "n" in part:
                found[f"group {group}: {part['n']} studies"] = None
    return list(found)


def _commit_notes(runs: Any) -> list[str]:
    records = [json.loads(run.provenance.read_text(encoding="utf-8")) for run in runs if run.provenance.is_file()]
    commits = {json.dumps(record.get("git")) for record in records}
    return (
        [f"The runs were made at {len(commits)} states of the code; their provenance.json says which."]
        if len(commits) > 1
        else []
    )
