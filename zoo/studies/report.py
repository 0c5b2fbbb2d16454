"""A study's result folder (`study.json`, `table.md`, `table.csv`, `plot.png`, `cases.csv`), and its table on screen."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from zoo.command import say
from zoo.run_directory import atomic_write
from zoo.studies.box_plot import plot_boxes
from zoo.studies.cases import Cases, Change
from zoo.studies.design import Design, Point
from zoo.studies.plot import plot_study
from zoo.studies.results import Outcome, Results, Row, collect, metric_label

OUTCOME_COLUMNS = ("expected", "metric", "in the mean", "seeds", "difference ± sd over seeds", "Welch p, one-sided")


def write_report(
    design: Design, points: Sequence[Point], failed: Mapping[str, str], overrides: Sequence[str], folder: Path
) -> None:
    """Writes the folder from the runs that are done, and prints its table.

    Args:
        design: The study.
        points: Its points.
        failed: Digest of a run that failed → why.
        overrides: `key=value` arguments that held for all runs.
        folder: Made where it is not there.

    Raises:
        UsageError: Runs were scored in different ways.
        EnvironmentFault: The folder cannot be written to.
    """
    results = collect(design, points, failed, overrides)
    if results is None:
        say("no run is finished: no table")
        return
    atomic_write(folder / "study.json", results.as_json())
    atomic_write(folder / "table.md", markdown(results))
    atomic_write(folder / "table.csv", comma_separated(results))
    if results.cases:
        atomic_write(folder / "cases.csv", results.cases.comma_separated())
        plot_boxes(results, results.cases, folder / "plot.png")
    else:
        plot_study(results, folder / "plot.png")
    show(results)
    say(f"table {folder / 'table.md'}\nplot  {folder / 'plot.png'}")


def markdown(results: Results) -> str:
    """`table.md`."""
    phantom = " (phantom, not patients)" if results.scored["phantom"] else ""
    parts = [f"# {results.design.description}{phantom}", f"{results.title()}. Mean ± standard deviation over seeds."]
    parts.append(_pipes(_headings(results), [_cells(results, row) for row in results.rows]))
    if results.outcomes:
        parts += ["## Expected, and how it came out", _pipes(OUTCOME_COLUMNS, [_told(out) for out in results.outcomes])]
    parts += _of_cases(results.cases) if results.cases else []
    parts += ["\n".join(f"* {note}" for note in _notes(results))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _of_cases(cases: Cases) -> list[str]:
    """The parts of `table.md` about single cases."""
    labels = [metric_label(metric) for metric in cases.metrics]
    known = {(row.point, row.metric): f"{row.median:.4f} [{row.q1:.4f}, {row.q3:.4f}]" for row in cases.quartiles()}
    rows = [
        [row.point.name, str(len(row.cases)), str(len(row.tables)),
         *(known.get((row.point.name, metric), "–") for metric in cases.metrics)]
        for row in cases.rows
    ]  # fmt: skip
    what = f"Median [quartiles] of single reports, of all seeds together; {cases.design()}."
    parts = ["## Over cases", what, _pipes(["arm", "cases", "seeds", *labels], rows)]
    changes = cases.changes()
    if not changes:
        return parts
    moved = {(row.before, row.after, row.metric): _change(row) for row in changes}
    steps = dict.fromkeys((row.before, row.after) for row in changes)
    cells = [[*step, *(moved.get((*step, metric), "–") for metric in cases.metrics)] for step in steps]
    what = f"Mean change of a case [95 % bootstrap interval over {cases.unit}], of its mean over seeds."
    return [*parts, "## From point to point", what, _pipes(["from", "to", *labels], cells)]


def _change(row: Change) -> str:
    return f"{row.change:+.4f}" + (f" [{row.ci95[0]:+.4f}, {row.ci95[1]:+.4f}]" if row.ci95 else "")


def comma_separated(results: Results) -> str:
    """`table.csv`: a row for each point, all digits, what the figures mean in every row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    metrics = results.design.metrics
    pairs = [name for metric in metrics for name in (metric, f"{metric}_sd")]
    writer.writerow(["arm", "at", "seeds", "studies", *pairs, "study", "recipe", *results.scored])
    for row in results.rows:
        figures = [value for metric in metrics for value in (row.mean(metric), row.sd(metric))]
        head = [row.point.arm, row.point.at, len(row.studies), _studies(row), *figures]
        writer.writerow([*head, results.design.name, results.design.recipe, *results.scored.values()])
    return text.getvalue()


def show(results: Results, console: Console | None = None) -> None:
    """Prints the table, the expectations and the notes."""
    console = console or Console()
    console.print(results.title(), style="bold", highlight=False)
    columns = list(zip(_headings(results), *(_cells(results, row) for row in results.rows), strict=True))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown = [columns[0], *(column for column in columns[1:3] if len(set(column[1:])) > 1), *columns[3:]]
    for column in shown:  # the title has the numbers of seeds and of studies, where they are the same in all rows
        table.add_column(column[0], justify="right" if table.columns else "left")
    for cells in zip(*(column[1:] for column in shown), strict=True):
        table.add_row(*cells)
    console.print(table)
    for out in results.outcomes:
        expected, metric, held, seeds, difference, p = _told(out)
        line = f"{expected}: {metric} {held}, in {seeds} seeds; difference {difference}; Welch's one-sided p {p}"
        console.print(line, highlight=False, markup=False)
    for note in _notes(results):
        console.print(note, style="yellow", highlight=False, markup=False)


def _headings(results: Results) -> list[str]:
    return ["arm", "seeds", "studies", *map(metric_label, results.design.metrics)]


def _cells(results: Results, row: Row) -> list[str]:
    return [row.point.name, str(len(row.studies)), _studies(row), *(_cell(row, key) for key in results.design.metrics)]


def _cell(row: Row, metric: str) -> str:
    mean, sd = row.mean(metric), row.sd(metric)
    fewer = len(row.figures[metric])
    seeds = f" ({fewer})" if 0 < fewer < len(row.studies) else ""  # where some seeds lack the metric
    return "–" if mean is None else f"{mean:.4f}{'' if sd is None else f' ± {sd:.4f}'}{seeds}"


def _studies(row: Row) -> str:
    counts = sorted(set(row.studies.values()))
    return "–".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else "–"


def _told(out: Outcome) -> list[str]:
    """An expectation's cells, in the order of `OUTCOME_COLUMNS`."""
    held = {None: "not known", True: "held", False: "did not hold"}[out.held]
    difference = "–" if out.difference is None else f"{out.difference:+.4f}"
    difference += "" if out.sd is None else f" ± {out.sd:.4f}"
    p = "–" if out.p is None else f"{out.p:.4f}"
    return [f"{out.better} > {out.worse}", metric_label(out.metric), held, f"{out.held_in} of {len(out.paired)}",
            difference, p]  # fmt: skip


def _notes(results: Results) -> list[str]:
    warned: dict[str, list[str]] = {}
    for out in results.outcomes:
        if out.warning:
            warned.setdefault(out.warning, []).append(f"{out.better} > {out.worse}")
    lines = [f"Welch's test of {', '.join(dict.fromkeys(pairs))}: {warning}" for warning, pairs in warned.items()]
    return [*results.notes, *lines]


def _pipes(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
