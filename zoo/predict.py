"""`python -m zoo.predict`: a trained run reports on one examination that lies in loose files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from zoo import command

if TYPE_CHECKING:
    from zoo.config import Config
    from zoo.run_directory import RunDirectory

DESCRIPTION = """\
Writes DIR/report.json and DIR/report.html, a self-contained page, about one examination. Which files an examination
takes is the dataset's to say: `--method NAME --help` lists them. Report text goes to DIR alone unless --show."""

STEPS = ("reading the examination", "building the model", "writing the report", "drawing the page")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return command.run(lambda: predict(sys.argv[1:] if argv is None else argv))


def predict(argv: list[str]) -> None:
    """Finds the run, learns from its DataModule which options there are, and reports."""
    parser = _parser()
    place, method = _chosen(argv)
    if (place is None) == (not method):
        parser.parse_intermixed_args(argv)  # prints the help, or that one of --checkpoint and --method is needed
        return
    from zoo.config import import_target, load
    from zoo.run_directory import newest_run, tested_checkpoint
    from zoo.study_options import add_study_options, study_arguments

    if place is None and {"-h", "--help"} & set(argv):
        add_study_options(parser, import_target(_dataset(method)).study_from_files)
        parser.parse_intermixed_args(argv)
    run, checkpoint = tested_checkpoint(place or newest_run(method))
    study_from_files = import_target(load(run.config).values["data"]["class"]).study_from_files
    add_study_options(parser, study_from_files)
    arguments = parser.parse_intermixed_args(argv)
    if place is None:
        print(f"the newest finished run of {method}: {run.path}", file=sys.stderr)
    given = study_arguments(study_from_files, arguments)
    _report(load(run.config, arguments.settings), run, checkpoint, given, arguments)


def _dataset(method: str) -> str:
    """The class of the data that `--help` tells the options of, where no run is named: the newest run's, or the
    default recipe's."""
    from zoo.config import compose, load
    from zoo.run_directory import RunDirectory, newest_run

    try:
        return load(RunDirectory(newest_run(method)).config).values["data"]["class"]
    except command.UsageError:
        return compose(method, command.DEFAULT_RECIPE, allow_missing=True).values["data"]["class"]


def _chosen(argv: list[str]) -> tuple[Path | None, str]:
    """`--checkpoint` and `--method`, before the other options are known."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--checkpoint", type=Path)
    finder.add_argument("--method", default="")
    try:
        found = finder.parse_known_args(argv)[0]
    except argparse.ArgumentError:
        return None, ""
    return found.checkpoint, found.method


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m zoo.predict",
        description=DESCRIPTION,
        epilog=command.EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    trained = parser.add_mutually_exclusive_group(required=True)
    trained.add_argument("--checkpoint", type=Path, metavar="RUN", help="a run's folder, or a checkpoint in one")
    known = ", ".join(command.methods())
    trained.add_argument("--method", metavar="NAME", help=f"take its newest finished run in runs/; one of: {known}")
    add("--output", type=Path, required=True, metavar="DIR", help="where report.json and report.html go")
    add("--show", action="store_true", help="print the report's text as well")
    add("settings", nargs="*", metavar="key=value", help="settings that differ from the run's, e.g. model.llm=/weights")
    return parser


def _report(
    config: Config, run: RunDirectory, checkpoint: Path, given: dict[str, Any], arguments: argparse.Namespace
) -> None:
    from zoo.one_report import Incomplete, ask, silent_regions, write_report
    from zoo.registry.load import build_model
    from zoo.trainer import quiet, seed_everything

    quiet()
    seed_everything(config.values["run"]["seed"])
    try:
        with _steps(*STEPS) as step:
            step()
            data = config.build("data")
            study = data.study_from_files(**given)
            step()
            model = build_model(config)
            step()
            ((report, heatmaps),) = ask(config, model, checkpoint, [study])
            if not report.text.strip():
                raise Incomplete("asked for one report, the model gave an empty report")
            step()
            page = write_report(arguments.output, config, run, checkpoint, data.regions, study, report, heatmaps)
    except Incomplete as error:
        _fail(str(error))
    command.say(f"written: {page.with_suffix('.json')} and {page}")
    if arguments.show:
        print(report.text)
    if silent := silent_regions(study, report):
        _fail(f"the report says nothing about {len(silent)} regions shown: {', '.join(silent)}")


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(1)


@contextmanager
def _steps(*names: str) -> Iterator[Any]:
    """A progress bar with a name for each step; yields what is called as each begins."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(names[0], total=len(names))
        begun = iter(range(len(names)))

        def step() -> None:
            at = next(begun)
            progress.update(task, completed=at, description=names[at], refresh=True)

        yield step
        progress.update(task, completed=len(names), description="done")


if __name__ == "__main__":
    sys.exit(main())
