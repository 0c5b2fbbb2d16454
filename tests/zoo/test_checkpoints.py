"""Resuming: the same losses as the uninterrupted run, whatever it was interrupted by."""

import csv
import json
from pathlib import Path

import pytest
import torch

from tests.zoo.toy import fit, killed_at, killed_in_save
from zoo.callbacks.checkpoints import AtomicCheckpointIO
from zoo.command import EnvironmentFault

STEPS = ("data.global_batch_size=4", "data.micro_batch_size=2", "data.phantom=12", "trainer.max_epochs=3")
EVERY = "run.checkpoint_every=2"


def rows(folder):
    newest = max(folder.glob("runs/*"), key=lambda path: path.stat().st_mtime)
    return list(csv.reader((newest / "metrics.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """`metrics.csv` of three epochs of three steps, two micro-batches each, with dropout and shuffling."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CONFIGS", str(Path(__file__).parent / "toy_configs"))
        patch.chdir(folder)
        assert fit(*STEPS, EVERY) == 0
    return rows(folder)


def test_a_run_logs_every_step_once(uninterrupted):
    steps = [int(step) for _, step, metric, _ in uninterrupted[1:] if metric == "train/loss"]
    assert steps == list(range(1, 10))
    assert len({(step, metric) for _, step, metric, _ in uninterrupted[1:]}) == len(uninterrupted) - 1
    rates = {int(step): float(value) for _, step, metric, value in uninterrupted[1:] if metric == "train/lr"}
    assert rates[1] == pytest.approx(5e-3 / 3)
    assert rates[9] == pytest.approx(5e-3)


@pytest.mark.parametrize("call", [10, 13, 18, 5])
def test_kill_9_in_training_then_resume_gives_the_same_metrics(toy, uninterrupted, call):
    # Calls are micro-batches, two a step. `last` is written at steps 2, 3, 4, 6, …: call 10 lies in the middle of a
    # step, past one written in mid-epoch; 13 is the first of the last epoch, 18 the last of all, 5 follows the first.
    assert fit(*STEPS, EVERY, patch=killed_at(call)) == -9
    before = rows(toy)
    assert fit(*STEPS, EVERY, "--resume", "auto") == 0
    assert len(before) < len(uninterrupted)
    assert rows(toy) == uninterrupted


def test_auto_begins_anew_where_nothing_was_saved(toy, uninterrupted):
    assert fit(*STEPS, EVERY, patch=killed_at(3)) == -9
    assert fit(*STEPS, EVERY, "--resume", "auto") == 0
    assert len(list(toy.glob("runs/*"))) == 2
    assert rows(toy) == uninterrupted


def test_kill_9_in_validation_then_resume_gives_the_same_metrics(toy, uninterrupted):
    assert fit(*STEPS, EVERY, patch=killed_at(6, "validation_step")) == -9
    assert fit(*STEPS, EVERY, "--resume", "auto") == 0
    assert rows(toy) == uninterrupted


@pytest.mark.parametrize("number", [2, 5])
def test_kill_9_while_saving_leaves_the_checkpoint_before(toy, uninterrupted, number):
    assert fit(*STEPS, EVERY, patch=killed_in_save(number)) == -9
    (folder,) = toy.glob("runs/*")
    assert list(folder.glob("checkpoints/*.partial"))
    assert fit(*STEPS, EVERY, "--resume", str(folder)) == 0
    assert rows(toy) == uninterrupted


def test_validation_within_an_epoch_is_neither_lost_nor_repeated(toy):
    middle = ("trainer.val_check_interval=2", "run.checkpoint_every=1", "trainer.max_epochs=2")
    assert fit(*STEPS, *middle) == 0
    (toy / "whole").mkdir()
    whole = rows(toy)
    next(toy.glob("runs/*")).rename(toy / "whole" / "run")
    assert fit(*STEPS, *middle, patch=killed_at(5)) == -9
    assert fit(*STEPS, *middle, "--resume", "auto") == 0
    assert rows(toy) == whole


def test_more_epochs_after_the_end_equal_one_longer_run(toy, uninterrupted):
    assert fit(*STEPS, EVERY, "trainer.max_epochs=2") == 0
    assert fit(*STEPS, EVERY, "--resume", "auto") == 0
    kept = [row for row in rows(toy) if not row[2].startswith("test/")]
    assert kept == [row for row in uninterrupted if not row[2].startswith("test/")]


def test_checkpoints_hold_plain_values_and_their_configuration(toy):
    assert fit(*STEPS, "trainer.max_epochs=1") == 0
    (path,) = toy.glob("runs/*/checkpoints/last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["config"]["method"] == "toy"
    assert checkpoint["config"]["model"]["lr"] == 5e-3
    assert set(checkpoint["state_dict"]) == {"layers.0.weight", "layers.0.bias", "layers.3.weight", "layers.3.bias"}


def test_best_follows_the_monitor(toy):
    assert fit(*STEPS, "run.monitor=validation/loss", "run.mode=max", "model.lr=0.1") == 0
    table = rows(toy)
    losses = {int(step): float(value) for _, step, metric, value in table[1:] if metric == "validation/loss"}
    (path,) = toy.glob("runs/*/checkpoints/best.ckpt")
    assert torch.load(path, weights_only=True)["global_step"] == max(losses, key=losses.get)


def test_an_unknown_monitor_names_those_there_are(toy, capfd):
    assert fit(*STEPS, "run.monitor=validation/lost") == 2
    assert "validation/loss" in capfd.readouterr().err


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    place = tmp_path / "checkpoints" / "last.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"step": 1}, place)

    def full(checkpoint, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(EnvironmentFault, match="No space left"):
        writer.save_checkpoint({"step": 2}, place)
    monkeypatch.undo()
    assert writer.load_checkpoint(place, weights_only=True) == {"step": 1}
    assert [path.name for path in place.parent.iterdir()] == ["last.ckpt"]


def test_provenance_counts_the_time_before_the_interruption(toy):
    assert fit(*STEPS, EVERY, patch=killed_at(9)) == -9
    (path,) = toy.glob("runs/*/provenance.json")
    assert json.loads(path.read_text())["status"] == "running"
    assert fit(*STEPS, EVERY, "--resume", "auto") == 0
    record = json.loads(path.read_text())
    assert record["status"] == "done"
    assert record["phantom"] is True
    assert record["earlier_seconds"] > 0
