"""Systems to compare: runs, submissions, per-study tables and predictions files, read into per-study tables."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from zoo.command import UsageError
from zoo.leaderboard.submission import read_submission
from zoo.metrics.per_study import StudyTable, read_table, table_of
from zoo.metrics.protocols import PROTOCOLS

IN_RUN = ("per_study.csv", "predictions.jsonl")  # files that every run has, so that the folder names them


@dataclass(frozen=True, eq=False)
class Run:
    """One run's per-study table.

    Attributes:
        table: The studies' statistics.
        source: The file or folder that it comes from.
        hashed: Whether the table's ids are hashes already, as in a submission.
        references: Study id → hash of its reference report, where the texts are at hand.
        phantom: Whether the studies are the phantom's, as far as files beside the table say so.
    """

    table: StudyTable
    source: str
    hashed: bool = False
    references: Mapping[str, str] = field(default_factory=dict)
    phantom: bool = False


@dataclass(frozen=True, eq=False)
class System:
    """A method: one run, or several that differ in their seed."""

    name: str
    runs: tuple[Run, ...]


def load_systems(sources: Sequence[str], protocol: str | None = None) -> list[System]:
    """The systems that the arguments of `--compare` name.

    Args:
        sources: For each system a run folder, a submission folder, a per-study table, or a predictions file, which is
            scored now; several runs of a system are separated by commas, or named by a pattern (`runs/reg2rg-*`).
        protocol: How predictions files are scored.

    Raises:
        UsageError: There is no such file or folder, or a predictions file comes without a protocol.
        DataFault: A file's content is at fault.
    """
    paths = [_paths(source) for source in sources]
    scored = {path: load_run(path, protocol) for path in dict.fromkeys(path for group in paths for path in group)}
    names = _names(paths)
    return [System(name, tuple(scored[path] for path in group)) for name, group in zip(names, paths, strict=True)]


def load_run(path: Path, protocol: str | None = None) -> Run:
    """One run; see `load_systems`."""
    file = path
    if path.is_dir():
        file = next((path / name for name in IN_RUN if (path / name).is_file()), path / IN_RUN[0])
        if not file.is_file():
            raise UsageError(f"{path}: no per_study.csv in it; name a run folder, a submission or a predictions file")
    if not file.is_file():
        raise UsageError(f"{path}: there is no such file or folder")
    folder = file.parent if file.name in IN_RUN else None
    hashed = folder is not None and (folder / "submission.json").is_file()
    if folder and hashed:
        read_submission(folder)  # refuses one that does not agree with itself
    with file.open("rb") as opened:
        is_table = opened.read(11) == b"# protocol "
    if is_table:
        references = _references(folder / "predictions.jsonl") if folder and not hashed else {}
        run = Run(read_table(file), str(path), hashed, references)
    elif protocol is None:
        raise UsageError(f"{path} is a predictions file: say with --protocol how to score it")
    else:
        run = _score(file, protocol)
    return replace(run, source=str(path), phantom=folder is not None and _is_phantom(folder))


def _is_phantom(folder: Path) -> bool:
    found = next((folder / name for name in ("submission.json", "metrics.json") if (folder / name).is_file()), None)
    return found is not None and bool(json.loads(found.read_text("utf-8")).get("phantom"))


def _paths(source: str) -> list[Path]:
    if Path(source).exists():
        return [Path(source)]
    found: list[Path] = []
    for part in filter(None, (part.strip() for part in source.split(","))):
        pattern, root = Path(part), Path(Path(part).anchor)
        is_pattern = not pattern.exists() and any(sign in part for sign in "*?[")
        matches = sorted(root.glob(str(pattern.relative_to(root)))) if is_pattern else [pattern]
        if not matches:
            raise UsageError(f"{part}: no file or folder fits this pattern")
        found += matches
    if not found:
        raise UsageError(f"{source!r} names no system")
    twice = [str(path) for path, times in Counter(path.resolve() for path in found).items() if times > 1]
    if twice:
        raise UsageError(f"{twice[0]} is named twice as a run of one system; name each run once")
    return found


def _names(groups: Sequence[Sequence[Path]]) -> list[str]:
    """A short name for each system; the folder above goes before it where two would have the same."""
    for depth in (1, 2, 3):
        names = [_name(["/".join(_place(path).parts[-depth:]) for path in group]) for group in groups]
        if len(set(names)) == len(names):
            return names
    raise UsageError(f"a system is named twice: {max(names, key=names.count)}; name each once")


def _place(path: Path) -> Path:
    """What a path is called by: a file that has the same name in every folder, by its folder."""
    path = path.resolve()
    if path.is_dir():
        return path
    return path.parent if path.name in IN_RUN else path.with_suffix("")


def _name(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    return f"{os.path.commonprefix(list(names)).rstrip(' -_./') or names[0]} ({len(names)} runs)"


def _score(path: Path, protocol: str) -> Run:
    from zoo.evaluate import KNOWN_COLUMNS
    from zoo.metrics.engine import evaluate
    from zoo.metrics.predictions import read_predictions

    if protocol not in PROTOCOLS:
        raise UsageError(f"there is no protocol {protocol!r}; choose from {', '.join(PROTOCOLS)}")
    _, rows = read_predictions(path, (None, None, None), KNOWN_COLUMNS)
    ids, references, predictions = zip(*rows, strict=True)
    result = evaluate(references, predictions, ids, protocol, resamples=0, per_study=True, progress=True)
    return Run(table_of(ids, result), str(path), references={study: _hash(text) for study, text, _ in rows})


def _references(path: Path) -> dict[str, str]:
    """Study id → hash of its reference, from a run's predictions, where they lie beside its table."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    return {row["id"]: _hash(row["reference"]) for row in rows}


def _hash(text: str) -> str:
    return hashlib.sha256(" ".join(text.split()).encode("utf-8", "surrogatepass")).hexdigest()
