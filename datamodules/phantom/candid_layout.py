"""Writes phantom radiographs to disk in CANDID-PTX's layout (Feng et al., 2021; University of Auckland)::

    dataset/<SOPInstanceUID>       DICOM without a suffix: 12 bits, MONOCHROME2 and now and then MONOCHROME1
    Pneumothorax_reports.csv       SOPInstanceUID, StudyInstanceUID, EncodedPixels, Report, filename
    chest_tube.csv                 anon_SOPUID, annotation_ref, mask_rle
    acute_rib_fracture.csv         likewise
    PHANTOM.json                   the phantom's marker
    .films/<patient>.json          what was seen and said of one patient, kept so that a cut short phantom can go on

A patient has one film or several, taken one after the other, whose reports may compare. A film has a row in the table
of reports for each lesion that was outlined, or one with "-1"; now and then a lesion was outlined in two pieces, or
a row is there twice. As in the dataset there are no splits: the numbers of the three are added up, and the marker keeps
them under `counts`. So many films have a pneumothorax; for every four of them there is one more film without.
Most films have a window that shows them as they are meant to be seen. The same seed gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.files import put
from datamodules.phantom.layouts import csv_text, patient_seed, write_layout
from datamodules.phantom.pneumothorax import Exposure, draw_course, expose, project_thorax
from datamodules.phantom.pneumothorax_wording import LABELS, labels_of, word_pneumothorax
from datamodules.siim_rle import encode

VERSION = 1  # raise it whenever the same seed would give other bytes
IMAGES, FILMS, REPORTS = "dataset", ".films", "Pneumothorax_reports.csv"
EXTRAS = {"tube": "chest_tube.csv", "fracture": "acute_rib_fracture.csv"}
COLUMNS = ("SOPInstanceUID", "StudyInstanceUID", "EncodedPixels", "Report", "filename")
POSITIVES_A_NEGATIVE = 4
INVERTED, WINDOWED = 0.2, 0.8  # shares of the films that are MONOCHROME1, and that have a window
PIECES, TWICE = 0.12, 0.04  # shares of the lesions outlined in two pieces, of the rows that are there twice
BITS = 12


@dataclass(frozen=True)
class Course:
    """One patient to draw: `positive` says of each film whether there is a pneumothorax."""

    name: str
    seed: int
    positive: tuple[bool, ...]
    split: str = ""

    def uid(self, film: int) -> str:
        """SOPInstanceUID of a film; DICOM's way of making one from a number of 128 bits."""
        return _uid(f"image {self.seed} {film}")

    def files(self) -> list[str]:
        """The patient's files; the last film comes last, so its presence says that the patient is done."""
        return [f"{FILMS}/{self.name}.json", *(f"{IMAGES}/{self.uid(film)}" for film in range(len(self.positive)))]


def write_candid_ptx(
    root: Path | str,
    train: int,
    validation: int,
    test: int,
    seed: int = 0,
    workers: int = 1,
    description: str | None = None,
) -> None:
    """Draw patients into CANDID-PTX's layout (see the module's head).

    Args:
        root: Folder to fill; made when absent, completed when a former run was cut short.
        train: Number of films with pneumothorax to train with.
        validation: Likewise to validate with.
        test: Likewise to test with.
        seed: Of the whole set.
        workers: Processes that draw.
        description: What the progress bar says, which counts patients.

    Raises:
        DataFault: The root holds a phantom of another seed, size or version, or other files.
    """
    folder = Path(root)
    jobs = _courses(train + validation + test, seed)

    def tables() -> Iterable[tuple[str, str]]:
        films = [film for job in jobs for film in _read(folder, job)]
        rows = [
            (film["image"], film["study"], pixels, film["report"], film["filename"])
            for film in films
            for pixels in film["lesions"]
        ]
        for kind, name in EXTRAS.items():
            seen = [(film["image"], film[kind]) for film in films if film[kind] != "-1"]
            extra = [(image, f"A_{number:06}", pixels) for number, (image, pixels) in enumerate(seen)]
            yield name, csv_text(("anon_SOPUID", "annotation_ref", "mask_rle"), extra)
        yield REPORTS, csv_text(COLUMNS, rows)

    def labels(job: Course) -> list[str]:
        seen = {label for film in _read(folder, job) for label in film["seen"]}
        return [label for label in LABELS if label in seen]

    counts = {"train": train, "validation": validation, "test": test}
    write_layout(folder, "CANDID-PTX", jobs, counts, seed, workers, description, _draw, tables, labels, VERSION)


def _courses(positives: int, seed: int) -> list[Course]:
    """Patients whose films add up to so many with a pneumothorax, and a quarter of that without."""
    rng = random.Random(f"phantom candid {seed}")
    films = [True] * positives + [False] * -(-positives // POSITIVES_A_NEGATIVE)
    rng.shuffle(films)
    jobs: list[Course] = []
    while films:
        number, count = len(jobs) + 1, rng.choice((1, 2, 3, 4))
        taken, films = films[:count], films[count:]
        jobs.append(Course(f"P{number:04}", patient_seed(seed, "candid", number), tuple(taken)))
    return jobs


def _uid(what: str) -> str:
    return f"2.25.{int.from_bytes(hashlib.sha256(f'phantom {what}'.encode()).digest()[:16], 'big')}"


def _draw(root: Path, job: Course) -> str:
    thorax = project_thorax(job.seed)
    told, pictures, before = [], {}, None
    for number, chest in enumerate(draw_course(job.seed, job.positive)):
        seed = patient_seed(job.seed, "film", number)
        film, rng = expose(thorax, chest, seed), random.Random(f"phantom film {seed}")
        date = f"{2011 + job.seed % 8}{1 + job.seed % 12:02}{1 + number:02}"
        about = {"image": job.uid(number), "study": _uid(f"study {seed}"), "filename": f"{job.name}_{date}"}
        told.append(
            {
                **about,
                "report": word_pneumothorax(chest, seed, before),
                "lesions": _rows(film, rng),
                "tube": encode(film.tube),
                "fracture": encode(film.fracture),
                "seen": sorted(labels_of(chest)),
            }
        )
        pictures[job.uid(number)] = dicom_bytes(film.grey, about, job.name, date, rng)
        before = chest
    put(root / FILMS / f"{job.name}.json", (json.dumps(told) + "\n").encode())
    for name, content in pictures.items():
        put(root / IMAGES / name, content)
    return job.name


def _rows(film: Exposure, rng: random.Random) -> list[str]:
    """EncodedPixels of the film's rows."""
    rows = []
    for mask in film.lesions:
        middle = int(np.nonzero(mask)[0].mean())
        upper = mask * (np.arange(len(mask)) < middle)[:, None]
        rows += [encode(upper), encode(mask - upper)] if rng.random() < PIECES else [encode(mask)]
    if rows and rng.random() < TWICE:
        rows.append(rows[-1])
    return rows or ["-1"]


def _read(root: Path, job: Course) -> list[dict[str, Any]]:
    return json.loads((root / job.files()[0]).read_text())


def dicom_bytes(grey: np.ndarray, about: dict[str, str], patient: str, date: str, rng: random.Random) -> bytes:
    """A film as a DICOM file of 12 bits.

    Args:
        grey: `(row, column)` in [0, 1], higher is brighter.
        about: `image`, its SOPInstanceUID, and `study`, its StudyInstanceUID.
        patient: PatientID.
        date: StudyDate.
        rng: Decides photometric interpretation, window and range.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

    inverted, windowed = rng.random() < INVERTED, rng.random() < WINDOWED
    black, white = (rng.randrange(200, 500), rng.randrange(3200, 3700)) if windowed else (0, 2**BITS - 1)
    values = np.round(black + (white - black) * grey).astype("<u2")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = UID(about["image"])
    meta.TransferSyntaxUID, meta.ImplementationClassUID = ExplicitVRLittleEndian, UID(_uid("rrg-zoo"))
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, about["image"]
    data.StudyInstanceUID, data.SeriesInstanceUID = about["study"], _uid(f"series {about['image']}")
    data.PatientID, data.PatientName, data.StudyDate, data.Modality = patient, "Phantom", date, "DX"
    data.ViewPosition, data.Rows, data.Columns = "PA", *grey.shape
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, BITS, BITS - 1
    if windowed:
        center = (black + white + 1) / 2
        data.WindowCenter, data.WindowWidth = str(2**BITS - center if inverted else center), str(white - black + 1)
    data.PixelData = (2**BITS - 1 - values if inverted else values).tobytes()
    content = io.BytesIO()
    data.save_as(content, enforce_file_format=True)
    return content.getvalue()
