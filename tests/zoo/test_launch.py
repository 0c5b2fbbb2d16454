"""Fits of several processes, started as torchrun and srun start them, on two "nodes" of one device on this machine."""

import csv
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.strategies.launchers import subprocess_script

from datamodules.study import DataFault
from tests.zoo.toy import ToyGenerator, fit
from zoo import processes
from zoo.fit import main
from zoo.run_directory import RunDirectory

FORK = multiprocessing.get_context("fork")
TWO = ("trainer.num_nodes=2", "trainer.devices=1", "data.global_batch_size=8", "data.micro_batch_size=2",
       "data.phantom=16", "trainer.max_epochs=2")  # fmt: skip


def free_port():
    """One of those that SLURM's job numbers lead to."""
    for port in range(15000 + os.getpid() % 5000, 25000):
        with socket.socket() as asked:
            try:
                asked.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def as_torchrun(rank, port):
    return {"TORCHELASTIC_RUN_ID": "none", "RANK": rank, "LOCAL_RANK": 0, "GROUP_RANK": rank, "WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip


def as_srun(rank, port):
    return {"SLURM_JOB_ID": 70000 + port - 15000, "SLURM_STEP_ID": 0, "SLURM_JOB_NAME": "toy", "SLURM_PROCID": rank,
            "SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 1, "SLURM_NNODES": 2, "SLURM_LOCALID": 0,
            "SLURM_NODEID": rank, "SLURM_NODELIST": "127.0.0.1"}  # fmt: skip


def launch(by, *arguments, patch=lambda rank: None):
    """Two processes in which `main` is called as on two nodes; returns their exit codes."""
    port = free_port()

    def body(rank):
        os.environ.update({name: str(value) for name, value in by(rank, port).items()})
        patch(rank)
        sys.exit(main(["--method", "toy", *arguments]))

    both = [FORK.Process(target=body, args=(rank,)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    return [process.exitcode for process in both]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


def losses(run):
    rows = csv.reader((run / "metrics.csv").read_text().splitlines())
    return [float(value) for _, _, metric, value in rows if metric == "train/loss"]


@pytest.fixture
def one_process(toy):
    """The run that the same training makes in one process, by accumulation."""
    assert fit(*TWO, "trainer.num_nodes=1", "run.folder=one") == 0
    (run,) = toy.glob("one/*")
    return run


@pytest.mark.parametrize("by", [as_torchrun, as_srun])
def test_two_nodes_train_and_test_as_one_process_does_and_speak_once(one_process, toy, capfd, by):
    capfd.readouterr()
    assert launch(by, *TWO) == [0, 0]
    (run,) = toy.glob("runs/*")
    assert losses(run) == pytest.approx(losses(one_process), abs=1e-6)
    assert (run / "predictions.jsonl").read_text() == (one_process / "predictions.jsonl").read_text()
    out = capfd.readouterr().out
    assert out.count("run folder") == out.count("Recipe phantom") == out.count("testing: ") == 1
    assert "2 micro × 2 accumulation × 1 devices × 2 nodes" in out


def test_a_job_that_slurm_ends_saves_and_goes_on_with_what_the_first_process_finds(one_process, toy, capfd):
    def ended(rank):
        if rank:  # one of them is told first
            ToyGenerator.on_train_batch_end = lambda self, *batch: os.kill(os.getpid(), signal.SIGTERM)

    def blind(rank):
        if rank:  # it would find nothing, or what another run has written meanwhile
            RunDirectory.resumable = lambda self: None
            RunDirectory.create = None

    capfd.readouterr()
    assert launch(as_srun, *TWO, patch=ended) == [143, 143]
    (run,) = toy.glob("runs/*")
    assert 0 < len(losses(run)) < len(losses(one_process))
    assert capfd.readouterr().err.count("stopped by SIGTERM") == 1
    assert launch(as_srun, *TWO, "--resume", "auto", patch=blind) == [0, 0]
    assert list(toy.glob("runs/*")) == [run]
    assert losses(run) == pytest.approx(losses(one_process), abs=1e-6)


def test_what_is_wrong_for_all_is_told_once(toy, capfd):
    assert launch(as_torchrun, *TWO, "model.lr=fast") == [2, 2]
    assert launch(as_srun, *TWO, "data.phantom=2") == [2, 2]  # found when the processes are connected
    assert launch(as_srun, *TWO, "trainer.devices=2") == [2, 2]
    error = capfd.readouterr().err
    assert "srun started 2 processes, but trainer.devices=2 × trainer.num_nodes=2 are 4" in error
    assert error.count("error: ") == 3
    assert "Traceback" not in error
    assert main(["--method", "toy", *TWO]) == 2
    assert "by torchrun or srun" in capfd.readouterr().err


def test_what_is_wrong_for_one_is_told_by_it_and_ends_all(toy, capfd, monkeypatch):
    monkeypatch.setattr(processes, "ALIKE", 1)

    def patch(rank):
        def loss(self, batch):
            raise FileNotFoundError("this disk has no such file")

        if rank:
            ToyGenerator.loss = loss

    assert launch(as_srun, *TWO, patch=patch) == [1, 4]
    lines = [line for line in capfd.readouterr().err.splitlines() if "error: " in line]
    assert any(line.startswith("process 1 on ") and "this disk has no such file" in line for line in lines)
    assert any("another process of this run has ended" in line for line in lines)
    assert len(lines) == 2


def test_under_slurm_without_srun_lightning_starts_the_processes(monkeypatch):
    for name, value in as_srun(1, 15000).items():
        monkeypatch.setenv(name, str(value))
    assert (processes.launcher(), processes.rank(), processes.started()) == ("srun", 1, 2)
    assert processes.cluster_environment().auto_requeue is False
    monkeypatch.delenv("SLURM_STEP_ID")
    assert (processes.launcher(), processes.rank(), processes.started()) == (None, 0, 1)
    assert not processes.cluster_environment().creates_processes_externally


LOST = RuntimeError("[/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:15251: Connection reset by peer")


def started_by_lightning(*commands):
    children = [subprocess.Popen(["bash", "-c", command]) for command in commands]
    return children, SimpleNamespace(strategy=SimpleNamespace(launcher=SimpleNamespace(procs=children)))


@pytest.mark.parametrize(("last", "code", "said"), [("exit 3", 3, ""), ("kill -9 $$", 137, "signal 9 ended")])
def test_the_exit_code_is_that_of_the_process_that_failed_first(capfd, last, code, said):
    children, trainer = started_by_lightning("sleep 60", f"sleep 0.3; {last}")
    with pytest.raises(SystemExit) as stop, processes.ending_together(trainer):
        raise LOST
    assert stop.value.code == code
    assert said in capfd.readouterr().err
    assert children[0].wait(timeout=10) == -9


def test_the_others_end_with_a_first_process_that_fails():
    children, trainer = started_by_lightning("sleep 60")
    with pytest.raises(DataFault, match="cut short"), processes.ending_together(trainer):
        raise DataFault("study x: cut short")
    assert children[0].wait(timeout=10) == -9


def test_a_first_process_that_waits_for_one_that_failed_ends_with_its_code():
    def body():
        children, trainer = started_by_lightning("exit 3")
        with processes.ending_together(trainer):
            subprocess_script._ChildProcessObserver(os.getpid(), children, sleep_period=0.1).start()
            time.sleep(60)

    first = FORK.Process(target=body)
    first.start()
    first.join(timeout=30)
    assert first.exitcode == 3
