"""Shows, extends, checks and compares the figures: `python -m zoo.leaderboard [--dataset D] [--format html] …`."""

from __future__ import annotations

import argparse
import difflib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.command import EXIT_CODES, UsageError, run

if TYPE_CHECKING:
    from zoo.leaderboard.board import Row

OWN = Path("leaderboard")  # where submissions are put, and looked for, in the current directory
FORMATS = ("text", "markdown", "csv", "html")
STATUSES = ("reported", "recomputed", "reproduced")
FILTERS = ("dataset", "protocol", "status", "method")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m zoo.leaderboard",
        description="Published and measured figures. A table holds one dataset, split, protocol and version.",
        epilog=f"{EXIT_CODES}; 3 also where --check, --verify or --readme --check find a difference",
        allow_abbrev=False,
    )
    which = result.add_argument_group("which rows (with --add: what the run does not say)")
    which.add_argument("--dataset", metavar="D", help="of this dataset")
    which.add_argument("--protocol", metavar="P", help="scored by this protocol: its id, or id@version")
    which.add_argument("--method", metavar="M", help="of methods whose name holds this")
    which.add_argument("--status", choices=STATUSES, help="printed in a paper, recomputed from predictions, run here")
    which.add_argument(
        "--phantom", action=argparse.BooleanOptionalAction, help="only, or without, the phantom's figures"
    )
    which.add_argument("--data", metavar="FOLDER", type=Path, action="append", default=[],
                       help=f"further submissions; ./{OWN} is read where it is there")  # fmt: skip
    how = result.add_argument_group("how to show them")
    how.add_argument("--format", choices=FORMATS, default="text", help="default: %(default)s")
    how.add_argument("--output", metavar="FILE", type=Path, help="write into this file, not on the screen")
    how.add_argument("--metric", "--metrics", dest="metrics", metavar="KEY", nargs="+", help="of --plot and --compare")
    how.add_argument("--plot", metavar="FILE", type=Path, help="draw one metric of the rows, or of what is compared")
    do = result.add_argument_group("what else to do").add_mutually_exclusive_group()
    do.add_argument("--add", metavar="RUN", type=Path, help="make a submission of a run's folder; or of a predictions "
                    "file, with --method, --dataset, --split and --protocol")  # fmt: skip
    do.add_argument("--verify", metavar="PATH", type=Path, nargs="+", help="recompute printed figures from released "
                    "predictions: files, or folders that hold them")  # fmt: skip
    do.add_argument("--compare", metavar="SYSTEM", nargs="+", help="intervals and paired tests of runs, submissions, "
                    "per-study tables or predictions files against the first; commas join a system's runs")  # fmt: skip
    do.add_argument("--readme", metavar="FILE", type=Path, help="write the tables between a file's leaderboard marks")
    more = result.add_argument_group("with these")
    more.add_argument("--check", metavar="SUBMISSION", type=Path, nargs="*", help="recompute submissions from their "
                      "own numbers (default: all there are); with --readme: only say whether it is right")  # fmt: skip
    more.add_argument("--common", action="store_true", help="with --compare: only the studies that all systems have")
    more.add_argument("--split", metavar="S", help="of the predictions file that --add takes")
    more.add_argument("--subset", metavar="S", help="what that file speaks of, if not of whole reports: a region")
    more.add_argument("--name", help="of the submission that --add makes")
    more.add_argument(
        "--to", metavar="FOLDER", type=Path, default=OWN, help="where --add puts it (default: ./%(default)s)"
    )
    more.add_argument("--json", metavar="FILE", type=Path, help="write what --compare or --verify found")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return run(lambda: _main(parser().parse_args(argv)))


def _main(options: argparse.Namespace) -> None:
    if options.add:
        _add(options)
    elif options.compare:
        _compare(options)
    elif options.verify:
        _verify(options)
    elif options.readme:
        _readme(options)
    elif options.check is not None:
        _check(options)
    else:
        _show(options)


def _board(options: argparse.Namespace) -> list[Row]:
    from zoo.leaderboard.board import load_board

    return load_board([*options.data, *([OWN] if OWN.is_dir() else [])])


def _chosen(options: argparse.Namespace) -> list[Row]:
    """The rows that agree with the filters."""
    from zoo.leaderboard.board import select

    rows = _board(options)
    for name in FILTERS:
        wanted = getattr(options, name)
        found = list(select(rows, **{name: wanted}))
        if not found:
            there = sorted({str(getattr(row, name)) for row in rows})
            near = difflib.get_close_matches(wanted.casefold(), [value.casefold() for value in there], 1, 0.5)
            meant = next((f"; did you mean {value!r}?" for value in there if [value.casefold()] == near), "")
            raise UsageError(f"--{name} {wanted}: no such row{meant} There is: {', '.join(there)}")
        rows = found
    if options.phantom is not None:
        rows = list(select(rows, phantom=options.phantom))
    if not rows:
        raise UsageError(f"no such row is {'' if options.phantom else 'not '}of the phantom")
    return rows


def _show(options: argparse.Namespace) -> None:
    from rich.console import Console

    from zoo.leaderboard import render

    rows = _chosen(options)
    if options.plot:
        from zoo.leaderboard.draw import draw_board

        if not options.metrics or len(options.metrics) != 1:
            raise UsageError("--plot draws one metric: name it with --metric")
        draw_board(rows, options.metrics[0], options.plot)
        print(options.plot)
        return
    if options.format == "text":
        file = None if options.output is None else io.StringIO()
        render.show(rows, Console() if file is None else Console(file=file, width=120))
        text = "" if file is None else file.getvalue()
    elif options.format == "html":
        from zoo.leaderboard.page import document

        text = document(rows)
    else:
        text = render.markdown(rows) if options.format == "markdown" else render.csv_text(rows)
    _write(options.output, text)


def _write(path: Path | None, text: str) -> None:
    if path is None:
        print(text, end="")
        return
    from zoo.run_directory import atomic_write

    atomic_write(path, text)
    print(path)


def _add(options: argparse.Namespace) -> None:
    from zoo.leaderboard.submission import add_predictions, add_run

    said = {
        key: getattr(options, key) for key in ("method", "dataset", "split", "subset", "protocol", "status", "phantom")
    }
    if options.add.is_dir():
        fixed = [f"--{key}" for key in ("subset", "protocol", "status", "phantom") if said[key] is not None]
        if fixed:
            raise UsageError(f"{options.add} is a run, which says itself what {', '.join(fixed)} would; leave it out")
        print(add_run(options.add, options.to, options.name, **said))
    elif options.add.is_file():
        print(add_predictions(options.add, options.to, options.name, **said))
    else:
        raise UsageError(f"{options.add}: there is no such run folder or predictions file")


def _check(options: argparse.Namespace) -> None:
    from zoo.leaderboard.board import submission_folders
    from zoo.leaderboard.check import check

    folders = options.check or submission_folders([*options.data, *([OWN] if OWN.is_dir() else [])])
    differing = 0
    for folder in folders:
        faults, stated = check(folder)
        differing += bool(faults)
        print(f"{folder}: {f'{len(faults)} differences' if faults else 'agrees with its per_study.csv'}")
        for fault in faults:
            print(f"  {fault}")
        if stated and not faults:
            print(f"  taken as stated, not in per_study.csv: {', '.join(stated)}")
    print(f"{len(folders) - differing} of {len(folders)} submissions agree with themselves")
    if differing:
        sys.exit(3)


def _verify(options: argparse.Namespace) -> None:
    from rich.console import Console

    from zoo.leaderboard.verify import show, verify

    console = Console()
    found = verify(_chosen(options), options.verify, console)
    show(found, console)
    if options.json:
        _write(options.json, found.as_json())
    if not found.all_equal:
        sys.exit(3)


def _compare(options: argparse.Namespace) -> None:
    from zoo.leaderboard.compare import compare, show
    from zoo.leaderboard.systems import load_systems

    systems = load_systems(options.compare, options.protocol)
    sets = options.metrics if not options.plot else [key for key in options.metrics or () if not _is_label_set(key)]
    found = compare(systems, sets or None, common=options.common)
    show(found)
    if options.json:
        _write(options.json, found.as_json())
    if options.plot:
        from zoo.leaderboard.draw import draw_comparison

        draw_comparison(systems, found, options.metrics[0] if options.metrics else None, options.plot)
        print(options.plot)


def _is_label_set(name: str) -> bool:
    from zoo.metrics.protocols import PROTOCOLS

    metrics = [metric for protocol in PROTOCOLS.values() for metric in protocol.metrics.values()]
    return any(metric.corpus is not None and metric.corpus.labels and metric.corpus.name == name for metric in metrics)


def _readme(options: argparse.Namespace) -> None:
    from zoo.leaderboard.readme import update_readme

    only_check = options.check is not None
    differs = update_readme(options.readme, _board(options), only_check)
    if only_check and differs:
        print(
            f"{options.readme} is not what the data say; write it: {parser().prog} --readme {options.readme}",
            file=sys.stderr,
        )
        sys.exit(3)
    print(f"{options.readme}: {'written anew' if differs else 'up to date'}")


if __name__ == "__main__":
    sys.exit(main())
