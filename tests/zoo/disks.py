"""Disks that are small or read-only, mounted for one process alone, so that nothing of them stays behind."""

import ctypes
import multiprocessing
import os
import shutil
import sys
from pathlib import Path

import pytest

NEW_USERS, NEW_MOUNTS = 0x10000000, 0x20000  # unshare
READ_ONLY, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 32, 4096, 16384, 1 << 18  # mount


def _own_mounts():
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(NEW_MOUNTS | (NEW_USERS if user else 0)) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    mount(None, Path("/"), None, RECURSIVE | PRIVATE)


def mount(source, place, kind, flags, options=None):
    """`mount(2)`."""
    texts = [None if text is None else str(text).encode() for text in (source, place, kind, options)]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]) != 0:
        raise OSError(ctypes.get_errno(), f"mount {place}")


def small_disk(place, size="4m"):
    """Makes a folder a disk of its own, in this process."""
    place.mkdir(exist_ok=True)
    _own_mounts()
    mount("tmpfs", place, "tmpfs", 0, f"size={size}")


def read_only(place):
    """Makes a folder read-only, for root too, in this process."""
    _own_mounts()
    mount(place, place, None, BIND)
    mount(None, place, None, BIND | REMOUNT | READ_ONLY)


def fill(place):
    """Leaves no free byte on the disk."""
    with (place / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 14))
        except OSError:
            pass


def in_child(body):
    """Runs `body` in a process of its own; returns the exit code that it returns."""
    process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(body()))
    process.start()
    process.join()
    return process.exitcode


def in_child_on_small_disk(place, body, size="4m"):
    """The same, on a small disk; what it left there lies in `<place>.left` afterwards, without the ballast."""

    def on_disk():
        small_disk(place, size)
        code = body()
        shutil.copytree(place, f"{place}.left", ignore=shutil.ignore_patterns("ballast"))
        return code

    return in_child(on_disk)


def mounts():
    """Whether this user may mount."""
    return in_child(lambda: _own_mounts() or 0) == 0


needs_mounts = pytest.mark.skipif(not mounts(), reason="needs to mount: run as root, or where user namespaces are free")
