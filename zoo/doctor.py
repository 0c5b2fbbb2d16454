"""`python -m zoo.doctor`: whether this machine, and what is installed on it, can do what the zoo asks of them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from zoo import command
from zoo.machine import Line, caches, disks, hardware, java, software

if TYPE_CHECKING:
    from zoo.config import Config

DESCRIPTION = """\
Says what is here and what is not: versions, GPUs, memory, disk, Java, caches; with --method, also what its recipe
needs. Asks nothing of the network. Exits 0 unless something is broken or, with --method, missing: then 4."""

MARKS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "problem": "[red]✗[/]"}


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return command.run(lambda: doctor(sys.argv[1:] if argv is None else argv))


def doctor(argv: list[str]) -> None:
    """Looks at everything and prints it.

    Raises:
        command.EnvironmentFault: There is a problem.
    """
    parser = command.parser("doctor", DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    arguments = parser.parse_intermixed_args(argv)
    with redirect_stdout(sys.stderr) if arguments.json else nullcontext():  # nothing but JSON on the way out
        config = _configuration(arguments)
        lines = [*software(), *hardware(), java(), *caches(), *disks(*_places(config))]
        if config:
            lines += recipe(config)
    problems = sum(line.state == "problem" for line in lines)
    if arguments.json:
        print(json.dumps({"ok": not problems, "lines": [asdict(line) for line in lines]}, indent=1, ensure_ascii=False))
    else:
        show(lines)
    if problems:
        raise command.EnvironmentFault(f"{problems} problem{'s' if problems > 1 else ''}, each with what to do: see ✗")


def _configuration(arguments: argparse.Namespace) -> Config | None:
    """The recipe that was asked about, if one was."""
    if arguments.method or arguments.config:
        return command.configuration(arguments, allow_missing=True)
    if arguments.recipe or arguments.ablations or arguments.settings:
        raise command.UsageError("--recipe, --with and settings belong to a method: name it with --method")
    return None


def _places(config: Config | None) -> tuple[Path, Path | None]:
    """The folder of runs, and that of the data where it is given."""
    if config is None:
        return Path("runs"), None
    root = config.values["data"].get("root")
    return Path(config.values["run"]["folder"]), None if root in (None, "???") else Path(root)


def show(lines: list[Line]) -> None:
    """Prints the table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    for line in lines:
        to_do = f"\n→ {line.do}" if line.do else ""
        table.add_row(MARKS[line.state], escape(line.what), escape(f"{line.found}{to_do}"))
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)


def recipe(config: Config) -> Iterator[Line]:
    """What a method's recipe needs, as `zoo.fit --dry-run` lists it."""
    import torch

    from zoo.dry_run import estimate, memory_needs
    from zoo.trainer import data_needs, device_needs, effective_batch, quiet

    quiet()
    model, data = config.build("model"), config.build("data")
    needs = [*data_needs(data), *model.requirements(), *device_needs(config)]
    if config.values["trainer"]["accelerator"] == "gpu":
        with torch.device("meta"):
            model.configure_model()
        needs += memory_needs(config, estimate(model, config, effective_batch(config)))
    for need in needs:
        yield Line(f"{config.method}: {need.what}", "there" if need.met else "missing", "ok" if need.met else "problem",
                   need.how)  # fmt: skip
    for key in config.missing:
        if not any(key in need.how for need in needs):
            yield Line(f"{config.method}: {key}", "not given", "problem", f"give {key}=…")
    if not needs and not config.missing:
        yield Line(f"{config.method}, {config.recipe}", "needs nothing but this machine")


if __name__ == "__main__":
    sys.exit(main())
