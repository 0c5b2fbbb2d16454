"""PadChest-GR's tables: the published JSON with its master table, or the CSVs that RegionFormer's authors make of it.

Both become the same list of entries, a study each. What is wrong in them comes back as faults, each with the official
split to which it belongs (`train` where a study has none).
"""

from __future__ import annotations

import ast
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.faults import Fault, shown
from datamodules.masks import Box
from datamodules.study import DataFault
from datamodules.tables import find_table, read_csv, read_json

_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_MASTER = ("StudyID", "ImageID", "PatientID", "split", "sentence_en", "label")
_DERIVED = ("StudyID", "ImageID", "report_en", "boxes", "split")
_FLOAT = re.compile(r"[\d.]+[eE]\+?\d+|\d+\.\d*")

Placed = tuple[str, Fault]  # official split, what is wrong there


@dataclass(frozen=True)
class Finding:
    """One sentence.

    Attributes:
        sentence: English, without space around it.
        boxes: As the file has them, not yet checked; a string where they could not be parsed.
        extra_boxes: Those of a second reader, likewise.
        labels: What the sentence finds; empty when it finds nothing, `None` when the file does not tell.
    """

    sentence: str
    boxes: list[Any] | str
    extra_boxes: list[Any] | str
    labels: tuple[str, ...] | None


@dataclass
class Entry:
    """One study: its sentences in the file's order, its image's name, official split and patient."""

    study: str
    image: str
    split: str
    patient: str | None
    source: Path
    findings: list[Finding] = field(default_factory=list)


@dataclass
class _Row:
    """What the master table says of one study."""

    image: str
    splits: set[str]
    patient: str
    labels: dict[str, list[str]] = field(default_factory=dict)


def read_entries(root: Path) -> tuple[list[Entry], list[Placed]]:
    """All studies of the dataset in the files' order, and what is wrong with the tables.

    Raises:
        DataFault: A table is missing, ambiguous or cannot be read.
    """
    reports, master = find_table(root, "grounded_reports_*.json"), find_table(root, "master_table.csv")
    if reports is not None:
        if master is None:
            raise DataFault(f"{root / 'master_table.csv'}: no such file; it says which study is in which split")
        return _published(reports, master)
    derived = sorted(root.glob("*_final_separated.csv"))
    if not derived:
        raise DataFault(f"{root}: holds no grounded_reports_*.json (and no *_final_separated.csv in its place)")
    return _derived(derived, master)


def find_images(root: Path) -> dict[str, list[Path]]:
    """File name → PNGs of that name anywhere below `root`, hidden folders aside."""
    found: dict[str, list[Path]] = {}
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in names:
            if name.lower().endswith(".png") and not name.startswith("."):
                found.setdefault(name, []).append(Path(folder) / name)
    return found


def boxes_of(raw: list[Any] | str) -> tuple[list[Box], list[tuple[str, bool]]]:
    """The boxes that can be used, clipped to the image; and what is wrong: `(words, whether a box was lost)`."""
    if isinstance(raw, str):
        return [], [("boxes are no list of boxes", True)]  # unquoted: in a derived table they stand beside the sentence
    boxes: list[Box] = []
    wrong: list[tuple[str, bool]] = []
    for box in raw:
        if not (isinstance(box, (list, tuple)) and len(box) == 4 and all(map(_is_number, box))):
            numbers = isinstance(box, (list, tuple)) and all(map(_is_number, box))
            wrong.append((f"box {box if numbers else 'of other things'} is not four numbers", True))
            continue
        x0, y0, x1, y1 = (float(min(1, max(0, edge))) for edge in box)
        if not (x0 < x1 and y0 < y1):
            wrong.append((f"box {list(box)} has no area inside the image", True))
            continue
        if [x0, y0, x1, y1] != list(box):
            wrong.append((f"box {list(box)} reaches out of the image, whose edges are 0 and 1", False))
        boxes.append((x0, y0, x1, y1))
    return boxes, wrong


def parse_boxes(text: str) -> list[Any] | str:
    """The boxes in a derived table's field, `[[0, sentence, [box, …]], …]` or one such triple; the text if it is none.

    Fields are Python literals: JSON's `NaN`, `true` and `null` make the whole field unreadable, as for the authors.
    """
    if not text.strip():
        return []
    try:
        content = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    if not isinstance(content, list):
        return text
    triples = [content] if len(content) == 3 and not isinstance(content[0], list) else content
    if not all(isinstance(triple, list) and len(triple) == 3 and isinstance(triple[2], list) for triple in triples):
        return text
    return [box for triple in triples for box in triple[2]]


def _published(path: Path, master: Path) -> tuple[list[Entry], list[Placed]]:
    table = _read_master(master)
    entries: dict[str, Entry] = {}
    faults: list[Placed] = []
    seen: set[str] = set()
    for item in _read_json(path):
        name, image = _identity(item.get("StudyID"), path), str(item.get("ImageID", ""))
        row = table.get(name)
        if row is None:
            faults.append(("train", Fault(name, f"{path}: {name} is not in {master}", reference=False)))
        elif name in seen:
            what = f"{path}: {name} stands there more than once; the first one counts"
            faults.append((min(row.splits), Fault(name, what, fatal=False)))
        elif len(row.splits) > 1:
            what = f"{master}: {name} stands in {' and in '.join(sorted(row.splits))}"
            faults += [(split, Fault(name, what)) for split in row.splits]
        elif row.image != image:
            faults.append((min(row.splits), Fault(name, f"{path}: {name} has image {image}, in {master} {row.image}")))
        else:
            given = item.get("findings") or []
            if not isinstance(given, list):
                raise DataFault(f"{path}: the findings of {name} are no list")
            findings = [_finding(finding, name, path) for finding in given]
            entries[name] = Entry(name, image, min(row.splits), row.patient, path, findings)
        seen.add(name)
    for name in table.keys() - seen:
        what = f"{master}: {name} has no report in {path}"
        faults += [(split, Fault(name, what, reference=False)) for split in table[name].splits]
    return list(entries.values()), faults


def _derived(paths: Sequence[Path], master: Path | None) -> tuple[list[Entry], list[Placed]]:
    table = {} if master is None else _read_master(master)
    entries: dict[str, Entry] = {}
    faults: list[Placed] = []
    for path in paths:
        for line, row in read_csv(path, _DERIVED):
            name, split = _identity(row["StudyID"], path), _split(row["split"], path, line)
            known = table.get(name)
            patient = known.patient if known else None
            entry = entries.setdefault(name, Entry(name, row["ImageID"], split, patient, path))
            if (entry.split, entry.image, entry.source) != (split, row["ImageID"], path):
                what = f"{path}:{line}: {name} stands in {entry.source.name} too, or with another image or split"
                faults.append((split, Fault(name, f"{what}; the row is not used", fatal=False)))
                continue
            sentence, boxes = row["report_en"].strip(), parse_boxes(row["boxes"])
            labels: tuple[str, ...] | None = ("abnormal",) if boxes else None
            if known:
                labels = tuple(known.labels.get(sentence, labels or ()))
            entry.findings.append(Finding(sentence, boxes, parse_boxes(row.get("extra_boxes") or ""), labels))
    return list(entries.values()), faults


def _finding(item: Any, study: str, path: Path) -> Finding:
    if not isinstance(item, dict) or not isinstance(item.get("abnormal"), bool):
        raise DataFault(f"{path}: {study} has a finding that does not say whether it is abnormal")
    if not isinstance(item.get("labels") or [], list):
        raise DataFault(f"{path}: {study} has a finding whose labels are no list")
    # the file's own word stands in for a positive finding's labels where it has none
    labels = tuple(map(str, item.get("labels") or ("abnormal",))) if item["abnormal"] else ()
    boxes, extra = (
        value if isinstance(value, list) else str(value)
        for value in (item.get("boxes") or [], item.get("extra_boxes") or [])
    )
    return Finding(str(item.get("sentence_en") or "").strip(), boxes, extra, labels)


def _read_json(path: Path) -> list[dict[str, Any]]:
    content = read_json(path)
    if not (isinstance(content, list) and all(isinstance(item, dict) for item in content)):
        raise DataFault(f'{path}: expected a list of {{"StudyID": …, "ImageID": …, "findings": […]}}')
    return content


def _read_master(path: Path) -> dict[str, _Row]:
    found: dict[str, _Row] = {}
    for line, row in read_csv(path, _MASTER):
        name, split = _identity(row["StudyID"], path), _split(row["split"], path, line)
        known = found.setdefault(name, _Row(row["ImageID"], set(), row["PatientID"]))
        known.splits.add(split)
        if sentence := row["sentence_en"].strip():
            known.labels.setdefault(sentence, []).append(row["label"])
    return found


def _identity(value: Any, path: Path) -> str:
    """An id as text; one that went through a floating-point number has lost most of its digits."""
    text = "" if value is None else str(value).strip()
    if not text:
        raise DataFault(f"{path}: a row has no StudyID")
    if _FLOAT.fullmatch(text):
        raise DataFault(f"{path}: StudyID {text} was saved as a number and lost its digits; take the original file")
    return text


def _split(value: str, path: Path, line: int) -> str:
    if value not in _SPLITS:
        raise DataFault(f"{path}:{line}: split {shown(value)} is not in the list: {', '.join(_SPLITS)}")
    return _SPLITS[value]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value < math.inf
