"""`python -m zoo.study`: a grid of recipes × seeds, its missing runs made, one table and one plot written."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from zoo import command

if TYPE_CHECKING:
    from zoo.studies.design import Design, Point

DESCRIPTION = """\
Runs every arm of a study with every seed, several side by side, and writes DIR/<method>-<study>-<recipe>/table.md,
table.csv, study.json and plot.png with mean ± sd over seeds, or with boxes over single cases and cases.csv where the
study's file says `plot: box`. Runs that are done, also for another study, are not made again; the same command goes on
where it was interrupted."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return command.run(lambda: study(_parser().parse_intermixed_args(arguments)), "the same command goes on")


def studies() -> dict[str, Path]:
    """`<method>/<study>` → its file."""
    found = {method: command.configs_folder() / method / "studies" for method in command.methods()}
    return {f"{method}/{path.stem}": path for method, at in found.items() for path in sorted(at.glob("*.yaml"))}


def _overview() -> str:
    lines = [f"  {name:<34} {command.first_comment(path)}" for name, path in studies().items()]
    return "\n".join(["studies:", *lines] if lines else [f"no studies in {command.configs_folder()}"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m zoo.study",
        description=DESCRIPTION,
        epilog=f"{_overview()}\n\n{command.EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("study", nargs="?", metavar="METHOD/STUDY", help="one of those below; none: list them")
    add("--recipe", default=command.DEFAULT_RECIPE, help="the method's recipe (default: %(default)s)")
    add("--seeds", metavar="0,1,2", help="in place of the study's own")
    add("--jobs", type=int, metavar="N", help="runs side by side (default: one a core on the CPU, 1 on GPUs)")
    add("--dry-run", action="store_true", help="list the runs, done and to do, and what each sets; train nothing")
    add("--output", type=Path, default=Path("runs/studies"), metavar="DIR", help="default: %(default)s")
    add("settings", nargs="*", metavar="key=value", help="settings of all runs, e.g. data.root=/data")
    return parser


def study(arguments: argparse.Namespace) -> None:
    """Lists the studies, or a study's runs, or makes them and shows what came out."""
    if arguments.study is None:
        print(_overview())
        return
    from zoo.config import choose
    from zoo.studies.design import plan, read_design

    known = studies()
    path = known[choose("study", arguments.study, list(known))]
    recipes = list(command.recipes(arguments.study.partition("/")[0]))
    design = read_design(arguments.study, path, choose("recipe", arguments.recipe, recipes))
    design = replace(design, seeds=_seeds(arguments.seeds) or design.seeds)
    points = plan(design, arguments.settings, arguments.output, allow_missing=arguments.dry_run)
    if arguments.dry_run:
        from zoo.studies.runs import list_runs

        list_runs(points)
    else:
        _run(design, points, arguments)


def _seeds(text: str | None) -> tuple[int, ...]:
    parts = text.replace(" ", "").split(",") if text else []
    if not all(map(str.isdigit, parts)) or len(set(map(int, parts))) < len(parts):
        raise command.UsageError(f"--seeds {text}: give distinct whole numbers, e.g. --seeds 0,1,2")
    return tuple(map(int, parts))


def _run(design: Design, points: Sequence[Point], arguments: argparse.Namespace) -> None:
    from zoo.studies.report import write_report
    from zoo.studies.runs import execute, finished, prepare, runs_of, side_by_side
    from zoo.trainer import quiet

    quiet()
    runs = runs_of(points)
    waiting = [run for run in runs if not finished(run.folder)]
    jobs, threads = side_by_side(waiting, arguments.jobs)
    done = f"{len(runs) - len(waiting)} done" + (f"; {jobs} at a time" if waiting else "")
    command.say(f"{design.name}, recipe {design.recipe}: {len(runs)} runs, {done}")
    failed: dict[str, str] = {}
    if waiting:
        prepare(waiting, arguments.output)
        failed = execute(points, jobs, threads)
    folder = arguments.output / f"{design.name.replace('/', '-')}-{design.recipe}"
    write_report(design, points, failed, arguments.settings, folder)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
