"""Refuses every way out of this machine and writes down who asked, in this process and in those forked from it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_NAMES = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")
_SENDING = ("socket.connect", "socket.sendto", "socket.sendmsg")
_HERE = ("", "localhost", "::1", "0.0.0.0", "::")
_record: list[Path] = []  # where it is written down; empty while everything may pass


@contextmanager
def no_network(record: Path) -> Iterator[Path]:
    """Python's own audit tells of each call, below every library and whatever becomes of the error that it gets.

    Args:
        record: The file that gets a line for each try, also for those that a library keeps to itself. Yielded, empty.
    """
    record.touch()
    _install()
    _record.append(record)
    try:
        yield record
    finally:
        _record.pop()


@cache
def _install() -> None:
    """For the life of the process: Python takes no hook back."""
    sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple) -> None:
    if not _record or event not in (*_NAMES, *_SENDING):
        return
    place = arguments[1] if event in _SENDING else arguments[0]
    if event in _SENDING and not isinstance(place, tuple):  # a socket's file; or sending on what was connected before
        return
    host = place[0] if isinstance(place, tuple) else place
    host = host.decode() if isinstance(host, bytes) else host or ""
    if host in _HERE or host.startswith("127."):
        return
    with _record[-1].open("a") as file:
        file.write(f"{os.getpid()} {event} {place}\n")
    raise ConnectionRefusedError(f"no network in this test: {event} {place}")
