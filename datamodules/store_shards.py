"""Shards: the items of a store packed into few files, for hundreds of thousands of them are slow to list and to copy.

A shard is a safetensors file `shards/shard-<number>.safetensors` in the store's folder. It holds the tensors
`<item>/<array>` and, in its header, the store's settings, the libraries that made the arrays, and the key and faults of
each item. It is never changed once it has its name. What is newer wins: a file of a single item over every shard, a
shard over those of lower numbers.

Packing writes a shard wholly, on disk, under its final name, before the files that it was made of are deleted, so that
every item is there at any moment; whoever looks for a single file first, then for a shard, finds it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, lru_cache
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

import numpy as np
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

_SUFFIX = ".safetensors"
_NAME = "shard-{}" + _SUFFIX
_FRESH = 100_000_000  # nanoseconds, longer than the tick of a file system's clock


class _Packed(NamedTuple):
    """What a shard's header says of an item."""

    key: str
    faults: str
    arrays: tuple[str, ...]


class _Shard(NamedTuple):
    path: Path
    changed: int
    items: dict[str, _Packed]


class PackedItem:
    """One item of a shard.

    Attributes:
        path: The shard.
        key: As `Store.key` gave it when the item was made.
        faults: The faults noted then, JSON.
    """

    def __init__(self, shard: _Shard, name: str) -> None:
        self.path, self._changed, self._name = shard.path, shard.changed, name
        self.key, self.faults, self._arrays = shard.items[name]

    def arrays(self) -> dict[str, np.ndarray]:
        """Mapped from the shard, read-only: the mapping outlives the caller, and the next one is to find no changes.

        Raises:
            SafetensorError: The shard cannot be read.
        """
        file = _open(self.path, self._changed, os.getpid())
        arrays = {name: file.get_tensor(f"{self._name}/{name}").numpy() for name in self._arrays}
        for array in arrays.values():
            array.flags.writeable = False
        return arrays


def load_single(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a single item, mapped from its file; `None` where there is none, or no longer.

    Raises:
        SafetensorError: The file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as item:  # torch's tensors are mapped, numpy's would be copied
            return {name: item.get_tensor(name).numpy() for name in item.keys()}  # noqa: SIM118  # no mapping
    except FileNotFoundError:
        return None
    except RuntimeError:
        if path.exists():
            raise
        return None  # torch opens the file once more, and between the two it was packed


def find_packed(folder: Path, name: str) -> PackedItem | None:
    """The newest packed item of that name in a store's folder."""
    for shard in _shards(folder / "shards"):
        if name in shard.items:
            return PackedItem(shard, name)
    return None


def _shards(folder: Path) -> Sequence[_Shard]:
    """The newest first; one that cannot be read counts for nothing, so that its items are made again."""
    try:
        changed = folder.stat().st_mtime_ns
    except OSError:
        return ()
    # A folder that changed just now may change again without its time telling.
    return _list(folder, changed) if time.time_ns() - changed > _FRESH else _list.__wrapped__(folder, changed)


@lru_cache(maxsize=8)
def _list(folder: Path, _changed: int) -> Sequence[_Shard]:
    paths = sorted(folder.glob(_NAME.format("[0-9]*")), key=_number, reverse=True)
    shards = [_read(path, path.stat().st_mtime_ns) for path in paths]
    return [shard for shard in shards if shard is not None]


@cache
def _read(path: Path, changed: int) -> _Shard | None:
    try:
        with safe_open(path, framework="np") as file:
            notes = json.loads((file.metadata() or {}).get("items", "{}"))
    except (SafetensorError, OSError):
        return None
    items = {}
    once: dict[tuple[str, ...], tuple[str, ...]] = {}  # items of one method have mostly the same arrays, and no faults
    for name, note in notes.items():
        arrays = tuple(note["arrays"])
        items[name] = _Packed(note["key"], intern(note["faults"]), once.setdefault(arrays, arrays))
    return _Shard(path, changed, items)


@cache
def _open(path: Path, _changed: int, _process: int) -> Any:
    """Kept open: its header is longer than an item. Each process opens its own."""
    return safe_open(path, framework="pt").__enter__()


def pack(folder: Path, settings: str, few: int, shard_items: int, shard_bytes: int, progress: bool) -> None:
    """Moves the single items of a store's folder into shards, where there are more than a few.

    Two processes do not pack at once: the later one leaves it to the first. An item that is made anew meanwhile stays.
    Where the disk has no room for one more shard, or the folder cannot be locked, items stay single and serve as well.

    Args:
        folder: The store's folder.
        settings: The store's settings, for the headers.
        few: So many single items are left as they are.
        shard_items: Items in a shard at most.
        shard_bytes: Bytes in a shard at most; an item that is larger has a shard of its own.
        progress: Show a bar.

    Raises:
        OSError: A shard cannot be written.
    """
    if len(list(folder.glob(f"*{_SUFFIX}"))) <= few:
        return
    shards = folder / "shards"
    with suppress(OSError):
        shards.mkdir(exist_ok=True)
    with _locked(shards / ".packing", wait=False) as alone:
        if not alone:
            return
        for left in shards.glob(".*.partial"):  # by a packer that was killed
            left.unlink()
        singles = sorted(folder.glob(f"*{_SUFFIX}"))
        with Progress(transient=True, disable=not progress) as bar:
            task = bar.add_task("packing the store", total=len(singles))
            for group in _groups(singles, shard_items, shard_bytes):
                number = 1 + max((_number(path) for path in shards.glob(_NAME.format("[0-9]*"))), default=-1)
                if not _pack(group, shards / _NAME.format(f"{number:05}"), settings):
                    return
                bar.advance(task, len(group))


def _groups(singles: Sequence[Path], items: int, size: int) -> Iterator[list[Path]]:
    group: list[Path] = []
    total = 0
    for path in singles:
        try:
            length = path.stat().st_size
        except FileNotFoundError:  # its study turned bad meanwhile
            continue
        if group and (len(group) == items or total + length > size):
            yield group
            group, total = [], 0
        group.append(path)
        total += length
    if group:
        yield group


def _pack(singles: list[Path], shard: Path, settings: str) -> bool:
    """Makes one shard and deletes what it was made of; says whether there was room for it."""
    arrays: dict[str, np.ndarray] = {}
    items: dict[str, Any] = {}
    made_of: dict[Path, tuple[int, int]] = {}
    made_with: set[str] = set()
    for path in singles:
        with suppress(SafetensorError, FileNotFoundError):  # one that is broken will be made again
            state = _state(path)  # before it is opened: if it is made anew meanwhile, the new one will differ
            with safe_open(path, framework="np") as item:
                notes = item.metadata() or {}
            if "key" in notes and (single := load_single(path)) is not None:
                name = path.name.removesuffix(_SUFFIX)
                arrays |= {f"{name}/{array}": values for array, values in single.items()}
                items[name] = {"key": notes["key"], "faults": notes["faults"], "arrays": sorted(single)}
                made_of[path] = state
                made_with.add(notes.get("made_with", "unknown"))
    if shutil.disk_usage(shard.parent).free < sum(array.nbytes for array in arrays.values()):
        return False
    if not items:
        return True
    partial = shard.with_name(f".{shard.name}.partial")
    try:
        header = {"settings": settings, "made_with": "; ".join(sorted(made_with)), "items": json.dumps(items)}
        save_file(arrays, partial, metadata=header)
        _flush(partial)
        partial.replace(shard)
        _flush(shard.parent)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC or "No space left" in str(error):
            return False
        raise OSError(getattr(error, "errno", None) or errno.EIO, f"{shard}: cannot be written ({error})") from None
    for path, state in made_of.items():
        with _locked(shard.parent / ".naming"), suppress(FileNotFoundError):
            if _state(path) == state:
                path.unlink()
    return True


def put(partial: Path, path: Path) -> None:
    """Gives a single item its name, but not between a packer's look at the old one and its deletion."""
    with _locked(path.parent / "shards" / ".naming"):
        partial.replace(path)


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Holds a lock among processes, which falls with its holder; says whether there was one to be had."""
    with ExitStack() as stack:
        got = False
        with suppress(OSError):  # there are no shards, the folder is read-only, it knows no locks, or another holds it
            file = stack.enter_context(path.open("ab"))
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            got = True
        yield got


def _number(shard: Path) -> int:
    return int(shard.name.removeprefix("shard-").removesuffix(_SUFFIX))


def _state(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_ino, state.st_mtime_ns


def _flush(path: Path) -> None:
    """Brings a file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
