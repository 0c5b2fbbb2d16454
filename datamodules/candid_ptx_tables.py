"""CANDID-PTX's table, a row a lesion, as films; and the split into training, validation and test that it lacks.

A split is kept as JSON, so that it stays what it was when the table is repaired, and others can use it:

    {"unit": "image", "seed": 0, "sha256": …, "train": [<SOPInstanceUID>, …], "validation": […], "test": […]}

`sha256` is that of the three lists; where it stands there it is checked.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datamodules.faults import shown
from datamodules.files import put
from datamodules.siim_rle import is_empty
from datamodules.study import DataFault, SettingsFault
from datamodules.tables import find_table, read_csv

TABLE = "Pneumothorax_reports.csv"
SPLITS = ("train", "validation", "test")
_COLUMNS = ("SOPInstanceUID", "EncodedPixels", "Report")
_FOLDERS = ("dataset", "dataset1/dataset", "chest_radiographs")
_SUFFIXES = ("", ".dcm", ".png", ".jpg", ".jpeg")
# The published table has such images; nobody can tell which row is right.
TWO_PATIENTS, TWO_REPORTS = "stand under two patients", "have two different reports"

Split = Mapping[str, Sequence[str]]  # split → SOPInstanceUIDs


@dataclass
class Film:
    """One image and all its rows.

    Attributes:
        name: SOPInstanceUID.
        study: StudyInstanceUID; empty where the table has none.
        patient: What `filename` begins with, `P<number>`; empty where it does not.
        report: As it stands there.
        lesions: Run-length text of each lesion, and the line in which it stands.
    """

    name: str
    study: str
    patient: str
    report: str
    lesions: list[tuple[str, int]] = field(default_factory=list)


def read_films(path: Path) -> tuple[dict[str, Film], Counter[str]]:
    """SOPInstanceUID → film, in the table's order; and how many are left out, by reason.

    Raises:
        DataFault: The table cannot be read, lacks a column, or a row has no SOPInstanceUID that can be a file's name.
    """
    films: dict[str, Film] = {}
    wrong: dict[str, str] = {}
    for line, row in read_csv(path, _COLUMNS):
        name = row["SOPInstanceUID"].strip()
        if not any(value.strip() for value in row.values()):
            continue
        if not re.fullmatch(r"[\w.-]*\w", name, re.ASCII):
            raise DataFault(f"{path}:{line}: SOPInstanceUID {shown(name)} is no image's name; take the original file")
        patient = re.match(r"\s*([A-Za-z]*\d+)_", row.get("filename", ""))
        new = Film(name, row.get("StudyInstanceUID", "").strip(), patient[1] if patient else "", row["Report"])
        film = films.setdefault(name, new)
        film.report = film.report if film.report.strip() else new.report
        if any(one and other and one != other for one, other in ((film.patient, new.patient), (film.study, new.study))):
            wrong[name] = TWO_PATIENTS
        elif new.report.strip() and film.report.split() != new.report.split():
            wrong.setdefault(name, TWO_REPORTS)
        if not is_empty(row["EncodedPixels"]):
            film.lesions.append((row["EncodedPixels"], line))
    return {name: film for name, film in films.items() if name not in wrong}, Counter(wrong.values())


def find_films_table(root: Path) -> Path:
    """The table, packed or not.

    Raises:
        DataFault: It is not there, or twice.
    """
    table = find_table(root, TABLE)
    if table is None:
        raise DataFault(f"{root / TABLE}: no such file (nor .gz, .zip); it holds CANDID-PTX's reports and masks")
    return table


def find_folder(root: Path, given: str | None) -> Path:
    """The folder of images: `given`, below `root` or as it stands, else the first of the known ones that is there.

    Raises:
        DataFault: There is none.
    """
    if given is not None:
        folder = root / given if (root / given).is_dir() else Path(given)
        if not folder.is_dir():
            raise DataFault(f"{folder}: no such folder; set data.images to the folder of CANDID-PTX's images")
        return folder
    for name in _FOLDERS:
        if (root / name).is_dir():
            return root / name
    raise DataFault(f"{root}: holds no folder {', '.join(_FOLDERS)}; set data.images to the folder of the images")


def find_image(folder: Path, name: str) -> Path | None:
    """An image's file: its SOPInstanceUID, as such or with the suffix of what it was converted to."""
    return next((path for suffix in _SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def name_of(image: Path) -> str:
    """An image's name without the suffix of a format; a SOPInstanceUID has dots of its own."""
    return image.stem if image.suffix.lower() in (*_SUFFIXES[1:], ".dicom") else image.name


def draw_split(
    films: Sequence[Film], unit: Literal["image", "patient"], size: int, validation: int, test: int, seed: int
) -> dict[str, list[str]]:
    """A split drawn at random.

    With `unit="image"` `size` images are drawn: the last `test` of them are tested on, the `validation` before these
    validated, the others trained on. With `"patient"` patients are drawn one after the other, and all images of one go
    to the first of test, validation and training that has room for them; a split may stay a few images short.

    Raises:
        SettingsFault: There are not so many images.
        DataFault: A film's patient is not known, but patients are to be drawn.
    """
    if min(validation, test) < 1 or validation + test >= size:
        raise SettingsFault(
            f"data.size={size}: it must be above validation + test = {validation} + {test}, none of them 0"
        )
    if size > len(films):
        raise SettingsFault(
            f"data.size={size}: there are {len(films)} images to draw from; set it to {len(films)} at most"
        )
    rng = random.Random(f"CANDID-PTX/{unit}/{seed}")
    if unit == "image":
        drawn = rng.sample(sorted(film.name for film in films), size)
        train = size - validation - test
        return {"train": drawn[:train], "validation": drawn[train : size - test], "test": drawn[size - test :]}
    of_patient: dict[str, list[str]] = {}
    for film in films:
        if not film.patient:
            what = f"{TABLE}: {film.name} has no filename that begins with its patient (P<number>_…)"
            raise DataFault(f"{what}; set data.split_unit=image")
        of_patient.setdefault(film.patient, []).append(film.name)
    room = {"test": test, "validation": validation, "train": size - validation - test}
    split: dict[str, list[str]] = {name: [] for name in SPLITS}
    for patient in rng.sample(sorted(of_patient), len(of_patient)):
        names = of_patient[patient]
        place = next((name for name in room if len(split[name]) + len(names) <= room[name]), None)
        if place:
            split[place] += sorted(names)
    return split


def write_split(path: Path, split: Split, **made_by: Any) -> None:
    """Writes a split, whole or not at all; `made_by` says how it was drawn."""
    lists = {name: list(split[name]) for name in SPLITS}
    content = {"dataset": "CANDID-PTX", **made_by, "sha256": _digest(lists), **lists}
    put(path, (json.dumps(content, indent=1) + "\n").encode())


def read_split(path: Path) -> dict[str, list[str]]:
    """The lists of a split.

    Raises:
        DataFault: It cannot be read, is no split, names an image twice, or is not what it was when it was made.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        lists = {name: [str(each) for each in content[name]] for name in SPLITS}
    except OSError as error:
        raise DataFault(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        expected = f"JSON with the lists {', '.join(SPLITS)} of SOPInstanceUIDs"
        raise DataFault(f"{path}: is no split; expected {expected}") from None
    names = Counter(name for each in lists.values() for name in each)
    if twice := next((name for name, count in names.items() if count > 1), None):
        raise DataFault(f"{path}: {twice} stands there twice; an image belongs to one split")
    if content.get("sha256", (made := _digest(lists))) != made:
        raise DataFault(f"{path}: its lists were changed since it was made; fetch it again, or take its sha256 out")
    return lists


def shared_patients(films: Mapping[str, Film], split: Split) -> int:
    """Images of the test split whose patient has images in another one."""
    patients = {name: [films[each].patient for each in split[name] if each in films] for name in SPLITS}
    others = {*patients["train"], *patients["validation"]} - {""}
    return sum(patient in others for patient in patients["test"])


def _digest(lists: Mapping[str, Sequence[str]]) -> str:
    return hashlib.sha256(json.dumps([list(lists[name]) for name in SPLITS]).encode()).hexdigest()
