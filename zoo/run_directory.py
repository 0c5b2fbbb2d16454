"""A run's folder: its files, atomic writes, and which of its checkpoints are whole."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from datamodules.study import DataFault
from zoo.command import EnvironmentFault, UsageError, methods
from zoo.config import Config, choose, load
from zoo.layers import read_layer

# A resumed run may differ from what it was in these settings; in any other it would be another experiment.
MAY_DIFFER = ("trainer.max_epochs", "trainer.max_time", "trainer.enable_progress_bar", "trainer.enable_model_summary",
              "trainer.log_every_n_steps", "trainer.profiler", "data.root", "data.store", "data.num_workers",
              "data.eval_batch_size", "run.folder", "run.evaluate",
              "run.checkpoint_every", "log", "metrics")  # fmt: skip
# How the same training is spread over devices: also free, and said.
LAYOUT = ("trainer.strategy", "trainer.devices", "trainer.num_nodes", "trainer.accelerator", "data.micro_batch_size")


def atomic_write(path: Path, content: bytes | str) -> None:
    """Writes a file so that a reader, or a crash, sees the old content or the new, never a part.

    Raises:
        EnvironmentFault: The folder cannot be written to.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise EnvironmentFault(f"cannot write {path}: {error.strerror}{remedy(error)}") from error


def remedy(error: OSError) -> str:
    """What to do about a file that could not be written, to be put behind the reason; empty where it is not known."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "; free some space"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "; make the folder writable"
    return "; its folder is gone" if error.errno == errno.ENOENT else ""


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RunDirectory:
    """`runs/<method>-<recipe>-<time>/`; a run that trained nothing (`trainer.max_epochs=0`) has no `checkpoints/`.

    Attributes:
        path: The folder.
        best: The checkpoint of the best validation, with the optimizer's state.
        last: The same of the last step, to resume from.
        tested: The weights that were tested, without the optimizer: what can be published.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.provenance = path / "provenance.json"
        self.metrics_csv = path / "metrics.csv"
        self.metrics = path / "metrics.json"
        self.per_study = path / "per_study.csv"
        self.predictions = path / "predictions.jsonl"
        self.gallery = path / "gallery.html"
        self.best = path / "checkpoints" / "best.ckpt"
        self.last = path / "checkpoints" / "last.ckpt"
        self.tested = path / "checkpoints" / "tested.safetensors"

    @classmethod
    def create(cls, config: Config) -> RunDirectory:
        """A new folder, with `config.yaml` in it."""
        stem = f"{config.method}-{config.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
        folder = Path(config.values["run"]["folder"])
        for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
            try:
                (folder / f"{stem}{suffix}").mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                advice = "set run.folder to one that can be written"
                raise EnvironmentFault(f"cannot make a run folder in {folder}: {error.strerror}; {advice}") from error
            run = cls(folder / f"{stem}{suffix}")
            atomic_write(run.config, config.yaml())
            return run
        raise EnvironmentFault(f"{folder} holds a thousand runs of this second")

    def checkpoint(self, name: str = "last") -> Path | None:
        """The checkpoint of that name; a file gets it only when it is wholly written."""
        place = self.path / "checkpoints" / f"{name}.ckpt"
        return place if place.is_file() else None

    def resumable(self) -> Path | None:
        """The checkpoint to go on from."""
        return self.checkpoint("last") or self.checkpoint("best")


def find_run(resume: str, config: Config) -> tuple[RunDirectory, Path] | None:
    """The run and the checkpoint that `--resume` means.

    Args:
        resume: `auto` for the newest run of the same method, recipe and ablations, a run's folder, or a checkpoint.

    Returns:
        `None` for `auto` where there is nothing to resume.

    Raises:
        UsageError: There is no whole checkpoint there, the configuration is not the run's, or it trains nothing.
    """
    if config.untrained and resume == "auto":
        return None
    if config.untrained:
        raise UsageError(f"{resume}: trainer.max_epochs=0 trains nothing, so nothing can go on; leave out --resume")
    found = next(_candidates(config), None) if resume == "auto" else _named(Path(resume))
    if found is not None:
        _compare(found[0], config)
    return found


def layout_changes(run: RunDirectory, config: Config) -> str:
    """What is spread over devices otherwise than when the run began, in words; empty where nothing is."""
    changed = config.differences(load(run.config).values)
    return ", ".join(f"{key} {there} → {here}" for key, (there, here) in changed.items() if key in LAYOUT)


def _candidates(config: Config) -> Iterator[tuple[RunDirectory, Path]]:
    folder = Path(config.values["run"]["folder"])
    for path in sorted(folder.glob(f"{config.method}-{config.recipe}-*/config.yaml"), key=lambda p: -p.stat().st_mtime):
        run = RunDirectory(path.parent)
        checkpoint = run.resumable()
        if checkpoint is not None and load(run.config).ablations == config.ablations:
            yield run, checkpoint


def run_of(path: Path) -> RunDirectory:
    """The run that a run folder, or a checkpoint in it, belongs to.

    Raises:
        UsageError: None does.
    """
    if not path.exists():
        raise UsageError(f"{path}: there is no such run folder or checkpoint")
    run = RunDirectory(path if (path / "config.yaml").is_file() else path.resolve().parent.parent)
    if not run.config.is_file():
        raise UsageError(f"{path} is no run folder, and no checkpoint in one (there is no {run.config})")
    return run


def _named(path: Path) -> tuple[RunDirectory, Path]:
    run = run_of(path)
    checkpoint = run.resumable() if run.path == path else path
    if checkpoint is not None and checkpoint.name == run.tested.name:
        raise UsageError(f"{path} holds weights alone, no optimizer; resume with {run.path}")
    if checkpoint is None or not checkpoint.is_file():
        raise UsageError(f"{path}: no whole checkpoint there; begin the run anew, without --resume")
    return run, checkpoint


def _compare(run: RunDirectory, config: Config) -> None:
    changed = config.differences(load(run.config).values)
    allowed = MAY_DIFFER + LAYOUT
    refused = {key: pair for key, pair in changed.items() if key not in allowed and key.split(".")[0] not in allowed}
    if refused:
        lines = "".join(f"\n       {key}: {there!r} in the run, {here!r} now" for key, (there, here) in refused.items())
        raise UsageError(f"{run.path} was made with other settings; resume it with its own, or start a new run:{lines}")


def tested_checkpoint(place: Path) -> tuple[RunDirectory, Path]:
    """The run and the checkpoint that `--checkpoint` means: a run's folder (the one it tested), or a checkpoint in one.

    Raises:
        DataFault: There is none.
    """
    if not place.exists():
        raise DataFault(f"{place}: there is no such run folder or checkpoint")
    is_run = (place / "config.yaml").is_file()
    run = RunDirectory(place if is_run else place.resolve().parent.parent)
    if not run.config.is_file():
        raise DataFault(f"{place}: not a run folder nor a checkpoint inside one (no {run.config})")
    config = load(run.config)
    checkpoint = run.checkpoint(config.values["run"]["evaluate"]) or run.checkpoint("last") if is_run else place
    if checkpoint is None and config.untrained:
        raise DataFault(f"{place}: trainer.max_epochs=0 trained nothing there, so there is no checkpoint; train a run")
    if checkpoint is None or not checkpoint.is_file():
        raise DataFault(f"{place}: no whole checkpoint there; let zoo.fit finish an epoch first")
    return run, checkpoint


def newest_run(method: str, folder: Path = Path("runs")) -> Path:
    """The folder of the method's run that was finished last: it has figures and a checkpoint.

    Raises:
        UsageError: There is no such method, or no finished run of it.
    """
    choose("method", method, methods())
    runs = [RunDirectory(path.parent) for path in folder.glob(f"{method}-*/config.yaml")]
    finished = [run for run in runs if run.metrics.is_file() and run.resumable()]
    for run in sorted(finished, key=lambda run: run.metrics.stat().st_mtime, reverse=True):
        if read_layer(run.config).method == method:  # and not of another method whose name begins alike
            return run.path
    advice = f"train one: python -m zoo.fit --method {method}, or give --checkpoint"
    raise UsageError(f"{folder}/ has no finished run of {method}; {advice}")
