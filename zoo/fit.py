"""`python -m zoo.fit`: trains a method on a dataset, tests its checkpoint and writes the run's folder."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zoo import command, processes

if TYPE_CHECKING:
    import lightning as L

    from datamodules.report_datamodule import ReportDataModule
    from lit_modules.report_generator import ReportGenerator
    from zoo.config import Config
    from zoo.run_directory import RunDirectory

DESCRIPTION = """\
Trains a method, tests the checkpoint that run.evaluate names, and leaves in runs/<method>-<recipe>-<time>/:
config.yaml, provenance.json, metrics.csv, metrics.json, predictions.jsonl, gallery.html, checkpoints/{best,last} to go
on from, and checkpoints/tested.safetensors, the tested weights alone, where they take at most 1 GiB. With
trainer.max_epochs=0 nothing is trained: the model is tested as it is built, and there are no checkpoints."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return command.run(lambda: fit(_parse(sys.argv[1:] if argv is None else argv)), command.RESUME)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = command.parser("fit", DESCRIPTION)
    parser.add_argument(
        "--resume", metavar="auto|PATH", help="go on with the newest such run, or with this run or checkpoint"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything without memory, print settings, sizes and what is missing (✗); "
        "exits 0 when the settings are valid, whatever is missing",
    )
    instead.add_argument(
        "--slurm", type=Path, metavar="FILE", help="write the file that gives this fit to SLURM (docs/many_gpus.md)"
    )
    if {"-h", "--help"} & set(argv):
        command.print_recipe_of(argv)
    return parser.parse_intermixed_args(argv)


def fit(arguments: argparse.Namespace) -> None:
    """Composes the configuration, then dry-runs it, writes it down for SLURM, or fits it."""
    config = command.configuration(arguments, resume=arguments.resume, allow_missing=arguments.dry_run)
    from zoo.trainer import quiet

    quiet()
    if arguments.dry_run:
        from zoo.dry_run import dry_run

        dry_run(config)
        return
    if arguments.slurm:
        from zoo.slurm import write_job

        write_job(arguments.slurm, config, arguments)
        return
    _fit(config, arguments.resume)


def _fit(config: Config, resume: str | None) -> None:
    from zoo.run_directory import RunDirectory
    from zoo.trainer import build_trainer, effective_batch, model_and_data

    model, data = model_and_data(config)
    folder, checkpoint = processes.agreed(lambda: _begin(config, resume))
    run = RunDirectory(Path(folder))
    command.say(f"run folder {run.path}; effective batch {effective_batch(config)}")
    trainer = build_trainer(config, run, [config.build("metrics")])
    with processes.ending_together(trainer):
        if config.untrained:
            command.say("trainer.max_epochs=0: nothing is trained, the model is tested as it is built")
        else:
            trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        _finish(trainer, model, data, config, run)


def _begin(config: Config, resume: str | None) -> tuple[str, str | None]:
    """The run's folder, a new one where nothing is resumed, and the checkpoint to go on from."""
    from zoo.run_directory import RunDirectory, find_run, layout_changes

    found = find_run(resume, config) if resume else None
    if found is None:
        if resume:
            command.say("nothing to resume: a new run begins")
        return str(RunDirectory.create(config).path), None
    changes = layout_changes(found[0], config)
    command.say(f"resuming {found[1]}" + (f", spread anew: {changes}" if changes else ""))
    return str(found[0].path), str(found[1])


def _finish(
    trainer: L.Trainer, model: ReportGenerator, data: ReportDataModule, config: Config, run: RunDirectory
) -> None:
    """Tests the chosen checkpoint, or the model as it is built, and shows what came out."""
    from zoo.gallery import write_gallery
    from zoo.loggers import close, log_text
    from zoo.metrics.table import show
    from zoo.trainer import checkpoint_to_test, write_tested

    chosen = None
    if not config.untrained:  # only the first process is sure to see the run's folder
        found = str(checkpoint_to_test(run, config.values["run"]["evaluate"])) if trainer.is_global_zero else ""
        chosen = trainer.strategy.broadcast(found)
    trainer.test(model, data, ckpt_path=chosen, weights_only=True, verbose=False)
    if not trainer.is_global_zero:
        return
    if config.values["log"]["text"]:
        log_text(trainer.loggers, run.predictions)
    close(trainer.loggers)
    model.eval().to(trainer.strategy.root_device)  # the Trainer gives it back in training mode, without a device
    write_gallery(run.path, data, model.explain)
    show(json.loads(run.metrics.read_text(encoding="utf-8")))
    if chosen is not None:
        command.say(f"weights     {write_tested(run, Path(chosen), config)}")
    command.say(f"predictions {run.predictions}\ngallery     {run.gallery}\nmetrics     {run.metrics}")


if __name__ == "__main__":
    sys.exit(main())
