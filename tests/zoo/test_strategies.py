"""ZeRO-2 on two CPU processes: the same training as DDP, offloaded or not; resumed by any number, and after a crash."""

import csv
import os
import signal

import pytest
import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from torch.nn.functional import mse_loss

import zoo.trainer
from tests.zoo.toy import ToyGenerator, fit, killed_in_save
from zoo.config import ZERO
from zoo.strategies import ZeroStrategy, build_strategy

TWO = ("trainer.devices=2", "data.phantom=16", "data.global_batch_size=8", "data.micro_batch_size=2",
       "trainer.gradient_clip_val=1.0")  # fmt: skip
LOSS = ToyGenerator.loss


@pytest.fixture
def forked(monkeypatch):
    """Processes that are forked, not started anew: importing everything once more would take most of a minute."""
    if torch.cuda.is_available():
        pytest.skip("CUDA does not survive a fork; run this where there is no GPU, or with CUDA_VISIBLE_DEVICES=")
    # Asking whether there is a GPU counts as having used one.
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: False)
    # Imported once, before the fork: it compiles, which takes longer than all the rest.
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401

    def build(*settings):
        strategy = build_strategy(*settings)
        if not isinstance(strategy, str):
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


HOPS = {
    ("zero2", 2): "False AdamW 1000",
    ("zero2", 1): "False AdamW 1000",
    ("zero2_offload", 2): "True AdamW 1000",
    ("ddp", 2): None,
    ("zero2_offload", 1): "True AdamW 1000",
    ("auto", 1): None,
}


def test_any_number_of_processes_and_any_strategy_goes_on_from_any_other(toy, forked, capfd):
    def tell(self):
        zero = self.trainer.optimizers[0]
        if hasattr(zero, "cpu_offload"):
            (toy / "told").write_text(f"{zero.cpu_offload} {type(zero.optimizer).__name__} {zero.reduce_bucket_size}")

    assert fit(*TWO, "trainer.devices=1", "trainer.max_epochs=6") == 0
    alone = losses(toy)
    assert len(alone) == 12
    resume = ()
    for epochs, ((strategy, devices), told) in enumerate(HOPS.items(), 1):
        spread = (f"trainer.strategy={strategy}", f"trainer.devices={devices}", f"trainer.max_epochs={epochs}")
        assert fit(*TWO, *spread, *resume, patch=(ToyGenerator, "on_train_end", tell)) == 0
        resume = ("--resume", str(newest(toy)))
        assert losses(toy) == pytest.approx(alone[: 2 * epochs], abs=1e-5)
        if told:
            assert (toy / "told").read_text() == told
    assert "spread anew: trainer.devices 2 → 1, trainer.strategy zero2 → auto" in capfd.readouterr().out


def test_half_precision_goes_on_from_fp32_masters(toy, forked):
    half = (*TWO, "trainer.devices=1", "trainer.strategy=zero2", "trainer.precision=bf16-true")
    assert fit(*half, "trainer.max_epochs=2") == 0
    whole = losses(toy)
    assert fit(*half, "trainer.max_epochs=1") == 0
    content = torch.load(newest(toy) / "checkpoints" / "last.ckpt", weights_only=True)
    weights = content["state_dict"].values()
    assert all(weight.dtype == torch.float32 for weight in weights)
    assert any((weight.bfloat16() != weight).any() for weight in weights)
    assert fit(*half, "trainer.max_epochs=2", "--resume", str(newest(toy))) == 0
    assert losses(toy) == whole


def killed_in_training(self, batch):
    """The second of two processes ends, as `kill -9` does, in the middle of the second epoch."""
    if self.training and self.global_rank == 1 and self.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return LOSS(self, batch)


def test_one_process_killed_ends_the_command_and_the_run_goes_on(toy, forked):
    zero = (*TWO, "trainer.strategy=zero2", "run.checkpoint_every=1")
    assert fit(*zero) == 0
    whole = losses(toy)
    for patch, devices in (((ToyGenerator, "loss", killed_in_training), 1), (killed_in_save(5), 2)):
        assert fit(*zero, patch=patch) != 0
        assert 0 < len(losses(toy)) < 6
        assert fit(*zero, f"trainer.devices={devices}", "--resume", str(newest(toy))) == 0
        assert losses(toy) == pytest.approx(whole, abs=1e-5)


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


def test_processes_wait_for_the_one_that_scores():
    assert build_strategy("auto", True, 1) == "auto"
    for strategy in (build_strategy("auto", True, 2), build_strategy("ddp", False, 1), ZeroStrategy()):
        assert strategy._timeout > default_pg_timeout


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
