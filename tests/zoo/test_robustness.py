"""What ends a run early: one line and an exit code, the checkpoint before it whole, and how it goes on."""

import csv
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
import wandb

import zoo.callbacks.clinical_efficacy
from tests.zoo.test_strategies import forked  # noqa: F401 - a fixture
from tests.zoo.toy import ToyGenerator, ToyPreprocessor, fit

# Two epochs of three steps of two micro-batches of two studies.
STEPS = ("data.global_batch_size=4", "data.micro_batch_size=2", "data.phantom=12", "trainer.max_epochs=2")
TWO = ("trainer.devices=2", "data.phantom=12", "data.global_batch_size=8", "data.micro_batch_size=2")


def rows(folder):
    (path,) = folder.glob("runs/*/metrics.csv")
    return list(csv.reader(path.read_text().splitlines()))


def steps_of(folder):
    return [int(step) for _, step, metric, _ in rows(folder)[1:] if metric == "train/loss"]


def last(folder):
    (path,) = folder.glob("runs/*/checkpoints/last.ckpt")
    return torch.load(path, weights_only=True)


def at_call(number, act, name="training_step"):
    """A patch for `fit`: `act(module, batch, result)` has the last word on what the `number`th call returns."""
    original, calls = getattr(ToyGenerator, name), []

    def step(self, batch, *arguments):
        calls.append(1)
        result = original(self, batch, *arguments)
        return act(self, batch, result) if len(calls) == number else result

    return ToyGenerator, name, step


def no_number(module, batch, loss):
    return loss * float("nan")


def infinite(module, batch, loss):
    return loss * float("inf")


def bad_gradient(module, batch, loss):
    return loss + (0 * module.layers[0].weight).sqrt().sum()  # 0, with the slope inf · 0


# The tenth micro-batch is the second of the fifth step.
@pytest.mark.parametrize(
    ("spoilt", "what"),
    [
        (no_number, "the loss is no number"),
        (infinite, "the loss is no number"),
        (bad_gradient, "the loss is a number, but a gradient is none"),
    ],
)
def test_a_step_with_no_number_in_it_is_not_made(toy, capfd, spoilt, what):
    ids = toy / "ids"

    def act(module, batch, loss):
        ids.write_text(", ".join(batch["ids"]))
        return spoilt(module, batch, loss)

    settings = (*STEPS, "trainer.gradient_clip_val=1.0", "run.checkpoint_every=2")
    assert fit(*settings, patch=at_call(9, act)) == 5
    (line,) = capfd.readouterr().err.splitlines()
    assert f"step 5 (epoch 2), studies {ids.read_text()}" in line
    assert what in line
    (kept,) = toy.glob("runs/*/checkpoints/last.ckpt")
    assert f"last good checkpoint: {kept.relative_to(toy)}" in line
    assert last(toy)["global_step"] == 4
    assert all(weight.isfinite().all() for weight in last(toy)["state_dict"].values())
    assert steps_of(toy) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("strategy", "spoilt"),
    [("ddp", no_number), ("ddp", bad_gradient), ("zero2", bad_gradient), ("zero2_offload", bad_gradient)],
)
def test_a_number_that_one_process_lacks_ends_all(toy, forked, capfd, strategy, spoilt):  # noqa: F811
    def act(module, batch, loss):
        return spoilt(module, batch, loss) if module.global_rank == 1 else loss

    assert fit(*TWO, f"trainer.strategy={strategy}", patch=at_call(3, act)) != 0
    assert "Diverged: step 2 (epoch 2), studies" in capfd.readouterr().err
    assert steps_of(toy) == [1]


@pytest.mark.parametrize(("call", "step"), [(9, 5), (11, 6)])  # within an epoch; before the validation at its end
def test_sigterm_ends_a_run_after_a_step_and_loses_none(toy, capfd, call, step):
    assert fit(*STEPS) == 0
    whole = rows(toy)
    (toy / "runs").rename(toy / "whole")
    capfd.readouterr()
    ended = at_call(call, lambda module, batch, loss: os.kill(os.getpid(), signal.SIGTERM) or loss)
    assert fit(*STEPS, patch=ended) == 143
    assert capfd.readouterr().err.splitlines() == ["stopped by SIGTERM; go on with --resume auto"]
    assert last(toy)["global_step"] == step
    assert fit(*STEPS, "--resume", "auto") == 0
    assert rows(toy) == whole


def test_sigterm_to_one_process_ends_all_after_the_same_step(toy, forked):  # noqa: F811
    def act(module, batch, loss):
        if module.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    assert fit(*TWO, "trainer.strategy=ddp", "data.phantom=24", patch=at_call(3, act)) != 0
    assert last(toy)["global_step"] == 2


def test_loaders_processes_outlive_a_sigterm_that_is_sent_to_all(toy, capfd):
    def act(module, batch, loss):
        for process in (*multiprocessing.active_children(), multiprocessing.current_process()):
            os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.5)
        return loss

    assert fit(*STEPS, "data.num_workers=1", patch=at_call(9, act)) == 143
    assert capfd.readouterr().err.splitlines()[-1] == "stopped by SIGTERM; go on with --resume auto"
    assert last(toy)["global_step"] == 5


def test_ctrl_c_and_sigterm_in_the_test_leave_it_to_be_made_again(toy, capfd):
    for number, code, words in ((signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped by SIGTERM")):
        ended = at_call(2, lambda *of, number=number: os.kill(os.getpid(), number), "test_step")
        assert fit(*STEPS, "--resume", "auto", patch=ended) == code
        assert capfd.readouterr().err.splitlines() == [f"{words}; go on with --resume auto"]
    assert not list(toy.glob("runs/*/predictions.jsonl"))
    assert fit(*STEPS, "--resume", "auto") == 0
    assert steps_of(toy) == [1, 2, 3, 4, 5, 6]
    assert len(list(toy.glob("runs/*/predictions.jsonl"))) == 1


def test_ctrl_c_keeps_the_checkpoint_before(toy, capfd):
    ended = at_call(9, lambda *of: os.kill(os.getpid(), signal.SIGINT))
    assert fit(*STEPS, patch=ended) == 130
    assert capfd.readouterr().err.splitlines() == ["interrupted; go on with --resume auto"]
    assert last(toy)["global_step"] == 3


def test_a_loaders_process_that_is_killed_is_said(toy, capfd):
    original, calls = ToyPreprocessor.__call__, []

    def sample(self, study, arrays, rng):
        calls.append(1)
        if torch.utils.data.get_worker_info() and rng and len(calls) == 20:  # in the second epoch
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, study, arrays, rng)

    settings = (*STEPS, "data.store=null", "data.num_workers=1")
    assert fit(*settings, patch=(ToyPreprocessor, "__call__", sample)) == 4
    (line,) = capfd.readouterr().err.splitlines()
    assert re.search(r"DataLoader worker .*(is killed by signal: Killed|exited unexpectedly); the machine had", line)
    assert "lower data.num_workers, then go on with --resume auto" in line
    assert last(toy)["global_step"] == 3


def test_a_batch_without_memory_keeps_the_checkpoint_before(toy, capfd):
    # What the allocator itself says, of more memory than can be addressed.
    assert fit(*STEPS, patch=at_call(9, lambda *of: torch.empty(1 << 56))) == 4
    (line,) = capfd.readouterr().err.splitlines()
    assert "can't allocate memory" in line
    assert "Lower data.micro_batch_size" in line
    assert last(toy)["global_step"] == 3
    # The effective batch stays, so the run goes on with smaller micro-batches.
    assert fit(*STEPS, "data.micro_batch_size=1", "--resume", "auto") == 0
    assert steps_of(toy) == [1, 2, 3, 4, 5, 6]


def test_a_fault_in_scoring_costs_no_prediction(toy, capfd):
    def broken(*arguments, **named):
        raise ZeroDivisionError("unforeseen")

    assert fit("trainer.max_epochs=1", patch=(zoo.callbacks.clinical_efficacy, "run_metrics", broken)) == 1
    (path,) = toy.glob("runs/*/predictions.jsonl")
    assert len(path.read_text().splitlines()) == 4
    Path(capfd.readouterr().err.split("the log is ")[1].strip()).unlink()


def test_wandb_that_fails_ends_no_run(toy, capfd):
    def broken(*arguments, **named):
        raise BrokenPipeError("its service is gone")

    assert fit("log.wandb=offline", "trainer.max_epochs=1", patch=(wandb.Run, "log", broken)) == 0
    warnings = [line for line in capfd.readouterr().err.splitlines() if "W&B" in line]
    assert len(warnings) == 1
    assert "W&B failed and is left alone (BrokenPipeError: its service is gone)" in warnings[0]
    assert steps_of(toy) == [1, 2, 3]


def test_wandb_that_cannot_begin_is_said_before_anything_is_trained(toy, capfd, monkeypatch):
    monkeypatch.setenv("HOME", str(toy))
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert fit("log.wandb=online") == 4
    assert "W&B cannot begin" in capfd.readouterr().err
    assert not list(toy.glob("runs/*/checkpoints"))
