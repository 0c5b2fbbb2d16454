"""`zoo.fit --slurm FILE`: the file that gives a fit to SLURM, with the same arguments."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from zoo import command
from zoo.config import Config

NOTICE = 300  # seconds before the time limit at which a run is told to save and end

SCRIPT = """\
#!/bin/bash
# Written by python -m zoo.fit --slurm. What sbatch is given on its command line goes before what stands here.
{options}

run={run}
mkdir -p "$run" && touch "$run/started"
export OMP_NUM_THREADS=$(( SLURM_CPUS_PER_TASK > {workers} ? SLURM_CPUS_PER_TASK - {workers} : 1 ))
export HF_HUB_OFFLINE=1 WANDB_MODE={wandb}

srun --kill-on-bad-exit=1 --wait=0 --cpus-per-task="$SLURM_CPUS_PER_TASK" \\
    {fit}
code=$?
if [ "$code" -eq {terminated} ]; then  # it was told to end, shortly before the time limit, and has saved
    if [ -n "$(find "$run" -name last.ckpt -newer "$run/started")" ]; then
        scontrol requeue "$SLURM_JOB_ID"
    else
        echo "no new checkpoint since this job began, so it is not put back into the queue" >&2
    fi
fi
exit "$code"
"""


def write_job(file: Path, config: Config, arguments: argparse.Namespace) -> None:
    """Writes the file, and says how to submit it.

    A job's run lies in a folder of the job's own, `<run.folder>/slurm-<job>/`: the number stays when the job is put
    back into the queue, so that `--resume auto` finds this job's run there and never another.

    Raises:
        UsageError: The settings do not say how many devices a node has, or name one checkpoint to go on from.
        EnvironmentFault: The file, or the folder for the logs, cannot be written.
    """
    from zoo.run_directory import atomic_write, run_of
    from zoo.trainer import effective_batch

    trainer = config.values["trainer"]
    if str(trainer["devices"]) in ("auto", "-1"):
        raise command.UsageError(f"trainer.devices={trainer['devices']}: say how many a node has: trainer.devices=8")
    resume = arguments.resume
    if resume not in (None, "auto") and run_of(Path(resume)).path != Path(resume):
        raise command.UsageError(f"--resume {resume}: name the run's folder: put back into the queue it goes on there")
    batch = effective_batch(config)
    folder = Path(config.values["run"]["folder"])
    try:
        folder.mkdir(parents=True, exist_ok=True)  # SLURM does not make it, and a job without its log fails unheard
    except OSError as error:
        raise command.EnvironmentFault(f"cannot make {folder} for the logs: {error.strerror}") from error
    own = resume in (None, "auto")
    text = SCRIPT.format(
        options="\n".join(f"#SBATCH --{name}" for name in _options(config, batch.devices, folder)),
        run=f'{shlex.quote(str(folder))}/slurm-"$SLURM_JOB_ID"' if own else shlex.quote(resume),
        workers=config.values["data"]["num_workers"],
        wandb="online" if config.values["log"]["wandb"] == "online" else "offline",
        fit=" ".join(_words(arguments)) + (' run.folder="$run" --resume auto' if own else ' --resume "$run"'),
        terminated=command.TERMINATED,
    )
    atomic_write(file, text)
    command.say(f"written: {file}, {batch}\nsubmit it: sbatch {shlex.quote(str(file))}")
    command.say("           your cluster's options go before the file: --partition=… --account=… --time=24:00:00")


def _options(config: Config, devices: int, folder: Path) -> Iterator[str]:
    values = config.values
    yield f"job-name={config.method}-{config.recipe}"
    yield f"chdir={shlex.quote(str(Path.cwd()))}"
    yield f"output={shlex.quote(f'{folder}/slurm-%j.log')}"
    yield "open-mode=append"
    yield f"nodes={values['trainer']['num_nodes']}"
    yield f"ntasks-per-node={devices}"
    if values["trainer"]["accelerator"] != "cpu":
        yield f"gres=gpu:{devices}"  # of the node, not of each task: Lightning picks by the task's number
    yield f"cpus-per-task={values['data']['num_workers'] + 1}"
    yield f"signal=TERM@{NOTICE}"
    yield "requeue"


def _words(arguments: argparse.Namespace) -> list[str]:
    """The command again, quoted for the shell, without what the file gives itself."""
    named = [("--method", arguments.method), ("--recipe", arguments.recipe), ("--config", arguments.config)]
    named += [("--with", name) for name in arguments.ablations]
    words = [word for flag, value in named if value is not None for word in (flag, str(value))]
    words += [setting for setting in arguments.settings if not setting.startswith("run.folder=")]
    return [shlex.quote(word) for word in (sys.executable, "-m", "zoo.fit", *words)]
