"""`python -m zoo.prepare`: draws the phantom where the recipe asks for one, and builds the store of ready crops."""

from __future__ import annotations

import sys

from zoo import command

DESCRIPTION = """\
Does ahead of time what a fit would do first: draws the phantom, and stores for every study exactly what the model
reads. Interrupted, it goes on where it stopped."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return command.run(lambda: prepare(arguments))


def prepare(argv: list[str]) -> None:
    """Composes the configuration and prepares its data."""
    config = command.configuration(command.parser("prepare", DESCRIPTION).parse_intermixed_args(argv))
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


if __name__ == "__main__":
    sys.exit(main())
