"""`zoo.fit` on several CPU processes, as torchrun starts them, but forked: importing everything anew takes a minute."""

import multiprocessing
import os
import socket
import sys
import time

import pytest
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo.fit import main


def fit(*arguments, ranks=1, patch=None):
    """Runs the command; returns its exit code, or that of the rank that ended first with one, which ends the others.

    Args:
        arguments: The command's.
        ranks: How many processes.
        patch: `(object, name, value)`, set in each of them.
    """
    if torch.cuda.is_available():
        pytest.skip("CUDA does not survive a fork; run this where there is no GPU, or with CUDA_VISIBLE_DEVICES=")
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 - compiles; once, before the fork

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def body(rank):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "GROUP_RANK": 0}
        if ranks > 1:
            os.environ |= {name: str(value) for name, value in told.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        os.environ["DS_ACCELERATOR"] = "cpu"
        rank_zero_only.rank = rank  # else as it was when Lightning was imported
        torch.set_num_threads(1)
        if patch is not None:
            setattr(*patch)
        sys.exit(main([*arguments, f"trainer.devices={ranks}"]))

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=body, args=(rank,)) for rank in range(ranks)]
    for process in processes:
        process.start()
    while all(process.exitcode in (None, 0) for process in processes) and any(p.is_alive() for p in processes):
        time.sleep(0.05)
    first = next((process.exitcode for process in processes if process.exitcode), 0)
    for process in processes:
        process.kill()
        process.join()
    return first
