"""`python -m zoo.prepare`: draws the phantom where the recipe asks for one, and builds the store of ready crops."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from zoo import command

DESCRIPTION = """\
Does ahead of time what a fit would do first: draws the phantom, and stores for every study exactly what the model
reads. Interrupted, it goes on where it stopped.

With --verify it prepares nothing, but opens every file of a dataset and says what is wrong with it: counts against the
published ones, files that cannot be read, patients in two splits, files of the same content."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return command.run(lambda: prepare(arguments), "the same command goes on")


def prepare(argv: list[str]) -> None:
    """Composes the configuration and prepares its data, or verifies a dataset."""
    parser = command.parser("prepare", DESCRIPTION)
    parser.add_argument(
        "--verify",
        metavar="DATASET",
        help="check a dataset instead: a file of datamodules/ such as mimic_cxr, with its settings, data.root=… first",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="what --verify finds (<data.root>/verify.json)")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.verify:
        verify_dataset(arguments)
        return
    if arguments.output:
        raise command.UsageError("--output belongs to --verify DATASET")
    config = command.configuration(arguments)
    from datamodules.study import DataFault
    from zoo.trainer import data_needs, quiet, require

    quiet()
    model, data = config.build("model"), config.build("data")
    require(data_needs(data), DataFault)
    data.preprocessor = model.preprocessor()
    data.prepare_data()
    counts = ", ".join(f"{len(data.studies(split))} {split}" for split in data.splits)
    store = data.open_store()
    command.say(f"ready: {counts} studies{f'; store {store.folder}' if store else ''}")


def verify_dataset(arguments: argparse.Namespace) -> None:
    """Verifies a dataset, prints a table and writes a JSON file: ids and file names, no report's text.

    Raises:
        DataFault: Something was found that must be repaired.
        command.EnvironmentFault: The JSON file cannot be written.
    """
    if arguments.method or arguments.recipe or arguments.ablations or arguments.config:
        raise command.UsageError("--verify names a dataset: leave out --method, --recipe, --with and --config")
    from datamodules.files import put
    from datamodules.study import DataFault
    from zoo import verify_data

    data = verify_data.build(arguments.verify, arguments.settings)
    if data.phantom:
        data.draw_phantom(data.phantom, max(4, data.phantom // 4))
    if not data.root.is_dir():
        raise DataFault(f"{data.root}: no such folder; set data.root to the dataset's folder")
    output: Path = arguments.output or data.root / "verify.json"
    if not os.access(output.absolute().parent, os.W_OK):
        raise command.EnvironmentFault(f"{output}: cannot be written; name another file with --output FILE")
    found = verify_data.verify(data)
    head = {"dataset": arguments.verify, "root": str(data.root), "phantom": data.is_phantom()}
    put(output, (json.dumps(head | found.plain(), indent=1, ensure_ascii=False) + "\n").encode())
    verify_data.show(found)
    command.say(f"all that was found: {output}")
    if found.problems:
        raise DataFault(f"{data.root}: to be repaired: {'; '.join(found.problems)}")


if __name__ == "__main__":
    sys.exit(main())
