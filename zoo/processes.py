"""The processes of one run: who started them, which is the first, what it decided, and how they end together.

All this is needed before Lightning connects them, and when the connection broke. Imports nothing heavy.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import lightning as L
    from lightning.fabric.plugins.environments import ClusterEnvironment
    from torch.distributed import TCPStore

ANSWER = "ZOO_ANSWER"  # where processes that Lightning starts find what the first has decided
START, ALIKE, ENDING = 1800, 10, 5  # seconds to wait: for the answer, for the first to fail alike, for a lost process
BROKEN = re.compile(r"\bgloo\b|\bnccl|Connection (reset|closed|refused)", re.IGNORECASE)


# Who and how many.


def launcher() -> Literal["torchrun", "srun"] | None:
    """What started the processes; `None`: nothing did, and Lightning starts those that are missing.

    Inside a SLURM job, but without `srun`, SLURM's numbers of tasks stand in the environment all the same.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun"
    task = {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID"} <= os.environ.keys()
    return "srun" if task and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive") else None


def rank() -> int:
    """This process among all of the run: 0 is the first, which writes the run's folder and speaks."""
    return int(os.environ.get({"torchrun": "RANK", "srun": "SLURM_PROCID"}.get(launcher() or "", "LOCAL_RANK"), 0))


def started() -> int:
    """How many processes were started from outside."""
    return int(os.environ.get({"torchrun": "WORLD_SIZE", "srun": "SLURM_NTASKS"}.get(launcher() or "", ""), 1))


def check(devices: int, nodes: int) -> None:
    """Compares the processes that were started with those that the settings ask for.

    Raises:
        UsageError: They are not as many: the ones that are there would wait for the others for ever.
    """
    from zoo.command import UsageError

    by, there, how = launcher(), started(), "docs/many_gpus.md shows how"
    if by is None and nodes > 1:
        raise UsageError(f"trainer.num_nodes={nodes}: start a process for each device by torchrun or srun; {how}")
    if by is not None and there != devices * nodes:
        raise UsageError(
            f"{by} started {there} processes, but trainer.devices={devices} × trainer.num_nodes={nodes} are "
            f"{devices * nodes}: make the two equal; {how}"
        )
    if by == "srun" and there > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise UsageError(f"give srun --ntasks-per-node={devices} and --nodes={nodes} in place of --ntasks; {how}")


def cluster_environment() -> ClusterEnvironment:
    """The same for Lightning, which must not save and requeue by itself under SLURM: `checkpoints/last` is there."""
    from lightning.fabric.plugins import environments

    if launcher() == "torchrun":
        return environments.TorchElasticEnvironment()
    return environments.SLURMEnvironment(auto_requeue=False) if launcher() else environments.LightningEnvironment()


# What the first one says to the others.


def agreed(decide: Callable[[], Any]) -> Any:
    """What the first process decides, on every process of the run; none of the others decides for itself.

    Args:
        decide: Called on the first process only; gives plain JSON. If it fails the others end, and say nothing.
    """
    if launcher() is None:
        if rank() == 0:
            os.environ[ANSWER] = json.dumps(decide())
        return json.loads(os.environ[ANSWER])
    if started() == 1:
        return decide()
    if rank() == 0:
        answer = decide()
        _board().set(_key("answer"), json.dumps(answer))
        return answer
    there, deadline = False, time.monotonic() + START
    while time.monotonic() < deadline:
        stands = _stands("answer")
        if stands:
            return json.loads(_board().get(_key("answer")))
        if _stands("failed") or (there and stands is None):  # it failed, or has gone
            break
        there = stands is not None
        time.sleep(0.1)
    raise SystemExit(1)


def tells_failure() -> bool:
    """Whether this process is to say what went wrong with it: not where the first fails too, for then that one says it.

    A wrong setting fails on all processes alike, and is told once; a file that only one of them reads is told by it.
    """
    if started() == 1 and "LOCAL_RANK" not in os.environ:
        return True
    if rank() == 0:
        with suppress(RuntimeError, OSError):
            _board().set(_key("failed"), "")
            time.sleep(1)  # the others must see it before it ends with this process
        return True
    deadline = time.monotonic() + ALIKE
    while time.monotonic() < deadline:
        if _stands("failed"):
            return False
        time.sleep(0.1)
    return True


@cache
def _board() -> TCPStore:
    """Where the first process writes for the others: torchrun's own, or on the port at which they will connect."""
    from datetime import timedelta

    from torch.distributed import TCPStore

    host, port = _place()
    first = rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    return TCPStore(
        host, port, is_master=first, wait_for_workers=False, multi_tenant=True, timeout=timedelta(seconds=60)
    )


def _place() -> tuple[str, int]:
    environment = cluster_environment()
    return environment.main_address, environment.main_port


def _key(name: str) -> str:
    return f"zoo/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{name}"


def _stands(name: str) -> bool | None:
    """Whether the first process has written it; `None` where that process is not there (torch would complain long)."""
    try:
        socket.create_connection(_place(), timeout=5).close()
        return _board().check([_key(name)])
    except (RuntimeError, OSError):
        return None


# How they end.


def lost_another(error: BaseException) -> bool:
    """Whether an error only says that another process has gone."""
    return isinstance(error, RuntimeError) and bool(
        type(error).__name__.startswith("Dist") or BROKEN.search(str(error).partition("\n")[0])
    )


@contextmanager
def ending_together(trainer: L.Trainer) -> Iterator[None]:
    """Ends the processes that Lightning started when one of them fails, with that one's exit code.

    By itself Lightning lets the others wait for a first process that failed, and kills a first process, which then has
    lost its exit code, when another failed. Those that torchrun or srun started are ended by these.
    """
    from lightning.fabric.strategies.launchers import subprocess_script

    observer: Any = subprocess_script._ChildProcessObserver

    class Watch(observer):
        def _terminate_all(self) -> None:
            code = next(child.returncode for child in self._child_processes if child.returncode)
            for child in self._child_processes:
                child.kill()
            os._exit(_exit_code(code))  # the thread that should raise it may wait in a collective operation for ever

    subprocess_script._ChildProcessObserver = Watch  # type: ignore[misc]
    try:
        yield
    except BaseException as error:
        children = getattr(trainer.strategy.launcher, "procs", [])
        deadline = time.monotonic() + (ENDING if children and lost_another(error) else 0)
        while not any(child.poll() for child in children) and time.monotonic() < deadline:
            time.sleep(0.1)
        failed = [child.returncode for child in children if child.returncode]
        for child in children:
            child.kill()
        if failed and lost_another(error):
            raise SystemExit(_exit_code(failed[0])) from error
        raise
    finally:
        subprocess_script._ChildProcessObserver = observer  # type: ignore[misc]


def _exit_code(returned: int) -> int:
    """Of a process that has said what was wrong with it; where a signal ended it that is said here."""
    if returned >= 0:
        return returned
    print(f"error: signal {-returned} ended a process of this run; 9 is mostly a lack of memory", file=sys.stderr)
    return 128 - returned
