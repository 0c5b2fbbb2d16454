"""ZeRO-2 on two CPU processes: the same training as DDP, offloaded or not, and resumable."""

import csv
import os

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import mse_loss

import zoo.trainer
from lit_modules.report_generator import weights_file
from tests.zoo.toy import ToyGenerator, fit
from zoo.config import ZERO
from zoo.strategies import ZeroStrategy, build_strategy

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
        strategy = build_strategy(name, cpu, bucket=100_000) if name in ZERO else build_strategy(name, cpu)
        strategy._start_method = "fork"
        return strategy

    monkeypatch.setattr(zoo.trainer, "build_strategy", build)
    monkeypatch.setitem(os.environ, "DS_ACCELERATOR", "cpu")
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


def newest(folder):
    return max(folder.glob("runs/*"), key=lambda path: path.stat().st_mtime)


def losses(folder):
    table = csv.reader((newest(folder) / "metrics.csv").read_text().splitlines())
    return [float(value) for _, _, metric, value in table if metric == "train/loss"]


def test_zero2_offloaded_or_not_trains_as_ddp_does_and_resumes(toy, forked, capfd):
    def tell(self):
        optimizer = self.trainer.strategy.deepspeed_engine.optimizer
        (toy / "told").write_text(f"{optimizer.cpu_offload} {type(optimizer.optimizer).__name__}")

    assert fit(*TWO, "trainer.strategy=ddp") == 0
    ddp = losses(toy)
    assert len(ddp) == 6
    for strategy, told in zip(ZERO, ("False AdamW", "True AdamW"), strict=True):
        zero = (*TWO, f"trainer.strategy={strategy}")
        assert fit(*zero, "trainer.max_epochs=2", patch=(ToyGenerator, "on_train_end", tell)) == 0
        assert (toy / "told").read_text() == told
        assert losses(toy) == pytest.approx(ddp[:4], abs=1e-5)
        checkpoints = newest(toy) / "checkpoints"
        assert (checkpoints / "last.ckpt" / "COMPLETE").is_file()
        assert fit(*zero, "--resume", str(newest(toy))) == 0
        assert losses(toy) == pytest.approx(ddp, abs=1e-5)
        weights = load_file(checkpoints / "tested.safetensors")
        module = torch.load(weights_file(checkpoints / "best.ckpt"), weights_only=True)["module"]
        assert weights.keys() == module.keys()
        assert all(torch.equal(weights[name], module[name]) for name in module)
        capfd.readouterr()
        assert fit(*zero, "trainer.devices=1", "--resume", str(checkpoints / "last.ckpt")) == 2
        assert "trainer.devices" in capfd.readouterr().err


def test_weights_may_be_left_out_of_some_batches_offloaded_too(toy, forked):
    # Two batches a step: left out of the second, of the first, of both, of the second of the last but one.
    left_out = {3, 4, 6, 7, 9}

    def loss(self, batch):
        hidden = self.layers[:3](batch["x"])
        if self.training and self.trainer.fit_loop.total_batch_idx in left_out:
            hidden = hidden.detach()
        return mse_loss(self.layers[3](hidden)[:, 0], batch["x"].sum(1))

    rows = []
    for strategy in ZERO:
        assert fit(*TWO, f"trainer.strategy={strategy}", patch=(ToyGenerator, "loss", loss)) == 0
        rows.append(losses(toy))
    assert rows[1] == pytest.approx(rows[0], abs=1e-6)


def test_what_deepspeed_is_told_of_offloading(forked):
    told = ZeroStrategy(offload=True).config
    assert told["zero_optimization"]["stage"] == 2
    assert told["zero_optimization"]["offload_optimizer"].items() >= {"device": "cpu", "pin_memory": True}.items()
    assert "offload_param" not in told["zero_optimization"]
    assert told["zero_force_ds_cpu_optimizer"] is False
    assert "offload_optimizer" not in ZeroStrategy().config["zero_optimization"]


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_a_model_is_tested_as_it_is_built_on_two_processes(toy, forked, strategy):
    assert fit(*TWO, f"trainer.strategy={strategy}", "trainer.max_epochs=0") == 0
    assert len((newest(toy) / "predictions.jsonl").read_text().splitlines()) == 4
    assert not (newest(toy) / "checkpoints").exists()
