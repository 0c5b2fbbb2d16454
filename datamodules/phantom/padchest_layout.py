"""Writes phantom radiographs to disk in PadChest-GR's layout (de Castro et al., 2025; release of BIMCV)::

    PadChest_GR/<ImageID>                    16-bit grey PNG, one frontal radiograph a study
    grounded_reports_20240819.json           a list of {StudyID, ImageID, PreviousStudyID, PreviousImageID, findings}
    master_table.csv                         a row per (positive sentence, label), one `Normal` row per normal study
    PHANTOM.json                             the phantom's marker
    .sentences/<ImageID>.json                what was said of one study, kept so that a cut short phantom can go on

A positive finding has `sentence_en`, `sentence_es`, `abnormal`, `boxes`, `extra_boxes`, `labels`, `locations` and
`progression`; a negative one the first three keys only, and it is not in the table. Boxes are `[x1, y1, x2, y2]` in
[0, 1] with eight decimals; a diffuse finding has `boxes: []`. `extra_boxes` is what a second reader drew, where there
was one. Identifiers are whole numbers of 39 digits, too large for any integer column: read them as text. There are no
prior studies. The same seed gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from datamodules.phantom.layouts import csv_text, patient_seed, put, write_layout
from datamodules.phantom.patient import draw_patient
from datamodules.phantom.radiograph import radiograph
from datamodules.phantom.radiograph_wording import GROUPS, Rectangle, Sentence, finding_sentences

VERSION = 1  # raise it whenever the same seed would give other bytes
IMAGES, SENTENCES = "PadChest_GR", ".sentences"
REPORTS, TABLE = "grounded_reports_20240819.json", "master_table.csv"
COLUMNS = (
    "StudyID", "ImageID", "label", "boxes_count", "extra_boxes_count", "locations", "prior_study", "progression_status",
    "prior_imageID", "sentence_en", "sentence_es", "study_is_benchmark", "study_is_validation", "split", "PatientID",
    "patient_is_benchmark", "PatientBirth", "PatientSex_DICOM", "StudyDate_DICOM", "StudyDate", "PatientAge",
    "label_group", "Year",
)  # fmt: skip
SECOND_READER = 0.2  # share of the boxed findings that a second reader boxed too


@dataclass(frozen=True)
class Radiograph:
    """One patient to draw."""

    name: str
    split: str
    seed: int

    @property
    def image(self) -> str:
        """ImageID: the PNG's name."""
        return f"{_number(self.seed, 'image')}.png"

    def files(self) -> list[str]:
        """The patient's files; the image comes last, so its presence says that the patient is done."""
        return [f"{SENTENCES}/{self.image}.json", f"{IMAGES}/{self.image}"]


def write_padchest_gr(
    root: Path | str,
    train: int,
    validation: int,
    test: int,
    seed: int = 0,
    workers: int = 1,
    description: str | None = None,
) -> None:
    """Draw patients into PadChest-GR's layout (see the module's head).

    Args:
        root: Folder to fill; made when absent, completed when a former run was cut short.
        train: Number of training studies.
        validation: Number of studies of the official validation split.
        test: Number of test studies.
        seed: Of the whole set.
        workers: Processes that draw.
        description: What the progress bar says.

    Raises:
        DataFault: The root holds a phantom of another seed, size or version, or other files.
    """
    folder = Path(root)
    counts = {"train": train, "validation": validation, "test": test}
    jobs = []
    for split, count in counts.items():
        for n in range(1, count + 1):
            drawn = patient_seed(seed, f"padchest {split}", n)
            jobs.append(Radiograph(_number(drawn, "study"), split, drawn))

    def tables() -> Iterable[tuple[str, str]]:
        findings = {job.name: _read(folder, job)["findings"] for job in jobs}
        reports = [
            {"StudyID": job.name, "ImageID": job.image, "PreviousStudyID": None, "PreviousImageID": None,
             "findings": findings[job.name]}
            for job in jobs
        ]  # fmt: skip
        yield REPORTS, json.dumps(reports, indent=1, ensure_ascii=False) + "\n"
        yield TABLE, csv_text(COLUMNS, [row for job in jobs for row in _rows(job, findings[job.name])])

    def labels(job: Radiograph) -> list[str]:
        return _read(folder, job)["seen"]

    write_layout(folder, "PadChest-GR", jobs, counts, seed, workers, description, _draw, tables, labels, VERSION)


def _number(seed: int, what: str) -> str:
    """A whole number of 39 digits, as DICOM identifiers made from UUIDs have them."""
    drawn = int.from_bytes(hashlib.sha256(f"phantom {what} {seed}".encode()).digest(), "big")
    return str(10**38 + drawn % (9 * 10**38))


def _draw(root: Path, job: Radiograph) -> str:
    patient = draw_patient(job.seed)
    study, sights = radiograph(patient)
    rng = random.Random(f"phantom second reader {job.seed}")
    said = finding_sentences(patient, sights)
    assert study.image is not None
    told = {"seen": list(study.findings or ()), "findings": [_finding(sentence, rng) for sentence in said]}
    put(root / SENTENCES / f"{job.image}.json", (json.dumps(told, ensure_ascii=False) + "\n").encode())
    picture = io.BytesIO()
    Image.fromarray(study.image).save(picture, "PNG", compress_level=4)
    put(root / IMAGES / job.image, picture.getvalue())
    return job.name


def _read(root: Path, job: Radiograph) -> dict:
    return json.loads((root / job.files()[0]).read_text())


def _finding(said: Sentence, rng: random.Random) -> dict[str, object]:
    finding: dict[str, object] = {
        "sentence_en": said.english, "sentence_es": said.spanish, "abnormal": said.abnormal
    }  # fmt: skip
    if said.abnormal:
        second = said.boxes if rng.random() < SECOND_READER else ()
        finding |= {
            "boxes": [_eight(box) for box in said.boxes],
            "extra_boxes": [_eight(_redrawn(box, rng)) for box in second],
            "labels": [said.name],
            "locations": list(said.locations),
            "progression": None,
        }
    return finding


def _eight(box: Rectangle) -> list[float]:
    return [round(edge, 8) for edge in box]


def _redrawn(box: Rectangle, rng: random.Random) -> Rectangle:
    """A box as another reader would draw it: every edge off by up to a tenth of the side."""
    x0, y0, x1, y1 = box
    wide, high = x1 - x0, y1 - y0
    moved = (x0 + rng.uniform(-0.1, 0.1) * wide, y0 + rng.uniform(-0.1, 0.1) * high,
             x1 + rng.uniform(-0.1, 0.1) * wide, y1 + rng.uniform(-0.1, 0.1) * high)  # fmt: skip
    a, b, c, d = (min(max(edge, 0.0), 1.0) for edge in moved)
    return a, b, c, d


def _rows(job: Radiograph, findings: list[dict]) -> list[tuple[object, ...]]:
    """The study's rows of the master table: one per label of a positive finding; a `Normal` one where there is none."""
    rng = random.Random(f"phantom person {job.seed}")
    sex = "F" if draw_patient(job.seed).anatomy.sex == "female" else "M"
    year, age = rng.randint(2009, 2017), rng.randint(18, 94)
    month, day = rng.randint(1, 12), rng.randint(1, 28)
    person = _number(job.seed, "person")
    about = (
        False, job.split == "validation", job.split, person, False, year - age, sex, f"{year}{month:02}{day:02}",
        f"{year}-{month:02}-{day:02}", age,
    )  # fmt: skip
    rows: list[tuple[object, ...]] = []
    for finding in findings:
        for label in finding.get("labels", ()):
            boxes, extra = len(finding["boxes"]), len(finding["extra_boxes"])
            rows.append(
                (job.name, job.image, label, boxes, extra, finding["locations"], False, "", "",
                 finding["sentence_en"], finding["sentence_es"], *about, GROUPS[label], year)
            )  # fmt: skip
    normal: tuple[object, ...] = (
        job.name,
        job.image,
        "Normal",
        0,
        0,
        [],
        False,
        "",
        "",
        "",
        "",
        *about,
        "Normal",
        year,
    )
    return rows or [normal]
