"""Brings an entry of the registry to this machine, from a hub, an address or a folder; checked, and no code run."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

from datamodules.study import DataFault
from zoo.command import EnvironmentFault, UsageError
from zoo.registry import hub, manifest
from zoo.registry.manifest import Entry, File
from zoo.registry.transfer import Report, Source, transfer, verify
from zoo.run_directory import atomic_write

WEIGHTS = Path("weights")  # where recipes look for files
Result = TypeVar("Result")
PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".torch")
Progress = Callable[[str], Report]  # a file's name → what is called as it comes


@dataclass
class Fetched:
    """What is on this machine now.

    Attributes:
        files: Name → where it lies.
        sums: Name → its sha256.
        commit: Of the repository that it came from; empty where it came from none.
        unknown: Files that nothing was known of to compare them with.
    """

    files: dict[str, Path] = field(default_factory=dict)
    sums: dict[str, str] = field(default_factory=dict)
    commit: str = ""
    unknown: list[str] = field(default_factory=list)

    def add(self, name: str, path: Path, source: Source, sha256: str) -> None:
        self.files[name], self.sums[name] = path, sha256
        if not source.known:
            self.unknown.append(name)


def fetch(
    entry: Entry, progress: Progress, to: Path | None = None, folder: Path | None = None, mirrors: Sequence[str] = ()
) -> Fetched:
    """Brings all files of an entry, and refuses those that hold code.

    Args:
        entry: Of the registry.
        progress: See `Progress`.
        to: The folder to put them in; `None`: where recipes look (`Entry.place`).
        folder: Take them from this folder (a copy for a machine without a network) and ask no server.
        mirrors: Hubs, or addresses of folders, that are asked first, in order.

    Raises:
        DataFault: A file is another one than it should be, holds code, or is nowhere.
        EnvironmentFault: The network, a gate or the disk is in the way.
        UsageError: Only a person can fetch it.
    """
    if entry.place == "here" and entry.files:
        found = Fetched(commit="")
        for name, fact in entry.files.items():
            path = manifest.FOLDER / entry.name / name
            found.add(name, path, *_checked(path, fact, progress(name)))
        return found
    if folder is not None:
        found = _from_folder(entry, progress, to or WEIGHTS, folder)
    elif entry.by_hand:
        raise UsageError(f"{entry.name}: {entry.by_hand}")
    elif entry.hub and hub.offline() and entry.place == "weights":
        found = _from_folder(entry, progress, to or WEIGHTS, to or WEIGHTS)
    elif entry.hub and hub.offline():
        found = Fetched()
        for name, path in hub.cached(entry).items():
            found.add(name, path, *_checked(path, entry.files.get(name, File()), progress(name)))
    elif entry.hub:
        found = _from_hub(entry, progress, to, [*mirrors, *entry.mirrors, hub.default_endpoint()])
    else:
        found = _from_addresses(entry, progress, to or WEIGHTS, [*mirrors, *entry.mirrors])
    for path in found.files.values():
        refuse_code(path)
    if folder is not None or to is not None or entry.place == "weights":
        lines = [f"{found.sums[name]}  {path.relative_to(to or WEIGHTS)}" for name, path in found.files.items()]
        atomic_write((to or WEIGHTS) / f"{entry.name}.sha256", "\n".join(lines) + "\n")
    return found


def refuse_code(path: Path) -> None:
    """Throws a pickle away that is more than tensors and plain containers. Nothing of it is run.

    Raises:
        DataFault: It is one, with the names that it would have called; or it cannot be read.
    """
    if path.suffix not in PICKLED:
        return
    import torch

    zipped = zipfile.is_zipfile(path)
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        return
    except pickle.UnpicklingError:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
        called = f" ({', '.join(sorted(names)[:5])})" if names else ""
        why = f"it holds more than weights{called}: a pickle may run code. Nothing of it was run"
    except Exception as error:  # torch raises a dozen kinds for a broken file
        why = f"it cannot be read as weights ({type(error).__name__})"
    path.resolve().unlink()
    path.unlink(missing_ok=True)  # the hub's cache points to it
    raise DataFault(f"{path.name}: refused, {why}; it was thrown away")


def _destination(entry: Entry, name: str, root: Path) -> Path:
    """Loose files lie where recipes look for them, those of a model in a folder of its own."""
    loose = entry.place == "weights" and not entry.convert
    return root / Path(name).name if loose else root / entry.name / name


def _checked(path: Path, fact: File, report: Report) -> tuple[Source, str]:
    """A file that is here; compared with what is known of it."""
    if not path.is_file():
        raise DataFault(f"{path} is missing; fetch the repository anew")
    source = Source(str(path), path, fact.bytes, fact.sha256)
    return source, verify(source, path, report)


def _from_folder(entry: Entry, progress: Progress, root: Path, folder: Path) -> Fetched:
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder to take {entry.name} from")
    noted = folder / f"{entry.name}.sha256"
    lines = [line.split("  ", 1) for line in noted.read_text("utf-8").splitlines()] if noted.is_file() else []
    sums = {name: sha256 for sha256, name in lines}
    found = Fetched()
    for name, path in _lying(entry, folder).items():
        fact = entry.files.get(name, File())
        sha256 = fact.sha256 or sums.get(str(_destination(entry, name, folder).relative_to(folder)))
        source = Source(str(path), path, fact.bytes or path.stat().st_size, sha256)
        place = _destination(entry, name, root)
        found.add(name, place, source, transfer(source, place, progress(name)))
    return found


def _lying(entry: Entry, folder: Path) -> dict[str, Path]:
    """The entry's files in a folder: as `--to` lays them out, or side by side."""
    if not entry.files:
        own = folder / entry.name if (folder / entry.name).is_dir() else folder
        here = [path for path in sorted(own.iterdir()) if any(fnmatch(path.name, like) for like in entry.patterns)]
        if not here:
            raise DataFault(f"{own} holds none of {', '.join(entry.patterns)}")
        return {path.name: path for path in here}
    found = {}
    for name in entry.files:
        places = (_destination(entry, name, folder), folder / name, folder / Path(name).name)
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise DataFault(f"{folder} lacks {name} of {entry.name} (nor is there {places[0]})")
        found[name] = path
    return found


def _from_hub(entry: Entry, progress: Progress, to: Path | None, endpoints: Sequence[str]) -> Fetched:
    found = Fetched()
    root = to or (WEIGHTS if entry.place == "weights" else None)
    for name in _first_that_gives(endpoints, lambda endpoint: hub.names_of(entry, endpoint)):

        def bring(endpoint: str, name: str = name) -> None:
            source, commit = hub.source_of(entry, name, endpoint)
            blob = None if root else hub.blob(entry, source)
            place = _destination(entry, name, root or WEIGHTS) if blob is None else blob
            sha256 = transfer(source, place, progress(name))
            path = place if blob is None else hub.enter(entry, name, endpoint, commit)
            found.add(name, path, source, sha256)
            found.commit = commit

        _first_that_gives(endpoints, bring)
    return found


def _from_addresses(entry: Entry, progress: Progress, root: Path, mirrors: Sequence[str]) -> Fetched:
    found = Fetched()
    for name, fact in entry.files.items():

        def bring(address: str, name: str = name, fact: File = fact) -> None:
            source = Source(f"{name} ({address.split('?')[0]})", address, fact.bytes, fact.sha256)
            place = _destination(entry, name, root)
            found.add(name, place, source, transfer(source, place, progress(name)))

        _first_that_gives([*(f"{mirror.rstrip('/')}/{name}" for mirror in mirrors), entry.url or ""], bring)
    return found


def _first_that_gives(places: Iterable[str], ask: Callable[[str], Result]) -> Result:
    """Asks one place after another.

    Raises:
        DataFault: None gives it, and one gave something wrong.
        EnvironmentFault: None gives it.
    """
    failures: list[DataFault | EnvironmentFault] = []
    for place in dict.fromkeys(places):
        try:
            return ask(place)
        except (DataFault, EnvironmentFault) as error:
            failures.append(error)
    kind = DataFault if any(isinstance(error, DataFault) for error in failures) else EnvironmentFault
    raise kind("; ".join(str(error) for error in failures)) from failures[-1]
