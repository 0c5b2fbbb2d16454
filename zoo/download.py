"""`python -m zoo.download`: brings published weights, checks them, and rewrites them as safetensors where needed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import command

if TYPE_CHECKING:
    from zoo.registry.fetch import Progress
    from zoo.registry.manifest import Entry

DESCRIPTION = """\
Brings what checkpoints/manifest.yaml names to where recipes look for it: the hub's cache, or weights/. An interrupted
download is gone on with. Every file is checked against its published sum while it streams, pickles that hold code are
thrown away, and the authors' trained models are rewritten as safetensors.

For a machine without a network: `--to FOLDER` where there is one, carry FOLDER over, `--from FOLDER` there.
HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE are the hub client's own and hold here too."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return command.run(lambda: download(sys.argv[1:] if argv is None else argv), "the same command goes on")


def download(argv: list[str]) -> None:
    """Brings each entry that is named, and says where it lies and how it is used."""
    parser = argparse.ArgumentParser(
        prog="python -m zoo.download",
        description=DESCRIPTION,
        epilog=command.EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of the registry, e.g. reg2rg@authors")
    parser.add_argument("--list", action="store_true", help="print all names, with size, licence and gate")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="put the files there")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FOLDER", help="take them from there, ask no server"
    )
    parser.add_argument(
        "--mirror", action="append", default=[], metavar="URL", help="ask this hub, or folder, first; may be repeated"
    )
    arguments = parser.parse_args(argv)
    if not arguments.list and not arguments.names:
        parser.error("which? Give a NAME, or --list")
    if arguments.list:
        _print_table()
    from zoo.registry.manifest import find

    for entry in [find(name) for name in arguments.names]:
        _bring(entry, arguments)


def _bring(entry: Entry, arguments: argparse.Namespace) -> None:
    from zoo.registry import hub
    from zoo.registry.convert import convert
    from zoo.registry.fetch import WEIGHTS, fetch

    command.say(f"{entry.name}: {entry.what}. Licence: {entry.licence}")
    root = arguments.to or WEIGHTS
    if entry.converted_to and (root / entry.converted_to).is_file() and not (root / entry.name).exists():
        command.say(f"  is {root / entry.converted_to} already; what it was made of is gone, and not needed")
        return
    with _bars() as progress:
        found = fetch(entry, progress, arguments.to, arguments.source, arguments.mirror)
    for name in found.unknown:
        command.say(f"  {name}: no sum is published to compare with; its sha256 is {found.sums[name]}")
    path = next(iter(found.files.values()))
    if entry.convert:
        command.say("  rewriting it as safetensors …")
        path = convert(entry, path, next(iter(found.sums.values())), found.commit, root)
    command.say(f"  {'lies in' if len(found.files) > 1 and not entry.convert else 'is'} "
                f"{path.parent if len(found.files) > 1 and not entry.convert else path}")  # fmt: skip
    if entry.method:
        command.say(f"  zoo.load({entry.name!r}), or: python -m zoo.fit --method {entry.method} "
                    f"--recipe {entry.recipe} model.init_from={entry.name}")  # fmt: skip
    in_cache = entry.place == "cache" and arguments.to is None and arguments.source is None
    if in_cache and (other := hub.other_commit(entry, found.commit)):
        command.say(f"  note: the cache gives commit {other} for the id alone, this one is {found.commit}")
    for name in entry.needs:
        command.say(f"  needed beside it: python -m zoo.download {name}")


def _print_table() -> None:
    from rich.console import Console
    from rich.table import Table

    from zoo.registry.manifest import registry

    table = Table("name", "what", "size", "licence", "accept first", box=None, pad_edge=False)
    for entry in registry().values():
        size, whole = entry.size
        amount = f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"
        shown = amount if whole else f"> {amount}" if size > 1e6 else "?"
        table.add_row(entry.name, entry.what, shown, entry.licence, entry.gate or "-")
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@contextmanager
def _bars() -> Iterator[Progress]:
    """A bar for each file."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns: Any = (TextColumn("  {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
                    TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def begin(name: str) -> Any:
            task = bars.add_task(name, total=None)
            return lambda there, total: bars.update(task, completed=there, total=total)

        yield begin


if __name__ == "__main__":
    sys.exit(main())
