"""Writes phantom radiographs to disk in MIMIC-CXR's layout (Johnson et al., 2019; MIMIC-CXR-JPG and its reports)::

    files/p10/p10000032/s50414267.txt                      the report, lines that begin with a space
    files/p10/p10000032/s50414267/<dicom_id>.jpg           8-bit grey, one frontal radiograph a study
    mimic-cxr-2.0.0-{split,metadata,chexpert}.csv.gz       as published
    masks/<dicom_id>/<class>.png                           1 bit; not the dataset's: what CXAS would write
    PHANTOM.json                                           the phantom's marker
    .sentences/<dicom_id>.json                             what was said of one study

Now and then two studies are of one patient; they share the patient's number and nothing else. All views are PA, and
there are no laterals. The findings section is the sentences of the study, the impression what they affirm. Grey values
are equalised over their histogram, as the dataset's are.

Masks are named as CXAS names them where the phantom has the organ: both lungs, their thirds, heart, mediastinum with
the heart, trachea (with the main bronchi). What is seen of a finding has a mask of its own pixels, by ChestX-Det's name
where it has one (CHESTX_DET). What CheXpert's table says is likewise what has a clear name there (CHEXPERT): present or
empty, never absent or uncertain. The same seed gives the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from datamodules.files import put
from datamodules.mimic_cxr_tables import FINDINGS
from datamodules.phantom.layouts import csv_text, patient_seed, write_layout
from datamodules.phantom.patient import draw_patient
from datamodules.phantom.radiograph import radiograph
from datamodules.phantom.radiograph_wording import Sight, finding_sentences

VERSION = 1  # raise it whenever the same seed would give other bytes
MASKS, SENTENCES, TABLES = "masks", ".sentences", "mimic-cxr-2.0.0-{}.csv.gz"
SPLITS = {"train": "train", "validation": "validate", "test": "test"}
METADATA = (
    "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
    "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)  # fmt: skip
CHESTX_DET = {
    "Lung nodule": "Nodule", "Pleural effusion": "Effusion", "Consolidation": "Consolidation",
    "Atelectasis": "Atelectasis", "Pulmonary fibrotic sequela": "Fibrosis", "Emphysema": "Emphysema",
    "Cardiomegaly": "Cardiomegaly", "Arterial wall calcification": "Calcification", "rib fracture": "Fracture",
    "vertebral fracture": "Fracture",
}  # fmt: skip
CHEXPERT = {
    "Lung nodule": "Lung Lesion", "Pleural effusion": "Pleural Effusion", "Consolidation": "Consolidation",
    "Lung opacity": "Lung Opacity", "Atelectasis": "Atelectasis", "Cardiomegaly": "Cardiomegaly",
    "rib fracture": "Fracture", "vertebral fracture": "Fracture", "Medical material": "Support Devices",
}  # fmt: skip
THIRDS = ("upper zone lung", "mid zone lung", "lung base")  # from above


@dataclass(frozen=True)
class Radiograph:
    """One study to draw: `patient` and `study` are the dataset's numbers, without letters."""

    patient: str
    study: str
    split: str
    seed: int

    @property
    def name(self) -> str:
        """The study's name."""
        return f"s{self.study}"

    @property
    def dicom(self) -> str:
        """The image's name: five groups of eight hexadecimal digits."""
        digits = hashlib.sha256(f"phantom dicom {self.seed}".encode()).hexdigest()
        return "-".join(digits[k : k + 8] for k in range(0, 40, 8))

    @property
    def folder(self) -> str:
        """The study's folder of images."""
        return f"files/p{self.patient[:2]}/p{self.patient}/{self.name}"

    def files(self) -> list[str]:
        """The study's files, masks aside; the image comes last, so its presence says that the study is done."""
        return [f"{SENTENCES}/{self.dicom}.json", f"{self.folder}.txt", f"{self.folder}/{self.dicom}.jpg"]


def write_mimic_cxr(
    root: Path | str,
    train: int,
    validation: int,
    test: int,
    seed: int = 0,
    workers: int = 1,
    description: str | None = None,
) -> None:
    """Draw patients into MIMIC-CXR's layout (see the module's head).

    Args:
        root: Folder to fill; made when absent, completed when a former run was cut short.
        train: Number of training studies.
        validation: Number of studies of the official split `validate`.
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
            patient = _number(1, split, n - (n % 4 == 0))  # every fourth study is of the patient before
            jobs.append(Radiograph(patient, _number(5, split, n), split, patient_seed(seed, f"mimic {split}", n)))

    def tables() -> Iterable[tuple[str, bytes]]:
        told = {job.study: _read(folder, job) for job in jobs}
        keys = [(job.dicom, job.study, job.patient) for job in jobs]
        rows: list[Sequence[object]] = [(*key, SPLITS[job.split]) for key, job in zip(keys, jobs, strict=True)]
        yield TABLES.format("split"), _packed(("dicom_id", "study_id", "subject_id", "split"), rows)
        yield TABLES.format("metadata"), _packed(METADATA, [_metadata(job, told[job.study]) for job in jobs])
        rows = [(job.patient, job.study, *_chexpert(told[job.study])) for job in jobs]
        yield TABLES.format("chexpert"), _packed(("subject_id", "study_id", *FINDINGS, "No Finding"), rows)

    def labels(job: Radiograph) -> list[str]:
        return _read(folder, job)["seen"]

    write_layout(folder, "MIMIC-CXR", jobs, counts, seed, workers, description, _draw, tables, labels, VERSION)


def _number(first: int, split: str, n: int) -> str:
    """A number of eight digits that no other patient (or study) has, whatever the splits' sizes."""
    place = 3_000_000 * list(SPLITS).index(split) + n
    return str(first * 10**7 + (first * 123_457 + place * 7_368_787) % 10**7)  # prime to ten: no two places meet


def _draw(root: Path, job: Radiograph) -> str:
    patient = draw_patient(job.seed)
    study, sights = radiograph(patient)
    said = finding_sentences(patient, sights)
    assert study.image is not None and study.masks is not None
    height, width = study.image.shape
    told = {
        "seen": list(study.findings or ()),
        "devices": any(sentence.label == "Medical material" and sentence.name != "sternotomy" for sentence in said),
        "size": [height, width],
    }
    put(root / SENTENCES / f"{job.dicom}.json", (json.dumps(told) + "\n").encode())
    findings = [sentence.english for sentence in said]
    impression = [sentence.english for sentence in said if sentence.abnormal] or findings[:1]
    put(root / f"{job.folder}.txt", _report(" ".join(findings), " ".join(impression)).encode())
    for name, mask in {**_organs(study.masks), **_lesions(sights, (height, width))}.items():
        put(root / MASKS / job.dicom / f"{name}.png", _encoded(Image.fromarray(mask), "PNG"))
    lowest, highest = int(study.image.min()), int(study.image.max())
    grey = (study.image.astype(np.float32) - lowest) * (255 / (highest - lowest))
    equal = ImageOps.equalize(Image.fromarray(grey.round().astype(np.uint8)))
    put(root / job.folder / f"{job.dicom}.jpg", _encoded(equal, "JPEG", quality=95))
    return job.name


def _encoded(picture: Image.Image, kind: str, **options: int) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def _read(root: Path, job: Radiograph) -> dict:
    return json.loads((root / job.files()[0]).read_text())


def _report(findings: str, impression: str) -> str:
    """A report as the dataset's are set: every line begins with a space, headers in capitals."""
    parts = [
        "EXAMINATION:  CHEST (PA)",
        "INDICATION:  ___-year-old patient, drawn by the phantom.",
        "COMPARISON:  None.",
    ]
    blocks = ["                                 FINAL REPORT", *(f" {part}" for part in parts)]
    for name, text in (("FINDINGS", findings), ("IMPRESSION", impression)):
        blocks += [f" {name}: ", textwrap.fill(text, 78, initial_indent=" ", subsequent_indent=" ")]
    return "\n \n".join(blocks) + "\n"


def _organs(masks: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """CXAS's name → bool `(row, column)`."""
    found = {"heart": masks["heart"] > 0, "trachea": masks["trachea and bronchie"] > 0}
    found["cardiomediastinum"] = (masks["heart"] | masks["mediastinum"]) > 0
    for side in ("right", "left"):
        lung = masks[f"{side} lung"] > 0
        found[f"{side} lung"] = lung
        rows = np.flatnonzero(lung.any(axis=1))
        third = np.clip((np.arange(len(lung)) - rows[0]) * 3 // (rows[-1] + 1 - rows[0]), 0, 2)
        for place, zone in enumerate(THIRDS):
            found[f"{side} {zone}"] = lung & (third == place)[:, None]
    return found | {name: found[f"right {name}"] | found[f"left {name}"] for name in ("lung", *THIRDS)}


def _lesions(sights: Sequence[Sight], shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """ChestX-Det's name → bool `(row, column)` of what is seen."""
    found: dict[str, np.ndarray] = {}
    for sight in sights:
        name = CHESTX_DET.get(sight.label)
        for part in sight.parts if name else ():
            assert name is not None and part.pixels is not None
            mask = found.setdefault(name, np.zeros(shape, bool))
            top, left = round(part.box[1] * shape[0]), round(part.box[0] * shape[1])
            mask[top : top + part.pixels.shape[0], left : left + part.pixels.shape[1]] |= part.pixels
    return found


def _metadata(job: Radiograph, told: dict) -> tuple[object, ...]:
    date = 21_000_101 + job.seed % 28 + 100 * (job.seed % 12) + 10_000 * (job.seed % 97)
    return (
        job.dicom, job.patient, job.study, "CHEST (PA)", "PA", *told["size"], date, f"{job.seed % 24:02}1530.25",
        "CHEST (PA)", "postero-anterior", "Erect",
    )  # fmt: skip


def _chexpert(told: dict) -> list[str]:
    """The columns of FINDINGS, then "No Finding": where nothing but devices is seen."""
    present = {CHEXPERT[label] for label in told["seen"] if label in CHEXPERT} - {"Support Devices"}
    present |= {"Support Devices"} if told["devices"] else set()
    nothing = not set(told["seen"]) - {"Medical material"}
    return ["1.0" if name in present else "" for name in FINDINGS] + ["1.0" if nothing else ""]


def _packed(header: tuple[str, ...], rows: Sequence[Sequence[object]]) -> bytes:
    return gzip.compress(csv_text(header, rows).encode(), mtime=0)
