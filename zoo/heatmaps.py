"""`python -m zoo.heatmaps`: where several runs look in the same films, side by side (Overlay-SFT's Fig. 6)."""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import command

if TYPE_CHECKING:
    from zoo.explained import Answer, TestedRun

DESCRIPTION = """\
Writes for each of a few test studies DIR/<id>.png, a row a run: the film with the outline of its mask, and where the
run looked when it wrote its report, all rows on one scale. Beside it DIR/<id>.npz, the grids as they are, and
DIR/heatmaps.csv: the mean inside the mask over that outside. A row is named by the settings in which its run
was made differently. Settings given here hold for all runs: with model.guidance=mask all are shown the same input.
The films may be patients': keep DIR as you keep the dataset."""
COLUMNS = ("study", "run", "settings", "view", "region", "contrast")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return command.run(lambda: heatmaps(_parser().parse_intermixed_args(sys.argv[1:] if argv is None else argv)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m zoo.heatmaps",
        description=DESCRIPTION,
        epilog=command.EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="a run's folder, or a checkpoint in one; then key=value, see above")
    add("--output", type=Path, required=True, metavar="DIR", help="where the figures go")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--cases", type=int, default=4, metavar="N", help="the first N test studies (default: 4)")
    chosen.add_argument("--ids", metavar="A,B", help="these test studies instead")
    add("--view", metavar="NAME", help="which of a method's heatmaps (default: the first that all runs give)")
    add("--text", action="store_true", help="show the reports as well: their text is a patient's")
    return parser


def heatmaps(arguments: argparse.Namespace) -> None:
    """Asks every run about the same studies, then draws them study by study."""
    places = [Path(text) for text in arguments.runs if "=" not in text or Path(text).exists()]
    settings = [text for text in arguments.runs if "=" in text and not Path(text).exists()]
    if not places:
        raise command.UsageError("name at least one RUN: a run's folder, e.g. runs/overlay_sft-phantom-…")
    from rich.console import Console
    from rich.progress import Progress

    from zoo.explained import ask, labels, open_run
    from zoo.trainer import quiet

    quiet()
    runs = [open_run(place, settings) for place in dict.fromkeys(places)]
    names = labels(runs)
    ids = _chosen(runs, arguments.ids, arguments.cases)
    answers = []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(runs) * len(ids))
        for run in runs:
            progress.update(task, description=f"asking {run.name}", refresh=True)
            answers.append(ask(run, ids, lambda: progress.advance(task)))
    folder, phantom = arguments.output, any(run.data.is_phantom() for run in runs)
    without = []
    lines: list[Sequence[object]] = []
    for study, rows in zip(ids, zip(*answers, strict=True), strict=True):
        view = arguments.view or next((v for v in rows[0].heatmaps if all(v in row.heatmaps for row in rows)), None)
        if view is None or any(view not in row.heatmaps for row in rows):
            there = (f"{run.name}: {', '.join(row.heatmaps) or 'none'}" for run, row in zip(runs, rows, strict=True))
            without.append(f"{study}: no view {view or ''} of all runs ({'; '.join(there)})".replace("  ", " "))
            continue
        title = " · ".join([study, view, *([f"all with {', '.join(settings)}"] if settings else [])])
        stem = file_name(study)
        _draw(folder / f"{stem}.png", names, rows, view, arguments.text, title=title, phantom=phantom)
        _keep(folder / f"{stem}.npz", runs, names, rows, view)
        for run, name, row in zip(runs, names, rows, strict=True):
            number = row.contrast(view)
            told = "" if math.isnan(number) else f"{number:.6g}"
            lines.append((study, run.name, name.replace("\n", ", "), view, row.region or "", told))
    _finish(folder, lines, without, len(ids))


def _chosen(runs: Sequence[TestedRun], ids: str | None, cases: int) -> list[str]:
    """The studies' ids, which every run's test split has.

    Raises:
        UsageError: One has not, or none is asked for.
    """
    first = list(runs[0].listed())
    wanted = first[:cases] if ids is None else [name for name in dict.fromkeys(ids.split(",")) if name]
    if cases < 1 or not wanted:
        raise command.UsageError("give --cases 1 or more, or --ids, e.g. --ids " + first[0])
    for run in runs:
        listed = run.listed()
        if missing := [name for name in wanted if name not in listed]:
            raise command.UsageError(
                f"{run.name}: {len(missing)} of {len(wanted)} studies are not in its test split, {missing[0]!r} first; "
                f"one that is there: --ids {next(iter(listed))}"
            )
    return wanted


def file_name(study: str) -> str:
    """A study's id as a file's name, without suffix: two ids are never the same name, nor one that leads elsewhere."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", study).lstrip(".")[:100]
    return name if name == study else f"{name}-{hashlib.sha256(study.encode()).hexdigest()[:8]}"


def _draw(path: Path, names: Sequence[str], rows: Sequence[Answer], view: str, text: bool, **heading: Any) -> None:
    """One study's figure."""
    from zoo.gallery.heatmap_figure import HeatmapRow, draw_heatmaps

    drawn = []
    for name, row in zip(names, rows, strict=True):
        heatmap, ratio = row.heatmaps[view], row.contrast(view)
        note = heatmap.note or ("" if math.isnan(ratio) else f"Inside the mask {ratio:.2f} times as much as outside.")
        drawn.append(HeatmapRow(name, row.film, heatmap, row.mask, note, row.report.text if text else ""))
    draw_heatmaps(drawn, path, **heading)


def _keep(path: Path, runs: Sequence[TestedRun], names: Sequence[str], rows: Sequence[Answer], view: str) -> None:
    """One study's grids, as the methods give them: `values_<row>` and `frame_<row>` beside what the rows are of."""
    import numpy as np

    from zoo.run_directory import atomic_write

    arrays: dict[str, Any] = {"view": view, "runs": [run.name for run in runs], "settings": list(names)}
    for number, row in enumerate(rows):
        heatmap = row.heatmaps[view]
        arrays |= {f"values_{number}": heatmap.values, f"frame_{number}": heatmap.frame}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    atomic_write(path, content.getvalue())


def _finish(folder: Path, lines: Sequence[Sequence[object]], without: Sequence[str], total: int) -> None:
    """Writes the table, and says what was drawn and what was not."""
    from zoo.run_directory import atomic_write

    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([COLUMNS, *lines])
    atomic_write(folder / "heatmaps.csv", table.getvalue())
    command.say(f"written: {total - len(without)} figures in {folder}, and {folder / 'heatmaps.csv'}")
    if without:
        print("\n".join(f"error: {line}" for line in without), file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
