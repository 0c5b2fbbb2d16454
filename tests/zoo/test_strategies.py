"""ZeRO-2 on two CPU processes: the same training as DDP, and resumable."""

import csv
import os

import pytest
import torch

import zoo.trainer
from tests.zoo.toy import fit
from zoo.strategies import build_strategy

TWO = ("trainer.devices=2", "data.phantom=16", "data.global_batch_size=8", "data.micro_batch_size=2",
       "trainer.gradient_clip_val=1.0")  # fmt: skip


@pytest.fixture
def forked(monkeypatch):
    """Processes that are forked, not started anew: importing everything once more would take most of a minute."""
    if torch.cuda.is_available():
        pytest.skip("CUDA does not survive a fork; run this where there is no GPU, or with CUDA_VISIBLE_DEVICES=")
    # Asking whether there is a GPU counts as having used one.
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: False)
    # Imported once, before the fork: it compiles, which takes longer than all the rest.
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401

    def build(name, cpu):
        strategy = build_strategy(name, cpu, bucket=100_000) if name == "zero2" else build_strategy(name, cpu)
        strategy._start_method = "fork"
        return strategy

    monkeypatch.setattr(zoo.trainer, "build_strategy", build)
    monkeypatch.setitem(os.environ, "DS_ACCELERATOR", "cpu")
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


def losses(folder):
    newest = max(folder.glob("runs/*"), key=lambda path: path.stat().st_mtime)
    table = csv.reader((newest / "metrics.csv").read_text().splitlines())
    return [float(value) for _, _, metric, value in table if metric == "train/loss"]


def test_zero2_trains_as_ddp_does_and_resumes(toy, forked, capfd):
    assert fit(*TWO, "trainer.strategy=ddp") == 0
    ddp = losses(toy)
    assert len(ddp) == 6
    assert fit(*TWO, "trainer.strategy=zero2", "trainer.max_epochs=2") == 0
    assert losses(toy) == pytest.approx(ddp[:4], abs=1e-5)
    checkpoint = max(toy.glob("runs/*/checkpoints/last.ckpt"), key=lambda path: path.is_dir())
    assert (checkpoint / "COMPLETE").is_file()
    assert fit(*TWO, "trainer.strategy=zero2", "--resume", "auto") == 0
    assert losses(toy) == pytest.approx(ddp, abs=1e-5)
    capfd.readouterr()
    assert fit(*TWO, "trainer.strategy=zero2", "trainer.devices=1", "--resume", str(checkpoint)) == 2
    assert "trainer.devices" in capfd.readouterr().err
