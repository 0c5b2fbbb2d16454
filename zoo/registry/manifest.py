"""Reads `checkpoints/manifest.yaml`. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import zoo
from zoo.command import UsageError

FOLDER = Path(zoo.__file__).parent.parent / "checkpoints"


@dataclass(frozen=True)
class File:
    """What is known of a file; `None`: not published.

    Attributes:
        bytes: Its size.
        sha256: Its sum.
    """

    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Entry:
    """One name of the registry; the head of `manifest.yaml` explains its keys.

    Attributes:
        name: Its name.
        what: What it is, in a line.
        licence: Of the weights.
        gate: What must be accepted on the hub first; `None`: nothing.
        files: Path in the repository (or in the entry's folder) → what is known of it.
        patterns: Where the files are not listed: which of the repository's are wanted.
        hub: Repository on the hub (`owner/name`, `datasets/owner/name`).
        revision: Its commit; `None`: the newest.
        url: Of the entry's one file, where it is not on a hub.
        mirrors: Hubs, or addresses of folders, that hold the same.
        by_hand: What a person must do, where no program can.
        place: Where it goes: the hub's `cache`, `weights/`, or `here`: it is the project's own.
        method: Whose model it is; `None`: a part of one.
        recipe: The method's recipe that it was trained by.
        convert: `module:function` that renames a file's weights to the method's own.
        converted_to: The file that this gives, below `weights/`.
        needs: Other names that a recipe needs beside it.
    """

    name: str
    what: str
    licence: str
    gate: str | None = None
    files: Mapping[str, File] = field(default_factory=dict)
    patterns: tuple[str, ...] = ()
    hub: str | None = None
    revision: str | None = None
    url: str | None = None
    mirrors: tuple[str, ...] = ()
    by_hand: str | None = None
    place: Literal["cache", "weights", "here"] = "here"
    method: str | None = None
    recipe: str | None = None
    convert: str | None = None
    converted_to: str | None = None
    needs: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, bool]:
        """Bytes of its files as far as they are known, and whether that is all of them."""
        sizes = [file.bytes for file in self.files.values()]
        return sum(size or 0 for size in sizes), bool(sizes) and None not in sizes


def registry() -> dict[str, Entry]:
    """The entries by name."""
    import yaml

    content: dict[str, dict[str, Any]] = yaml.safe_load((FOLDER / "manifest.yaml").read_text("utf-8"))
    return {name: _entry(name, dict(values)) for name, values in content.items()}


def find(name: str) -> Entry:
    """The entry of that name.

    Raises:
        UsageError: There is none; with the nearest name.
    """
    from difflib import get_close_matches

    known = registry()
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"the registry has no {name!r}{hint} All names: python -m zoo.download --list")
    return known[name]


def _entry(name: str, values: dict[str, Any]) -> Entry:
    known = Entry.__dataclass_fields__
    values["what"] = values.get("what") or f"stands in for {values['stands_in_for']}"
    values["files"] = {file: File(**facts) for file, facts in values.get("files", {}).items()}
    for key in ("patterns", "mirrors", "needs"):
        values[key] = tuple(values.get(key, ()))
    return Entry(name, **{key: value for key, value in values.items() if key in known})
