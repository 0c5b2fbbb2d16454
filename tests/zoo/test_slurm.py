"""The file that `zoo.fit --slurm` writes, run by bash with stand-ins for srun and scontrol."""

import os
import subprocess
import sys

import pytest

from tests.zoo.toy import fit
from zoo.command import configuration
from zoo.fit import _parse, main

SRUN = """#!/bin/bash
printf '%s\\n' "$@" > arguments
env > environment
for word in "$@"; do case $word in run.folder=*) run=${{word#run.folder=}};; esac; done
mkdir -p "$run/toy-phantom-1/checkpoints"
{body}
"""
GIVEN = ("--method", "toy", "trainer.devices=4", "trainer.num_nodes=2", "trainer.accelerator=gpu", "data.num_workers=3",
         "data.global_batch_size=32", "data.root=it's here", "run.folder=my runs")  # fmt: skip


@pytest.fixture
def submitted(toy):
    """Runs the file as SLURM would, with these lines of bash in the place of the fit."""

    def run(body="true"):
        (toy / "bin").mkdir(exist_ok=True)
        for name, text in {"srun": SRUN.format(body=body), "scontrol": '#!/bin/bash\necho "scontrol $@"'}.items():
            (toy / "bin" / name).write_text(text)
            (toy / "bin" / name).chmod(0o755)
        job = {"PATH": f"{toy}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "77", "SLURM_CPUS_PER_TASK": "6"}
        return subprocess.run(["bash", "-u", "job.sh"], env={**os.environ, **job}, capture_output=True, text=True)

    return run


def test_the_file_asks_for_and_runs_what_the_arguments_say(toy, submitted, capfd):
    assert main([*GIVEN, "--slurm", "job.sh"]) == 0
    assert "submit it: sbatch job.sh\n" in capfd.readouterr().out
    assert not list(toy.glob("my runs/*"))  # but the folder is there for the log
    text = (toy / "job.sh").read_text()
    options = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in text.splitlines() if "#SB" in line)
    assert options == {
        "job-name": "toy-phantom", "chdir": str(toy), "output": "'my runs/slurm-%j.log'", "open-mode": "append",
        "nodes": "2", "ntasks-per-node": "4", "gres": "gpu:4", "cpus-per-task": "4", "signal": "TERM@300",
        "requeue": "",
    }  # fmt: skip
    assert submitted().returncode == 0
    words = (toy / "arguments").read_text().splitlines()
    program = words.index(sys.executable)
    assert words[program + 1 : program + 3] == ["-m", "zoo.fit"]
    assert {"--kill-on-bad-exit=1", "--cpus-per-task=6"} <= set(words[:program])
    again = _parse(words[program + 3 :])
    assert again.resume == "auto"
    differences = configuration(again).differences(configuration(_parse(list(GIVEN))).values)
    assert differences == {"run.folder": ("my runs", "my runs/slurm-77")}
    environment = set((toy / "environment").read_text().splitlines())
    assert {"OMP_NUM_THREADS=3", "HF_HUB_OFFLINE=1", "WANDB_MODE=offline"} <= environment


def test_a_job_goes_on_with_its_own_run_and_not_with_the_newest(toy, submitted):
    assert main(["--method", "toy", "--slurm", "job.sh"]) == 0
    submitted()
    words = (toy / "arguments").read_text().splitlines()
    again = words[words.index("--method") + 2 :]
    assert fit(*again, "trainer.max_epochs=1") == 0
    assert fit("trainer.max_epochs=2") == 0
    assert fit(*again, "trainer.max_epochs=2") == 0
    own, other = toy.glob("runs/slurm-77/*-2*"), toy.glob("runs/toy-*")
    steps = [[line for line in (run / "metrics.csv").open() if "train/loss" in line] for run in (*own, *other)]
    assert steps[0] == steps[1]
    assert len(steps) == 2


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("exit 3", 3, ""),
        ("exit 143", 143, "no new checkpoint"),
        ('sleep 0.05; touch "$run/toy-phantom-1/checkpoints/last.ckpt"; exit 143', 143, "scontrol requeue 77"),
        ('sleep 0.05; touch "$run/toy-phantom-1/checkpoints/last.ckpt"; exit 4', 4, ""),
    ],
)
def test_only_a_job_that_was_told_to_end_and_has_saved_comes_back(toy, submitted, body, code, said):
    assert main(["--method", "toy", "--slurm", "job.sh"]) == 0
    job = submitted(body)
    assert job.returncode == code
    assert (said in job.stdout + job.stderr) if said else job.stdout + job.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trainer.devices=auto"], "say how many a node has"),
        (["data.global_batch_size=5"], "no multiple"),
        (["--resume", "nowhere"], "no such run folder"),
        (["--dry-run"], "not allowed with"),
    ],
)
def test_what_cannot_be_submitted_is_refused_and_nothing_is_written(toy, capfd, arguments, words):
    assert main(["--method", "toy", "--slurm", "job.sh", *arguments]) == 2
    assert words in capfd.readouterr().err
    assert not list(toy.iterdir())
