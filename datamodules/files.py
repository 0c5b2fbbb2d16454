"""Files that are there whole or not at all, and words for those that are not what they should be."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_LFS = b"version https://git-lfs"
_PAGES = (b"<!doctype html", b"<html")


def put(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; an `OSError` names it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def stand_in(path: Path) -> str | None:
    """What stands in a file's place, and what to do about it; `None` where nothing says that it is not the file itself.

    Clones without Git LFS leave a pointer of a few lines, downloads without a login a web page, full disks nothing.
    """
    try:
        with path.open("rb") as file:
            start = file.read(256)
    except OSError:
        return None
    if start.startswith(_LFS):
        return "is a Git LFS pointer, not the file that it stands for; run `git lfs pull` there, or fetch it again"
    if start.lstrip().lower().startswith(_PAGES):
        return "is a web page, not the file that was asked for; log in and fetch it again"
    return None if start else "is empty; fetch it again"


def unreadable(path: Path, error: BaseException | str, kind: str = "") -> str:
    """One line about a file that could not be read: what it is, or what the reader says, and what to do.

    Args:
        path: The file.
        error: What its reader stumbled with; 200 characters of it at most.
        kind: What it was read as: `as an image`.
    """
    told = " ".join(str(error).split())[:200] or type(error).__name__
    read = f"cannot be read {kind}".rstrip()
    return f"{path}: {stand_in(path) or f'{read}, it is damaged or cut short ({told}); fetch it again'}"
