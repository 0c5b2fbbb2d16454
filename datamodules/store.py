"""A store of ready arrays: one safetensors file a study, built once, resumable, read through memory mapping.

An item counts only under its final name, which it gets after it was written wholly; a build that was killed goes on
with what is missing. An item carries a key made of the preprocessor's settings and the study's files, so that a
changed file or setting makes a new item. Once they are many, items are packed into shards (`store_shards`).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    track,
)
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch.utils.data import DataLoader, Dataset

from datamodules.faults import Fault
from datamodules.store_shards import PackedItem, find_packed, load_single, pack, put
from datamodules.study import DataFault, Study

if TYPE_CHECKING:
    from datamodules.report_datamodule import Preprocessor

_HOST = platform.node()  # process numbers mean something on one machine only
_FORMAT = 1  # raise when an item's meaning changes
_FEW = 256  # so many items stay single files
_SHARD_ITEMS, _SHARD_BYTES = 1024, 512 * 2**20
Inspect = Callable[[Study], tuple[Study, list[Fault]]]


class Store:
    """Ready arrays of studies, for one preprocessor's settings.

    Args:
        parent: Folder below which the store's own folder lies.
        settings: All that the arrays depend on besides the studies' files; names the store's folder.

    Attributes:
        folder: The store's own folder, `<parent>/<fingerprint>`.
    """

    def __init__(self, parent: Path, settings: dict[str, Any]) -> None:
        self.settings = json.dumps({"format": _FORMAT, **settings}, sort_keys=True)
        self.folder = parent / hashlib.sha256(self.settings.encode()).hexdigest()[:16]

    def path(self, study: Study) -> Path:
        """Where the study's item lies, or would lie, while it is not packed."""
        return self.folder / f"{_name(study)}.safetensors"

    def holds(self, study: Study) -> bool:
        """Whether there is an item, without asking whether its files have changed since.

        A packed item cannot be taken out when its files turn bad, so it is asked: it counts while they are unchanged.
        """
        if self.path(study).is_file():
            return True
        packed = self._packed(study)
        return packed is not None and packed.key == self.key(study)

    def load(self, study: Study) -> dict[str, np.ndarray]:
        """The arrays, mapped from the file: what is not used is not read, and writing to them changes no file.

        Those of a packed item are read-only.

        Raises:
            DataFault: There is no item, or it cannot be read.
        """
        path = self.path(study)
        try:
            single = load_single(path)
            if single is not None:
                return single
            if packed := self._packed(study):
                path = packed.path
                return packed.arrays()
        except SafetensorError as error:
            raise DataFault(f"{path}: cannot be read ({error}); delete it and prepare the data again") from None
        raise DataFault(f"{path}: {study.id} is not in the store; prepare the data first")

    def _packed(self, study: Study) -> PackedItem | None:
        return find_packed(self.folder, _name(study))

    def key(self, study: Study) -> str:
        """Of the settings and of what the study's files hold."""
        files = {name: _trace(file) for name, file in sorted(study.files.items())}
        return hashlib.sha256(json.dumps([self.settings, study.id, files]).encode()).hexdigest()

    def ready(self, study: Study) -> list[Fault] | None:
        """The faults noted when the item was made; `None` when there is no item or its files have changed since."""
        key, faults = None, "[]"
        try:
            with safe_open(self.path(study), framework="np") as item:
                notes = item.metadata() or {}
                key, faults = notes.get("key"), notes.get("faults", faults)
        except FileNotFoundError:
            if packed := self._packed(study):
                key, faults = packed.key, packed.faults
        except (SafetensorError, OSError):
            return None
        return [Fault(**fault) for fault in json.loads(faults)] if key == self.key(study) else None

    def build(
        self,
        studies: Sequence[Study],
        preprocessor: Preprocessor,
        inspect: Inspect,
        workers: int = 0,
        title: str = "preparing",
        progress: bool = True,
    ) -> list[Fault]:
        """Makes every item that is not there yet, then packs them; good items stay whatever happens to others.

        Args:
            studies: Studies without pixels.
            preprocessor: Makes the arrays.
            inspect: Reads a study's pixels and says what is wrong with it.
            workers: Processes that work side by side; 0 works in this one.
            title: Stands before the progress bar.
            progress: Show the bar.

        Returns:
            What is wrong with the studies, those made earlier included. A study with a fatal fault has no item.

        Raises:
            OSError: The folder cannot be written, or the disk is full.
        """
        faults: list[Fault] = []
        missing: list[Study] = []
        quick = len(studies) < 500
        for study in track(studies, "checking the store", transient=True, disable=quick or not progress):
            noted = self.ready(study)
            faults += noted or []
            if noted is None:
                missing.append(study)
        if missing:
            faults += self._make(missing, preprocessor, inspect, workers, title, progress)
        pack(self.folder, self.settings, _FEW, _SHARD_ITEMS, _SHARD_BYTES, progress)
        return faults

    def _make(
        self,
        missing: Sequence[Study],
        preprocessor: Preprocessor,
        inspect: Inspect,
        workers: int,
        title: str,
        progress: bool,
    ) -> list[Fault]:
        """Makes items; arguments and errors are those of `build`."""
        faults: list[Fault] = []
        self._open_folder()
        groups = _together(missing)
        loader = DataLoader(_Items(self, groups, preprocessor, inspect), batch_size=None, num_workers=workers)
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn())
        with Progress(TextColumn("{task.description}"), *columns, disable=not progress) as bar:
            task = bar.add_task(title, total=len(missing))
            for count, made in enumerate(chain.from_iterable(loader), start=1):
                if made.error is not None:
                    raise OSError(made.errno, made.error)
                faults += made.faults
                bar.advance(task)
                if count == 1:
                    self._check_space(made.size, len(missing) - 1)
        return faults

    def _open_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "settings.json").write_text(self.settings + "\n", encoding="utf-8")
            for left in self.folder.glob(f".*.safetensors.{_HOST}-*.partial"):
                if not _alive(int(left.stem.rsplit("-", 1)[1])):
                    left.unlink(missing_ok=True)
        except OSError as error:
            advice = "set data.store to a folder that can be written, or data.store=null to do without"
            raise OSError(error.errno, f"{self.folder}: {error.strerror}; {advice}") from None

    def _check_space(self, size: int, items: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if size * items > free:
            need = f"the store needs {size * items / 1e9:.1f} GB more, the disk has {free / 1e9:.1f} GB"
            raise OSError(errno.ENOSPC, f"{self.folder}: {need}; free some space or set data.store elsewhere")

    def write(self, study: Study, arrays: dict[str, np.ndarray], faults: list[Fault]) -> int:
        """Writes one item; returns its size in bytes."""
        path = self.path(study)
        partial = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}.partial")
        noted = json.dumps([asdict(fault) for fault in faults])
        notes = {"key": self.key(study), "faults": noted, "made_with": made_with()}
        try:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial, metadata=notes)
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            size = partial.stat().st_size
            put(partial, path)
        except (OSError, SafetensorError) as error:
            full = isinstance(error, OSError) and error.errno == errno.ENOSPC or "No space left" in str(error)
            code = errno.ENOSPC if full else getattr(error, "errno", None) or errno.EIO
            reason = "the disk is full" if full else str(error)
            advice = "what is done is kept; free some space or set data.store elsewhere, then run the command again"
            raise OSError(code, f"{path}: {reason}; {advice}") from None
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        return size


@dataclass(frozen=True)
class _Made:
    """What became of one item; errors travel as text, for an exception loses its shape between processes."""

    faults: list[Fault]
    size: int = 0
    error: str | None = None
    errno: int = 0


@cache
def made_with() -> str:
    """Versions of the libraries whose arithmetic is in the arrays, for the headers; a new one makes no item stale."""
    tools = ("numpy", "scipy", "pillow", "torch", "torchvision", "transformers", "monai")
    return ", ".join(f"{tool} {version(tool)}" for tool in tools)


def _name(study: Study) -> str:
    """The item's name."""
    return quote(study.id, safe=" ")


def _together(studies: Sequence[Study]) -> list[list[Study]]:
    """Neighbours that are made of the same files: one process makes them all, so that what they share is read once."""
    return [list(group) for _, group in groupby(studies, key=lambda study: study.files or study.id)]


class _Items(Dataset):
    """Asking for group *i* makes its items: so the loader's workers build the store."""

    def __init__(self, store: Store, groups: list[list[Study]], preprocessor: Preprocessor, inspect: Inspect) -> None:
        self.store, self.groups, self.preprocessor, self.inspect = store, groups, preprocessor, inspect

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> list[_Made]:
        return [self._make(study) for study in self.groups[index]]

    def _make(self, study: Study) -> _Made:
        arrays: dict[str, np.ndarray] = {}
        faults: list[Fault] = []
        try:
            full, faults = self.inspect(study)
            if not any(fault.fatal for fault in faults):
                arrays = self.preprocessor.arrays(full)  # a mask may be decoded, and found broken, only here
        except DataFault as fault:
            faults = [*faults, Fault(study.id, str(fault))]
        if any(fault.fatal for fault in faults):
            self.store.path(study).unlink(missing_ok=True)  # of an earlier, better state of the files
            return _Made(faults)
        try:
            return _Made(faults, self.store.write(study, arrays, faults))
        except OSError as error:
            return _Made(faults, error=error.strerror or str(error), errno=error.errno or errno.EIO)


def _trace(file: Path) -> list[Any]:
    """Says whether a file is still the same. A gzip file ends in the checksum and length of its content, which, unlike
    the time of change, outlives a copy to another machine."""
    try:
        state = file.stat()
        if file.suffix != ".gz":
            return [file.name, state.st_size, state.st_mtime_ns]
        with file.open("rb") as stream:
            stream.seek(max(0, state.st_size - 8))
            return [file.name, state.st_size, stream.read(8).hex()]
    except OSError:
        return [file.name, None]


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
