"""What every method must pass on two processes. Methods are found in `configs/`; a new one needs no line here."""

import csv
import os
import signal

import pytest

from tests import ranks
from tests.test_contract import METHODS
from tests.zoo.toy import killed_in_save
from zoo.callbacks.checkpoints import StepSeeds
from zoo.config import compose
from zoo.run_directory import RunDirectory

# Two epochs of two steps, each of four micro-batches; three batches of evaluation, which two processes cannot halve.
FIT = ("data.phantom=12", "data.limit=8", "data.global_batch_size=4", "data.micro_batch_size=1",
       "data.eval_batch_size=3", "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1",
       "trainer.gradient_clip_val=0.5", "run.checkpoint_every=1", "run.evaluate=last",
       "metrics.every_n_epochs=2")  # fmt: skip


@pytest.fixture(scope="session", params=METHODS)
def method(request, tmp_path_factory):
    """A method's name and a folder for its data and runs."""
    return request.param, tmp_path_factory.mktemp(request.param)


@pytest.fixture(scope="session")
def alone(method):
    """The run of one process."""
    assert fit(method) == 0
    return newest(method)


def fit(method, *arguments, **options):
    name, folder = method
    places = (f"data.root={folder}/data", f"run.folder={folder}/runs")
    return ranks.fit("--method", name, *places, *FIT, *arguments, **options)


def newest(method):
    return RunDirectory(max(method[1].glob("runs/*"), key=lambda path: path.stat().st_ctime))


def losses(run):
    table = csv.reader(run.metrics_csv.read_text().splitlines())
    return [float(value) for _, _, metric, value in table if metric in ("train/loss", "validation/loss")]


def same(run, alone):
    """Every loss, every report in its place and every figure, as one process has them."""
    assert len(losses(alone)) == 6
    assert losses(run) == pytest.approx(losses(alone), abs=2e-5)
    assert run.predictions.read_text() == alone.predictions.read_text()
    assert run.metrics.read_text() == alone.metrics.read_text()


@pytest.mark.parametrize("strategy", ["ddp", "zero2_offload"])
def test_two_processes_train_and_report_as_one_does(method, alone, strategy) -> None:
    assert fit(method, f"trainer.strategy={strategy}", ranks=2) == 0
    same(newest(method), alone)


def killed(step):
    """A patch: `kill -9` at the start of a batch of the given step."""

    def start(self, trainer, *rest):
        if trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, trainer, *rest)

    original = StepSeeds.on_train_batch_start
    return StepSeeds, "on_train_batch_start", start


def test_zero2_killed_twice_goes_on_exactly(method, alone) -> None:
    zero2 = "trainer.strategy=zero2"
    assert fit(method, zero2, ranks=2, patch=killed(1)) == -signal.SIGKILL
    run = newest(method)
    assert run.last.is_file() and not run.predictions.exists()
    assert fit(method, zero2, "--resume", "auto", ranks=2, patch=killed_in_save(2)) == -signal.SIGKILL
    assert not run.predictions.exists()
    assert fit(method, zero2, "--resume", "auto", ranks=2) == 0
    assert newest(method).path == run.path
    same(run, alone)


def test_zero2_trains_at_the_papers_precision(method, alone) -> None:
    paper, phantom = (compose(method[0], recipe, allow_missing=True).values for recipe in ("paper", "phantom"))
    keys = [("trainer", "precision"), ("model", "dtype"), ("model", "gradient_checkpointing")]
    papers = [f"{section}.{key}={paper[section][key]}" for section, key in keys if key in phantom[section]]
    assert fit(method, "trainer.strategy=zero2", "trainer.max_epochs=1", *papers, ranks=2) == 0
    assert losses(newest(method)) == pytest.approx(losses(alone)[:3], rel=0.05)
