"""A run's folder: atomic writes, whole checkpoints, and which run --resume means."""

import os
from pathlib import Path

import pytest

from zoo import run_directory
from zoo.command import EnvironmentFault, UsageError
from zoo.config import compose
from zoo.run_directory import RunDirectory, atomic_write, find_run


def made(config, *checkpoints):
    run = RunDirectory.create(config)
    for name in checkpoints:
        atomic_write(run.path / "checkpoints" / f"{name}.ckpt", b"weights")
    return run


def test_a_write_that_fails_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    atomic_write(path, "old")
    monkeypatch.setattr(
        run_directory.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(EnvironmentFault, match="file.json: No space left"):
        atomic_write(path, "new")
    assert path.read_text() == "old"


def test_a_folder_that_cannot_be_written_is_an_environment_fault(toy):
    Path("file").touch()
    with pytest.raises(EnvironmentFault, match="cannot make a run folder in file/runs"):
        RunDirectory.create(compose("toy", "phantom", (), ["run.folder=file/runs"]))


def test_two_runs_of_one_second_have_two_folders(toy):
    config = compose("toy", "phantom")
    first, second = RunDirectory.create(config), RunDirectory.create(config)
    assert first.path != second.path
    assert first.path.name.startswith("toy-phantom-")
    assert first.config.read_text() == config.yaml()


def test_auto_finds_the_newest_run_of_the_same_kind_with_a_whole_checkpoint(toy):
    config = compose("toy", "phantom")
    assert find_run("auto", config) is None
    old, new, empty = made(config, "last"), made(config, "best", "last"), made(config)
    other = made(compose("toy", "phantom", ["wide"]), "last")
    paper = made(compose("toy", "paper", (), ["data.root=x"]), "last")
    for age, run in enumerate((paper, other, empty, new, old)):
        os.utime(run.config, (1e9 - age, 1e9 - age))
    run, checkpoint = find_run("auto", config)
    assert run.path == new.path
    assert checkpoint == new.last


def test_a_half_written_file_is_no_checkpoint(toy):
    run = made(compose("toy", "phantom"), "best")
    run.last.with_name("last.ckpt.partial").write_bytes(b"half")
    assert run.resumable() == run.best
    with pytest.raises(UsageError, match="no whole checkpoint"):
        find_run(str(made(compose("toy", "phantom")).path), compose("toy", "phantom"))


def test_other_settings_are_refused_by_name_and_harmless_ones_allowed(toy):
    run = made(compose("toy", "phantom"), "last")
    changed = compose("toy", "phantom", (), ["model.lr=0.5", "data.seed=3", "trainer.max_epochs=9"])
    with pytest.raises(UsageError) as caught:
        find_run(str(run.path), changed)
    assert "model.lr: 0.005 in the run, 0.5 now" in str(caught.value)
    assert "data.seed: 0 in the run, 3 now" in str(caught.value)
    assert "max_epochs" not in str(caught.value)
    harmless = [
        "trainer.max_epochs=9",
        "log.wandb=offline",
        "data.num_workers=2",
        "trainer.devices=2",
        "trainer.strategy=zero2",
        "data.root=moved",
    ]
    found, checkpoint = find_run(str(run.last), compose("toy", "phantom", (), harmless))
    assert (found.path.resolve(), checkpoint) == (run.path.resolve(), run.last)


def test_weights_without_optimizer_are_not_resumed(toy):
    run = made(compose("toy", "phantom"), "last")
    run.tested.touch()
    with pytest.raises(UsageError, match=f"holds weights alone, no optimizer; resume with {run.path.resolve()}"):
        find_run(str(run.tested), compose("toy", "phantom"))


def test_a_path_that_is_no_run_is_explained(toy):
    with pytest.raises(UsageError, match="no such run folder or checkpoint"):
        find_run("nowhere", compose("toy", "phantom"))
    Path("a/b").mkdir(parents=True)
    Path("a/b/stray.ckpt").touch()
    with pytest.raises(UsageError, match="no run folder"):
        find_run("a/b/stray.ckpt", compose("toy", "phantom"))
