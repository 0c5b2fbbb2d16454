"""What every command shares: exit codes, one-line errors, the list of methods and recipes. Imports nothing heavy."""

from __future__ import annotations

import argparse
import errno
import os
import platform
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zoo
from zoo import processes

if TYPE_CHECKING:
    from zoo.config import Config

UNWRITABLE = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.ESTALE)
EXIT_CODES = (
    "exit codes: 0 done, 2 usage, 3 data, 4 environment (memory, disk, devices), 5 a loss or gradient that is no "
    "number, 130 Ctrl-C, 143 SIGTERM, 1 crash"
)
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
RESUME = "go on with --resume auto"

DEFAULT_RECIPE = "phantom"


class UsageError(Exception):
    """The command or a setting is wrong; the message says what to write instead. Commands end with exit code 2."""


class EnvironmentFault(Exception):
    """The machine lacks something; the message says what. Commands end with exit code 4."""


class Diverged(Exception):
    """The loss or a gradient is no number; the message says where. Commands end with exit code 5."""


def configs_folder() -> Path:
    """Where the methods' folders lie: `$ZOO_CONFIGS`, or `configs/` beside the packages."""
    return Path(os.environ.get("ZOO_CONFIGS") or Path(zoo.__file__).parent.parent / "configs")


def methods() -> list[str]:
    """The methods: the folders of `configs/`."""
    folder = configs_folder()
    return sorted(path.name for path in folder.iterdir() if any(path.glob("*.yaml"))) if folder.is_dir() else []


def recipes(method: str) -> dict[str, Path]:
    """A method's recipes by name."""
    return {path.stem: path for path in sorted((configs_folder() / method).glob("*.yaml"))}


def ablations(method: str) -> dict[str, Path]:
    """A method's ablations by name."""
    return {path.stem: path for path in sorted((configs_folder() / method / "ablations").glob("*.yaml"))}


def first_comment(path: Path) -> str:
    """The description of a recipe or an ablation: its first comment line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ").strip() for line in lines if line.startswith("#")), "")


def overview() -> str:
    """Methods, recipes and ablations with a line about each, for `--help`."""
    lines = []
    for method in methods():
        lines.append(f"method {method}")
        for title, files in (("--recipe", recipes(method)), ("--with", ablations(method))):
            lines += [f"  {title} {name:<26} {first_comment(path)}" for name, path in files.items()]
    return "\n".join(lines) or f"no methods in {configs_folder()}"


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """A command's parser with the options that select a configuration."""
    known = ", ".join(methods())
    result = argparse.ArgumentParser(
        prog=f"python -m zoo.{command}",
        description=description,
        epilog=f"{overview()}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    result.set_defaults(prog=result.prog)
    result.add_argument("--method", help=f"one of: {known}")
    result.add_argument("--recipe", help=f"its recipe (default: {DEFAULT_RECIPE}, which needs no data, weights or GPU)")
    result.add_argument(
        "--with",
        dest="ablations",
        metavar="NAME|FILE",
        action="append",
        default=[],
        help="an ablation; may be repeated",
    )
    result.add_argument(
        "--config", type=Path, metavar="FILE", help="a run's config.yaml, in place of method and recipe"
    )
    result.add_argument("settings", nargs="*", metavar="key=value", help="settings, e.g. model.lr=1e-4 data.root=/data")
    return result


def print_recipe_of(argv: list[str]) -> None:
    """Prints the recipe that `--method` and `--recipe` name, comments and all, above its `--help`."""
    chosen = {flag: argv[argv.index(flag) + 1] for flag in ("--method", "--recipe") if flag in argv[:-1]}
    path = recipes(chosen.get("--method", "")).get(chosen.get("--recipe", DEFAULT_RECIPE))
    if path is not None and "--method" in chosen:
        print(f"{path}:\n\n{path.read_text(encoding='utf-8')}")


def configuration(arguments: argparse.Namespace, resume: str | None = None, allow_missing: bool = False) -> Config:
    """The configuration that a command's arguments select.

    Args:
        arguments: Of a `parser`.
        resume: What `--resume` named: a run brings its own configuration where no method is named.
        allow_missing: Whether required settings may be missing.

    Raises:
        UsageError: Everything that is wrong with it.
    """
    from zoo.config import compose, load
    from zoo.run_directory import run_of

    file = arguments.config
    if file is None and arguments.method is None and resume not in (None, "auto"):
        file = run_of(Path(resume)).config
    if file is not None:
        if arguments.method or arguments.recipe or arguments.ablations:
            raise UsageError(
                "a run's configuration names its method, recipe and ablations: leave out --method, --recipe, --with"
            )
        return load(file, arguments.settings, allow_missing)
    if arguments.method is None:
        raise UsageError(f"--method is missing; there are: {', '.join(methods())}")
    config = compose(
        arguments.method, arguments.recipe or DEFAULT_RECIPE, arguments.ablations, arguments.settings, allow_missing
    )
    if arguments.recipe is None:
        paper = f"{arguments.prog} --method {config.method} --recipe paper data.root=/path/to/the/dataset"
        say(f"Recipe {DEFAULT_RECIPE} (the default): needs no data, no weights and no GPU. For the paper's: {paper}")
    return config


def say(line: str) -> None:
    """Prints a line, once for all processes of a run."""
    if processes.rank() == 0:
        print(line, flush=True)


def run(body: Callable[[], None], again: str = "") -> int:
    """Runs a command's body and turns what it raises into an exit code and one line that says what to do.

    Args:
        body: The command.
        again: How it goes on after it was stopped; `RESUME` where it trains.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # before the hub's client is imported
    # Where it is installed, bitsandbytes and transformers fetch code from the hub by it, and run that.
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
    try:
        with _ended_by_sigterm():
            body()
    except SystemExit as stop:  # argparse; SIGTERM; Lightning, which turns an interrupt into it
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return _stopped(INTERRUPTED if isinstance(stop.__context__, KeyboardInterrupt) else code, again)
    except KeyboardInterrupt:
        return _stopped(INTERRUPTED, again)
    except Exception as error:
        return _explain(error, again)
    return 0


def on_sigterm(handler: Any) -> Any:
    """Sets what SIGTERM does and returns what it did; only the main thread may."""
    return signal.signal(signal.SIGTERM, handler) if threading.current_thread() is threading.main_thread() else None


def end_at_once(*_: object) -> None:
    """What SIGTERM does to a command that has nothing to save: the files that it was writing are not there."""
    raise SystemExit(TERMINATED)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    before = on_sigterm(end_at_once)
    try:
        yield
    finally:
        if before is not None:
            on_sigterm(before)


def _stopped(code: int, again: str) -> int:
    told = {INTERRUPTED: "interrupted", TERMINATED: "stopped by SIGTERM"}
    if code in told and processes.rank() == 0:
        print(f"{told[code]}{'; ' if again else ''}{again}", file=sys.stderr)
    return code


def _explain(error: Exception, again: str) -> int:
    from datamodules.study import DataFault, SettingsFault

    kinds = ((UsageError, 2), (SettingsFault, 2), (DataFault, 3), (EnvironmentFault, 4), (FileNotFoundError, 4))
    for kind, code in kinds:
        if isinstance(error, kind):
            # A loader's worker puts its traceback before the message.
            _tell(f"error: {str(error).rsplit(f'{kind.__name__}: ', 1)[-1].strip()}")
            return code
    if isinstance(error, Diverged):
        _tell(f"error: {error}")
        return 5
    if told := _of_the_machine(error, again):
        _tell(f"error: {told}")
        return 4
    if processes.lost_another(error):
        _tell("error: another process of this run has ended, so this one ends; that one has said why")
        return 1
    text = _without_quotes(traceback.format_exc())
    with tempfile.NamedTemporaryFile("w", prefix="zoo-crash-", suffix=".log", delete=False) as log:
        log.write(text)
    _tell(f"{text}\ncrash: this should not happen; the log is {log.name}")
    return 1


_FRAME = re.compile(r'[\s|]*File "')
_HEAD = re.compile(r"(Original )?Traceback |During handling |The above exception ")


def _without_quotes(trace: str) -> str:
    """A traceback whose messages end with an ellipsis where they begin to quote: that may be a report's text.

    Libraries quote the value that they stumble over (`KeyError: '…'`, `could not convert string to float: '…'`).
    """
    lines: list[str] = []
    quoting = source = False
    for line in trace.splitlines():
        frame = bool(_FRAME.match(line))
        quoting = quoting and not frame and not _HEAD.match(line)
        found = None if frame or source else re.search(r"(?<!\w)['\"]", line)
        if not quoting:
            lines.append(f"{line[: found.start()]}…" if found else line)
        quoting, source = quoting or bool(found), frame
    return "\n".join(lines)


def _tell(what: str) -> None:
    """Prints what went wrong: once, where it did so on all processes of a run, else with the process's place."""
    if processes.tells_failure():
        where = f"process {processes.rank()} on {platform.node()}: " if processes.rank() else ""
        print(where + what, file=sys.stderr)


OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator: .*|.*not enough memory.*|CUDA error: out of memory|.*_ALLOC_FAILED.*|Unable to allocate .*"
)
LOST_WORKER = re.compile(r"DataLoader worker \(pid.*?\) (is killed by signal: [\w ]+|exited unexpectedly)")


def _of_the_machine(error: Exception, again: str) -> str:
    """What the machine lacked, where an error tells of that, and what to do about it; else empty."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or text
    if found := LOST_WORKER.search(text):
        advice = "the machine had too little memory, or shared memory (/dev/shm): lower data.num_workers"
        return f"{found.group()}; {advice}{', then ' if again else ''}{again}"
    found = OUT_OF_MEMORY.search(text)
    if found or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        first = found.group() if found else (text.splitlines() or ["out of memory"])[0]
        settings = "Lower data.micro_batch_size (the effective batch stays) or, where it was validating or testing, "
        settings += f"data.eval_batch_size; then {RESUME}. --dry-run estimates the memory needed"
        return f"{first.rstrip('.')}. {settings if again == RESUME else 'Use a device or a machine with more memory'}"
    return ""
