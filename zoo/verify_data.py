"""`zoo.prepare --verify`: whether a dataset is all there, can be read, and keeps its splits apart.

Every study's files are opened. Images and volumes of equal size are compared by the sha256 of their bytes, so that a
copy under another name is found; a picture that was saved anew is not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

import datamodules
from datamodules.faults import Fault
from datamodules.report_datamodule import ReportDataModule
from datamodules.study import SettingsFault, Study
from zoo.command import UsageError
from zoo.config import choose, import_target
from zoo.layers import flatten, read_arguments
from zoo.schema import instantiate, schema

PIXELS = ("image", "volume")  # of `Study.files`: masks and tables may well be equal
COUNTED = ("studies", "patients", "files")
SHOWN = 5  # of what a check found
MARKS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "problem": "[red]✗[/]"}
Studies = Mapping[str, Sequence[Study]]  # split → studies


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What it looks for.
        found: Ids, file names, splits and reasons; never a report's text.
        grave: Whether what is found must be repaired; else it should be known.
    """

    name: str
    found: Sequence[Mapping[str, Any]]
    grave: bool = True

    @property
    def state(self) -> Literal["ok", "warning", "problem"]:
        return "ok" if not self.found else "problem" if self.grave else "warning"


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        counts: Split → studies, patients and files that were opened; patients are absent where nothing tells them.
        published: What is counted → (here, published); empty for a phantom.
        checks: In the order in which they are shown.
    """

    counts: Mapping[str, Mapping[str, int]]
    published: Mapping[str, tuple[int, int]]
    checks: Sequence[Check]

    @property
    def problems(self) -> list[str]:
        """The names of the checks that found something to repair."""
        return [check.name for check in self.checks if check.state == "problem"]

    def plain(self) -> dict[str, Any]:
        """What `verify.json` holds."""
        published = {name: {"here": here, "published": there} for name, (here, there) in self.published.items()}
        checks = {check.name: {"state": check.state, "found": list(check.found)} for check in self.checks}
        return {"problems": self.problems, "counts": self.counts, "published": published, "checks": checks}


def datasets() -> dict[str, str]:
    """Name → `package.module:Class`: the files of `datamodules/` that hold a dataset, without importing any."""
    found = {}
    for file in sorted(Path(datamodules.__path__[0]).glob("*.py")):
        if match := re.search(r"^class (\w+)\(ReportDataModule\)", file.read_text(encoding="utf-8"), re.MULTILINE):
            found[file.stem] = f"{datamodules.__name__}.{file.stem}:{match[1]}"
    return found


def build(name: str, settings: Sequence[str]) -> ReportDataModule:
    """A dataset with its class's own settings and those given.

    Args:
        name: One of `datasets()`, or `package.module:Class`.
        settings: `data.<setting>=value`.

    Raises:
        UsageError: There is no such dataset, or everything that is wrong with the settings.
    """
    known = datasets()
    target = import_target(name if ":" in name else known[choose("dataset", name, list(known))])
    node = OmegaConf.structured(schema(target))
    layers, errors = read_arguments(settings)
    for layer in layers:
        for key, value in flatten(layer.values).items():
            section, _, setting = key.partition(".")
            try:
                if section != "data" or setting not in list(node):
                    raise UsageError(f"there is no setting {key}; there are: data.{', data.'.join(map(str, node))}")
                OmegaConf.update(node, setting, value, merge=False)
            except (UsageError, OmegaConfBaseException) as error:
                errors.append(f"{layer.name}: {str(error).splitlines()[0]}")
    errors += [f"data.{key} is missing: give data.{key}=…" for key in sorted(OmegaConf.missing_keys(node))]
    if errors:
        raise UsageError("\n       ".join(errors))
    values: Any = OmegaConf.to_container(node)
    try:
        return instantiate(target, values)
    except ValueError as error:
        raise UsageError(f"data: {error}") from error


def verify(data: ReportDataModule) -> Verification:
    """Lists all studies, opens all their files and compares splits.

    Raises:
        DataFault: The dataset cannot even be listed.
    """
    studies: dict[str, list[Study]] = {}
    listed: dict[Fault, None] = {}  # one may be found in each split
    for split in data.splits:
        studies[split], faults = data.list_studies(split)
        listed |= dict.fromkeys(faults)
    opened = list(_opened(data, studies))
    broken = [fault for faults, _ in opened for fault in faults]
    digests = {path: digest for _, made in opened for path, digest in made.items()}
    across, within = _same_content(studies, digests)
    known = data.patients()
    patients = {split: _named(studies[split], data.patient_of) | known.get(split, set()) for split in studies}
    examinations = {split: _named(studies[split], data.examination_of) for split in studies}
    empty = [study for split in studies for study in studies[split] if not (study.report or "").strip()]
    checks = (
        Check("empty splits", [{"split": split} for split in studies if not studies[split]]),
        Check("studies lost to faults in tables and folders", _rows(listed, fatal=True)),
        Check("other faults in tables and folders", _rows(listed, fatal=False), grave=False),
        Check("files that cannot be read or used", _rows(broken, fatal=True)),
        Check("masks that cannot be used", _rows(broken, fatal=False), grave=False),
        *([Check("patients in two splits", _in_two(patients, "patient"))] if any(patients.values()) else []),
        Check("examinations in two splits", _in_two(examinations, "examination")),
        Check("files of the same content in two splits", across),
        Check("files of the same content in one split", within, grave=False),
        Check("empty reports", [{"id": study.id, "split": study.split} for study in empty], grave=False),
    )
    counts = {split: _counted(studies[split], patients[split]) for split in studies}
    here = {} if data.is_phantom() or not data.published_counts else data.counts()
    return Verification(counts, {name: (here[name], data.published_counts[name]) for name in here}, checks)


@dataclass(frozen=True)
class _Opener(Dataset):
    """Asking for study *i* opens its files: so the loader's workers share them out.

    Attributes:
        studies: One for each set of files.
        inspect: The dataset's.
        compared: Files that others are as large as.
    """

    studies: Sequence[Study]
    inspect: Callable[[Study], tuple[Study, list[Fault]]]
    compared: frozenset[Path]

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> tuple[list[Fault], dict[Path, str]]:
        study = self.studies[index]
        digests = {path: _sha256(path) for path in _pixels(study) if path in self.compared}
        try:
            return self.inspect(study)[1], digests
        except SettingsFault:
            raise
        except Exception as error:  # one file must not end a check of all; what the error says may quote the file
            names = ", ".join(map(str, _pixels(study)))
            return [Fault(study.id, f"{names}: reading it failed ({type(error).__name__})")], digests


def _opened(data: ReportDataModule, studies: Studies) -> Iterator[tuple[list[Fault], dict[Path, str]]]:
    """What is wrong with each study's files, and the sha256 of those that may be the same."""
    once = {tuple(sorted(study.files.items())) or study.id: study for split in studies for study in studies[split]}
    sizes: dict[int, set[Path]] = {}
    for path in {path for study in once.values() for path in _pixels(study) if path.is_file()}:
        sizes.setdefault(path.stat().st_size, set()).add(path)
    compared = frozenset(path for paths in sizes.values() if len(paths) > 1 for path in paths)
    opener = _Opener(list(once.values()), data.inspect, compared)
    loader = DataLoader(opener, batch_size=None, num_workers=data.num_workers)
    return track(loader, "opening every file", total=len(opener))  # type: ignore[return-value]


def _sha256(path: Path) -> str:
    """A file's hash; empty where it cannot be read, which `inspect` reports."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _pixels(study: Study) -> list[Path]:
    return [study.files[name] for name in PIXELS if name in study.files]


def _counted(studies: Sequence[Study], patients: Collection[str]) -> dict[str, int]:
    """Studies, patients where they are known, and files of one split."""
    files = {path for study in studies for path in _pixels(study)}
    return {"studies": len(studies), **({"patients": len(patients)} if patients else {}), "files": len(files)}


def _same_content(studies: Studies, digests: Mapping[Path, str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Groups of files with the same content: those that more than one split has, and the others."""
    groups: dict[str, dict[Path, set[str]]] = {}
    ids: dict[Path, list[str]] = {}
    for split in studies:
        for study in studies[split]:
            for path in _pixels(study):
                groups.setdefault(digests.get(path) or str(path), {}).setdefault(path, set()).add(split)
                ids.setdefault(path, []).append(study.id)
    across, within = [], []
    for files in groups.values():
        splits = sorted(set().union(*files.values()))
        row = {
            "splits": splits,
            "files": sorted(map(str, files)),
            "ids": sorted({i for path in files for i in ids[path]}),
        }
        if len(splits) > 1:
            across.append(row)
        elif len(files) > 1:
            within.append(row)
    return across, within


def _named(studies: Iterable[Study], name: Callable[[Study], str | None]) -> set[str]:
    return {found for study in studies if (found := name(study))}


def _in_two(names: Mapping[str, set[str]], what: str) -> list[dict[str, Any]]:
    """The names that stand in more than one split."""
    places: dict[str, list[str]] = {}
    for split in names:
        for name in names[split]:
            places.setdefault(name, []).append(split)
    return [{what: name, "splits": splits} for name, splits in sorted(places.items()) if len(splits) > 1]


def _rows(faults: Iterable[Fault], fatal: bool) -> list[dict[str, Any]]:
    return [{"id": fault.study_id, "what": fault.what} for fault in faults if fault.fatal == fatal]


def show(found: Verification) -> None:
    """Prints the tables."""
    console = Console(soft_wrap=True, highlight=False)
    table = Table("split", *COUNTED, box=None, pad_edge=False)
    for split, row in found.counts.items():
        table.add_row(split, *(f"{row[name]:,}" if name in row else "not told" for name in COUNTED))
    console.print(table)
    for name, (here, published) in found.published.items():
        state = "ok" if here == published else "warning"
        console.print(f"{MARKS[state]} {name}: {here:,} here, {published:,} published")
    for check in found.checks:
        console.print(f"{MARKS[check.state]} {check.name}: {len(check.found) or 'none'}")
        for item in check.found[:SHOWN]:
            values = (", ".join(value) if isinstance(value, list) else str(value) for value in item.values() if value)
            console.print(f"    {escape('; '.join(values))}")
        if len(check.found) > SHOWN:
            console.print(f"    … and {len(check.found) - SHOWN} more")
