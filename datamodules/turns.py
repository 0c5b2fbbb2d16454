"""Processes that would prepare the same data do it one after the other."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Waits while another process is in here with the same folder, on this machine or on one that shares the folder.

    The lock falls with the process that holds it. Where the file system knows none, or the folder cannot be written
    to, nothing is waited for.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((folder / ".preparing").open("ab"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process that prepares {folder}", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
