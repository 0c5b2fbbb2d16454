"""Disks that are full, read-only or gone: one line, exit code 4, and what was written before is whole."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import zoo.callbacks.clinical_efficacy
import zoo.gallery
from datamodules.candid_ptx import CandidPTX
from datamodules.phantom import candid_layout
from tests.zoo.disks import fill, in_child, in_child_on_small_disk, needs_mounts, read_only
from tests.zoo.toy import ToyGenerator, ToyPreprocessor, fit
from zoo import command, export
from zoo.fit import main

DISK = Path("disk")


def run_of(folder):
    (run,) = folder.glob("*/config.yaml")
    return run.parent


def step_of(checkpoint):
    return torch.load(checkpoint, weights_only=True)["global_step"]


def filled_at(call, owner, name):
    """A patch: the disk is full from the `call`th call on."""
    original, calls = getattr(owner, name), []

    def function(*arguments, **named):
        calls.append(1)
        if len(calls) == call:
            fill(DISK)
        return original(*arguments, **named)

    return owner, name, function


@needs_mounts
@pytest.mark.parametrize(
    ("patch", "unwritten", "whole"),
    [
        ((7, ToyGenerator, "training_step"), "best.ckpt", {"metrics.csv"}),  # in the second epoch
        ((1, ToyGenerator, "test_step"), "predictions.jsonl", {"metrics.csv"}),
        ((1, zoo.callbacks.clinical_efficacy, "table_of"), "per_study.csv", {"predictions.jsonl"}),
        ((1, zoo.gallery, "write_gallery"), "gallery.html", {"predictions.jsonl", "per_study.csv", "metrics.json"}),
    ],
)
def test_a_full_disk_ends_a_run_and_what_was_written_is_whole(toy, capfd, patch, unwritten, whole):
    def body():
        setattr(*filled_at(*patch))
        return main(["--method", "toy", "trainer.max_epochs=2", "run.folder=disk"])

    assert in_child_on_small_disk(DISK, body, "300k") == 4
    error = capfd.readouterr().err.strip()
    assert error.startswith("error: cannot write ")
    assert error.count("\n") == 0
    assert f"{unwritten}: No space left on device; free some space" in error
    run = run_of(toy / "disk.left")
    files = {path.name for path in run.rglob("*") if path.is_file()}
    assert whole <= files
    assert {"best.ckpt", "last.ckpt", "provenance.json", "config.yaml"} <= files
    assert not [name for name in files if name.endswith(".partial")]
    if unwritten == "best.ckpt":
        assert "the one before is kept" in error
        assert step_of(run / "checkpoints" / "best.ckpt") == step_of(run / "checkpoints" / "last.ckpt") == 3
    for name in whole & {"predictions.jsonl"}:
        assert len((run / name).read_text().splitlines()) == 4
    # Goes on from there, once there is room.
    shutil.move(run, toy / "runs" / run.name)
    assert fit("--resume", str(toy / "runs" / run.name)) == 0
    assert (toy / "runs" / run.name / "checkpoints" / "tested.safetensors").is_file()
    record = json.loads((toy / "runs" / run.name / "provenance.json").read_text())
    assert record["status"] == "done"


def said_once(capfd):
    """The one line on stderr."""
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_row_of_metrics_csv_that_is_not_taken_ends_the_run(toy, capfd):
    original, calls = ToyGenerator.training_step, []

    def step(self, batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == 7:
            (path,) = toy.glob("runs/*/metrics.csv")
            path.rename(path.with_name("before.csv"))
            path.symlink_to("/dev/full")  # takes nothing
        return original(self, batch, batch_idx)

    assert fit(patch=(ToyGenerator, "training_step", step)) == 4
    assert "metrics.csv: No space left on device; free some space" in said_once(capfd)
    (last,) = toy.glob("runs/*/checkpoints/last.ckpt")
    assert step_of(last) == 3


@needs_mounts
def test_a_full_disk_ends_the_store_which_keeps_what_is_made(toy, capfd):
    assert fit("data.store=null", "trainer.max_epochs=1") == 0  # draws the phantom
    capfd.readouterr()

    def body():
        setattr(*filled_at(3, ToyPreprocessor, "arrays"))
        return main(["--method", "toy", "data.store=disk"])

    assert in_child_on_small_disk(DISK, body) == 4
    assert "the disk is full; what is done is kept; free some space or set data.store elsewhere" in said_once(capfd)
    assert len(list(Path("disk.left").glob("*/*.safetensors"))) == 2


@needs_mounts
def test_a_full_disk_ends_the_drawing_of_the_phantom(toy, capfd):
    def body():
        setattr(*filled_at(6, candid_layout, "put"))
        return command.run(lambda: CandidPTX("disk").draw_phantom(1, 1))

    assert in_child_on_small_disk(DISK, body) == 4
    assert re.match("error: disk/.+: No space left on device$", said_once(capfd))
    assert not [path for path in Path("disk.left").rglob(".*") if path.is_file()]  # cut short


@needs_mounts
def test_a_full_disk_leaves_no_part_of_an_export(toy, capfd):
    def body():
        assert main(["--method", "toy", "trainer.max_epochs=1", "run.folder=disk"]) == 0
        fill(DISK)
        return export.main([str(run_of(DISK))])

    assert in_child_on_small_disk(DISK, body) == 4
    assert "o space left on device" in capfd.readouterr().err.splitlines()[-1]  # behind the bar
    run = run_of(toy / "disk.left")
    assert (run / "checkpoints" / "tested.safetensors").is_file()
    assert not list(run.glob("export*"))


@needs_mounts
def test_a_folder_of_runs_that_is_read_only_is_said_before_anything_is_trained(toy, capfd):
    Path("runs").mkdir()

    def body():
        read_only(Path("runs"))
        return main(["--method", "toy"])

    assert in_child(body) == 4
    assert "cannot make a run folder in runs: Read-only file system; set run.folder" in said_once(capfd)


@needs_mounts
def test_a_disk_that_becomes_read_only_ends_the_run(toy, capfd):
    original, calls = ToyGenerator.training_step, []

    def step(self, batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == 7:
            read_only(Path("runs"))
        return original(self, batch, batch_idx)

    assert fit(patch=(ToyGenerator, "training_step", step)) == 4
    assert "metrics.csv: Read-only file system; make the folder writable" in said_once(capfd)
    (last,) = toy.glob("runs/*/checkpoints/last.ckpt")
    assert step_of(last) == 3


@needs_mounts
def test_data_that_are_read_only_need_a_store_elsewhere(toy, capfd):
    assert fit("data.store=null", "trainer.max_epochs=1") == 0  # draws the phantom
    capfd.readouterr()

    def body(*settings):
        read_only(Path("data"))
        return main(["--method", "toy", "trainer.max_epochs=1", "data.phantom=null", *settings])

    assert in_child(body) == 4
    assert "Read-only file system; set data.store to a folder that can be written" in said_once(capfd)
    assert in_child(lambda: body("data.store=store")) == 0


def test_a_run_whose_folder_is_deleted_ends_and_makes_no_other(toy, capfd):
    original, calls = ToyGenerator.training_step, []

    def step(self, batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == 7:
            shutil.rmtree(next(toy.glob("runs/*")))
        return original(self, batch, batch_idx)

    assert fit(patch=(ToyGenerator, "training_step", step)) == 4
    assert "metrics.csv: No such file or directory; its folder is gone" in said_once(capfd)
    assert not list(toy.glob("runs/*"))
