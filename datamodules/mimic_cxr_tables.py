"""MIMIC-CXR-JPG's tables: which images there are, of which view, study, patient and split, and CheXpert's labels.

Tables may be gzipped or not. What is wrong in them comes back as faults, each with the split to which it belongs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from datamodules.faults import Fault, shown
from datamodules.study import DataFault
from datamodules.tables import find_table, read_csv

SPLIT, METADATA, LABELS = "mimic-cxr-*-split.csv", "mimic-cxr-*-metadata.csv", "mimic-cxr-*-chexpert.csv"
# The labels in the table's columns; "No Finding" stands there too, and is no finding.
FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip
_SPLITS = {"train": "train", "validate": "validation", "test": "test"}
_KEYS = ("dicom_id", "study_id", "subject_id")

Placed = tuple[str, Fault]  # split, what is wrong there


@dataclass(frozen=True, slots=True)
class Radiograph:
    """One image: its name, study and patient (numbers without `s` and `p`), split, and ViewPosition as it stands."""

    dicom: str
    study: str
    patient: str
    split: str
    view: str

    @property
    def folder(self) -> str:
        """The study's folder of images, below the root; its report has the same path and ends in `.txt`."""
        return f"files/p{self.patient[:2]}/p{self.patient}/s{self.study}"


def read_radiographs(root: Path) -> tuple[list[Radiograph], list[Placed]]:
    """All images in the order of the split table, and what is wrong with the tables.

    Raises:
        DataFault: A table is missing, ambiguous or cannot be read, or a row of it has an id or split that is none.
    """
    splits, metadata = _needed(root, SPLIT, "split"), _needed(root, METADATA, "view")
    described: dict[str, tuple[str, str, str]] = {}
    for line, row in read_csv(metadata, (*_KEYS, "ViewPosition")):
        _check(metadata, line, row)
        described[row["dicom_id"]] = row["study_id"], row["subject_id"], row["ViewPosition"].strip()
    found: dict[str, Radiograph] = {}
    faults: list[Placed] = []
    for line, row in read_csv(splits, (*_KEYS, "split")):
        _check(splits, line, row)
        if row["split"] not in _SPLITS:
            raise DataFault(f"{splits}:{line}: split {shown(row['split'])} is not in the list: {', '.join(_SPLITS)}")
        dicom, study, patient, split = row["dicom_id"], row["study_id"], row["subject_id"], _SPLITS[row["split"]]
        name, where = f"s{study}", f"{splits}:{line}: image {dicom}"
        known = described.get(dicom)
        if dicom in found:
            faults.append((split, Fault(name, f"{where} stands there more than once; the first one counts", False)))
        elif known is None:
            faults.append((split, Fault(name, f"{where} is not in {metadata}, so its view is not known")))
        elif known[:2] != (study, patient):
            faults.append((split, Fault(name, f"{where} is of another study or patient in {metadata}")))
        else:
            found[dicom] = Radiograph(dicom, study, patient, split, known[2])
    named = {fault.study_id for _, fault in faults}
    for dicom, (study, _, _) in described.items():
        if dicom not in found and f"s{study}" not in named:
            what = f"{metadata}: image {dicom} of s{study} is not in {splits}"
            faults.append(("train", Fault(f"s{study}", what, reference=False)))
    return list(found.values()), faults


def read_labels(root: Path) -> dict[str, tuple[str, ...]] | None:
    """Study number → those of `FINDINGS` that CheXpert's labeller found present (1.0); `None` without its table.

    What it left open (-1.0) does not count as present. The labels are those of the whole report.

    Raises:
        DataFault: The table is ambiguous, cannot be read, or lacks a column.
    """
    table = find_table(root, LABELS)
    if table is None:
        return None
    found = {}
    for _, row in read_csv(table, ("study_id", *FINDINGS)):
        found[row["study_id"]] = tuple(name for name in FINDINGS if row[name] in ("1.0", "1"))
    return found


def _needed(root: Path, pattern: str, what: str) -> Path:
    table = find_table(root, pattern)
    if table is None:
        raise DataFault(f"{root / pattern}: no such file (nor .gz); it says which image is of which {what}")
    return table


def _check(path: Path, line: int, row: dict[str, str]) -> None:
    for key in ("study_id", "subject_id"):
        if not row[key].isdigit():
            raise DataFault(f"{path}:{line}: {key} {shown(row[key])} is no whole number; take the original file")
    if not row["dicom_id"] or "/" in row["dicom_id"]:
        raise DataFault(f"{path}:{line}: dicom_id {shown(row['dicom_id'])} is no image's name; take the original file")
