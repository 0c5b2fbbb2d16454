"""What is wrong in a dataset, named with its file, and what is done about it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from datamodules.study import DataFault

_SHOWN = 20


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        study_id: The study that it touches; empty when it touches a whole file.
        what: One line that names the file.
        fatal: Whether the study cannot be used at all. A fault that is not fatal costs the study one region, or a line.
        reference: Whether there is still a report to be compared with. A fatal fault without one (a volume that no
            report row names) takes nothing away from an evaluation.
    """

    study_id: str
    what: str
    fatal: bool = True
    reference: bool = True


def complain(faults: Sequence[Fault], hint: str = "") -> DataFault:
    """One error that names every fault, a line each (the first 20 of many)."""
    lines = [f"{len(faults)} fault{'s' if len(faults) > 1 else ''} in the data:" if len(faults) > 1 else ""]
    lines += [fault.what for fault in faults[:_SHOWN]]
    if len(faults) > _SHOWN:
        lines.append(f"… and {len(faults) - _SHOWN} more")
    if hint:
        lines.append(hint)
    return DataFault("\n".join(line for line in lines if line))


def shown(value: object, most: int = 12) -> str:
    """A table's value as a message may have it: quoted if it is one word of so many characters; else it may be text."""
    text = str(value)
    return repr(text) if len(text) <= most and len(text.split()) <= 1 else f"(a text of {len(text)} characters)"


def write_faults(path: Path, split_of: dict[str, str], faults: Iterable[Fault]) -> None:
    """Writes one JSON line a fault: `id`, `split`, `what`, and whether the study was dropped."""
    lines = []
    for fault in faults:
        row = asdict(fault)
        row = {"id": row["study_id"], "split": split_of.get(fault.study_id), "what": fault.what, "dropped": fault.fatal}
        lines.append(json.dumps(row, ensure_ascii=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write("".join(line + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
