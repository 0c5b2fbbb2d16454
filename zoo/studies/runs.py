"""A study's runs: which are done, and the others made side by side, each a `zoo.fit` of its own.

A run's lock belongs to the process that trains it, and the kernel lets go of it when that process ends, however it
ends: a lock file that is left behind locks nothing, and a fit that outlives its study is never begun a second time.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import IO, Literal

from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, track

from zoo.command import EnvironmentFault, UsageError, say
from zoo.config import Config, load
from zoo.run_directory import RunDirectory, atomic_write
from zoo.studies.design import INIT, PLACE, SEEDED, Point, Run

State = Literal["done", "underway", "to resume", "to do"]
FIT = (sys.executable, "-m", "zoo.fit")
_LOOK = 0.3  # seconds between two looks at the processes
_NOT_BEGUN = "not begun:"
_GRACE = 10  # seconds that interrupted fits have to end by themselves, at the end of a step


# What is there


def finished(folder: Path) -> RunDirectory | None:
    """The run that was trained, tested and scored there."""
    return next((run for run in _directories(folder) if run.metrics.is_file()), None)


def unfinished(folder: Path) -> RunDirectory | None:
    """The newest run there that left a whole checkpoint to go on from."""
    return next((run for run in reversed(_directories(folder)) if run.resumable()), None)


def state(folder: Path) -> State:
    """How far the run is."""
    if finished(folder):
        return "done"
    if (folder / "lock").is_file():
        lock = _take(folder / "lock")
        if lock is None:
            return "underway"
        lock.close()
    return "to resume" if unfinished(folder) else "to do"


def _directories(folder: Path) -> list[RunDirectory]:
    return [RunDirectory(path.parent) for path in sorted(folder.glob("*/config.yaml"))]


def seconds_of(run: RunDirectory) -> float:
    """What a finished run took, interruptions left out."""
    record = json.loads(run.provenance.read_text(encoding="utf-8")) if run.provenance.is_file() else {}
    return record.get("wall_seconds", 0.0) + record.get("earlier_seconds", 0.0)


def _beginning(run: Run) -> Path | None:
    """The checkpoint to begin from: the one that the run before it tested; `None` as long as there is none."""
    done = finished(run.after.folder) if run.after else None
    if run.after is None or done is None:
        return None
    return done.checkpoint(run.after.config.values["run"]["evaluate"]) or done.checkpoint("last")


def _begun_from(config: Config, place: Path | None) -> Config:
    if place is None:
        return config
    section, _, key = INIT.partition(".")
    return replace(config, values=config.values | {section: config.values[section] | {key: str(place)}})


def _take(path: Path) -> IO[str] | None:
    """The lock, held until every process that has the file open is gone or closes it; `None`: another holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def _wait_for(path: Path) -> IO[str]:
    """The lock, as soon as nobody else holds it."""
    said = False
    while (lock := _take(path)) is None:
        if not said:
            say("another zoo.study is preparing its data: waiting for it")
            said = True
        time.sleep(_LOOK)
    return lock


def list_runs(points: Sequence[Point]) -> None:
    """Prints every point behind the one that it comes after, how it differs from the recipe, how far its runs are."""
    points = sorted(points, key=lambda point: next(iter(point.runs.values())).stage)
    states = {run.digest: state(run.folder) for run in runs_of(points)}
    counts = Counter(states.values())
    print(f"{len(states)} runs: {', '.join(f'{count} {kind}' for kind, count in counts.items())}")
    for point in points:
        config = next(iter(point.runs.values())).config
        after = f" (after {point.settings['after']})" if "after" in point.settings else ""
        changed = {key: here for key, (_, here) in config.differences(config.base).items()}
        told = [f"{key}={value}" for key, value in changed.items() if key not in {*PLACE, *SEEDED}]
        print(f"{point.name}{after}: {', '.join(told) or 'as the recipe'}")
        for seed, run in point.runs.items():
            print(f"  seed {seed:<3} {states[run.digest]:<10} {run.folder}")


# Making what is not


def prepare(runs: Sequence[Run], output: Path) -> None:
    """Checks what the runs need; draws their phantom and builds their stores, one after the other.

    Raises:
        DataFault: Data are missing or at fault.
        EnvironmentFault: Weights or devices are missing.
    """
    from datamodules.study import DataFault
    from zoo.trainer import data_needs, device_needs, effective_batch, require

    # A run that comes after one that is not done is checked as its recipe has it: its checkpoint is not there yet.
    configs = [_begun_from(run.config, _beginning(run)) for run in runs]
    built = []
    for config in configs:
        effective_batch(config)
        built.append((config.build("model"), config.build("data")))
    needs = [
        need
        for config, (model, _) in zip(configs, built, strict=True)
        for need in (*model.requirements(), *device_needs(config))
    ]
    require(dict.fromkeys(need for _, data in built for need in data_needs(data)), DataFault)
    require(dict.fromkeys(needs), EnvironmentFault)
    known = set()
    steps = list(zip(configs, built, strict=True))
    hidden = not get_console().is_terminal
    with _wait_for(output / "runs" / "prepare.lock"):
        for config, (model, data) in track(steps, "preparing data", transient=True, disable=hidden):
            data.preprocessor = model.preprocessor()
            key = json.dumps([config.values["data"], data.preprocessor.settings()], sort_keys=True)
            if key not in known:
                known.add(key)
                data.prepare_data()


def side_by_side(runs: Sequence[Run], wanted: int | None = None) -> tuple[int, int]:
    """How many runs are made at a time (all cores' worth on the CPU, one on GPUs), and the threads of each.

    Raises:
        UsageError: Fewer than one is wanted.
    """
    from zoo.trainer import on_cpu

    if wanted is not None and wanted < 1:
        raise UsageError(f"--jobs {wanted}: give 1 or more")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = wanted or (cores if all(on_cpu(run.config) for run in runs) else 1)
    waited_for = {run.after.digest for run in runs if run.after}
    jobs = max(1, min(jobs, sum(run.digest not in waited_for for run in runs)))  # stages follow one another
    return jobs, max(1, cores // jobs)


@dataclass(frozen=True, eq=False)
class _Underway:
    run: Run
    name: str
    process: subprocess.Popen[bytes]
    begun: float


def execute(points: Sequence[Point], jobs: int, threads: int) -> dict[str, str]:
    """Makes every run that is not done, `jobs` side by side; one that fails does not stop the others.

    Args:
        points: The study's.
        jobs: Processes at a time.
        threads: OpenMP threads of each, unless the environment says how many.

    Returns:
        Digest of a run that failed → the last line of its log, or which run it would have had to come after.
    """
    names, runs = names_of(points), runs_of(points)
    waiting = [run for run in runs if not finished(run.folder)]
    underway: list[_Underway] = []
    failed: dict[str, str] = {}
    took = [seconds_of(done) for run in runs if (done := finished(run.folder))]
    told = False
    with _bar(len(waiting)) as bar, _ended_by_sigterm():
        try:
            while waiting or underway:
                for run in list(waiting):
                    if len(underway) == jobs:
                        break
                    if why := _never(run, names, failed):
                        waiting.remove(run)
                        failed[run.digest] = why
                        bar.advance(f"FAILED  {names[run.digest]}: {why}")
                    elif _ready(run) and (lock := _take(run.folder / "lock")):
                        waiting.remove(run)
                        underway += _begin(run, names[run.digest], threads, lock, bar)
                if waiting and not underway and not told:
                    bar.say(f"runs are underway in another process: waiting for them, {len(waiting)} are left")
                    told = True
                bar.show(underway, _left(took, underway, len(waiting), jobs))
                time.sleep(_LOOK)
                for each in [each for each in underway if each.process.poll() is not None]:
                    underway.remove(each)
                    if done := finished(each.run.folder):
                        took.append(seconds_of(done))
                        bar.advance(f"done    {each.name} in {_clock(time.monotonic() - each.begun)}")
                    else:
                        failed[each.run.digest] = _last_words(each.run.folder, each.process.returncode)
                        bar.advance(f"FAILED  {each.name}: {failed[each.run.digest]}")
        finally:
            _end(underway)
    return failed


def runs_of(points: Iterable[Point]) -> list[Run]:
    """Every run once."""
    return list({run.digest: run for point in points for run in point.runs.values()}.values())


def names_of(points: Iterable[Point]) -> dict[str, str]:
    """Digest → the name of the run, after the first point that it belongs to."""
    names: dict[str, str] = {}
    for point in points:
        for seed, run in point.runs.items():
            names.setdefault(run.digest, f"{point.name}, seed {seed}")
    return names


def _ready(run: Run) -> bool:
    """Whether the run that it is after is done."""
    return run.after is None or _beginning(run) is not None


def _never(run: Run, names: Mapping[str, str], failed: Mapping[str, str]) -> str:
    """Why the run cannot be begun, now or later; empty: it can."""
    if run.after is None:
        return ""
    if why := failed.get(run.after.digest):
        return why if why.startswith(_NOT_BEGUN) else f"{_NOT_BEGUN} {names[run.after.digest]} failed"
    if (done := finished(run.after.folder)) and not _ready(run):
        return f"{_NOT_BEGUN} {done.path} has no checkpoint any more; delete that folder to make it anew"
    return ""


def _begin(run: Run, name: str, threads: int, lock: IO[str], bar: _Bar) -> list[_Underway]:
    """Begins the run, or goes on with it, in a process that holds the lock; empty: another process has made it."""
    with lock:
        if finished(run.folder):
            bar.advance(f"done    {name} by another process")
            return []
        place = _beginning(run)
        before = _to_resume(run, place)
        for left in _directories(run.folder):
            if left.resumable() is None:
                shutil.rmtree(left.path)  # ended before its first checkpoint: nothing in it to go on from
        settings = run.folder / "settings.yaml"
        atomic_write(settings, _begun_from(run.config, place).yaml())
        command = [*FIT, "--config", str(settings), *(["--resume", str(before.path)] if before else [])]
        environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
        with (run.folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, pass_fds=[lock.fileno()]
            )
        lock.truncate(0)
        lock.write(f"{process.pid}\n")
    bar.say(f"{'resumed' if before else 'begun  '} {name}: {run.folder}")
    return [_Underway(run, name, process, time.monotonic())]


def _to_resume(run: Run, place: Path | None) -> RunDirectory | None:
    """The part that was interrupted, unless the checkpoint that it began from has been made anew since, at `place`."""
    before = unfinished(run.folder)
    if before is None or place is None:
        return before
    own = load(before.config)
    section, _, key = INIT.partition(".")
    was = Path(own.values[section][key])
    if was.parts[-3:] != place.parts[-3:]:  # run, "checkpoints", name
        return None
    if was != place:  # the folder of the studies was moved, or is given in another way
        atomic_write(before.config, _begun_from(own, place).yaml())
    return before


def _end(underway: Sequence[_Underway]) -> None:
    for each in underway:
        each.process.terminate()
    deadline = time.monotonic() + _GRACE
    for each in underway:
        try:
            each.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            each.process.kill()
            each.process.wait()


def _last_words(folder: Path, code: int) -> str:
    lines = [line.strip() for line in (folder / "log.txt").read_text("utf-8", errors="replace").splitlines()]
    told = [line for line in lines if line and not line.startswith("crash: ")]  # where the traceback lies
    words = told[-1] if told else "it said nothing"
    return f"{words} (ended by signal {-code})" if code < 0 else words


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the fits too."""

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# Progress


def _left(took: Sequence[float], underway: Sequence[_Underway], waiting: int, jobs: int) -> float | None:
    """Seconds until all runs are made, judged by those that are."""
    if not took:
        return None
    mean = sum(took) / len(took)
    rest = [max(0.0, mean - (time.monotonic() - each.begun)) for each in underway]
    return max(max(rest, default=0.0), (sum(rest) + mean * waiting) / jobs)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


class _Bar:
    """A bar over runs, where there is a terminal, and a line about each run everywhere."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.task = progress, progress.add_task("", total=total)

    def say(self, line: str) -> None:
        self.progress.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def advance(self, line: str) -> None:
        self.say(line)
        self.progress.advance(self.task)

    def show(self, underway: Sequence[_Underway], left: float | None) -> None:
        time_left = "" if left is None else f"about {_clock(left)} left"
        names = " · ".join(each.name for each in underway)
        self.progress.update(self.task, description=f"{time_left}  {names}")


@contextmanager
def _bar(total: int) -> Iterator[_Bar]:
    console = get_console()
    columns = (
        TextColumn("runs"),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal or not total) as progress:
        yield _Bar(progress, total)
