"""A toy whose figures are known beforehand, and fits that are processes but start at once."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from lit_modules.report_generator import Report
from tests.zoo.toy import ToyGenerator
from zoo import study
from zoo.fit import main

HANG = Path("hang")  # while this file is there, a fit hangs in its last epoch


class Speaker(ToyGenerator):
    """Says the reference, "normal", and wrong words after it: as many as it is told, and `data.seed` more."""

    def __init__(self, wrong: int = 0, breaks: bool = False, **options):
        super().__init__(**options)
        self.wrong, self.breaks = wrong, breaks

    def training_step(self, batch, batch_idx):
        if self.breaks:
            raise RuntimeError("the toy broke")
        while HANG.exists() and self.current_epoch == 2:
            time.sleep(0.05)
        return super().training_step(batch, batch_idx)

    def generate(self, batch):
        text = " ".join(["normal"] + ["wrong"] * (self.wrong + self.trainer.datamodule.seed))
        return [Report(name, text) for name in batch["ids"]]


class Beginner(ToyGenerator):
    """Always begins from random weights."""

    def __init__(self, lr: float = 1e-2):
        super().__init__(lr=lr)


def in_background(*arguments):
    """`zoo.study` in a process group of its own, so that it can be killed with all its fits."""

    def body():
        os.setsid()
        sys.exit(study.main([*arguments]))

    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    return process


def wait_for(what):
    for _ in range(1200):
        if what():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


class ForkedFit:
    """`subprocess.Popen` for `python -m zoo.fit …`, in a fork of this process, which has imported everything."""

    def __init__(self, command, stdin, stdout, stderr, env, pass_fds):
        self.returncode = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.dup2(stdout.fileno(), 1)
                os.dup2(stderr.fileno(), 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.environ.update(env)
                code = main([str(word) for word in command[3:]])
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout=None):
        end = time.monotonic() + timeout if timeout is not None else float("inf")
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("fit", timeout)
            time.sleep(0.05)
        return self.returncode

    def terminate(self):
        os.kill(self.pid, signal.SIGTERM)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
