"""Writes phantom patients to disk in the layouts of the datasets that they stand in for.

RadGenome-ChestCT (Hugging Face `RadGenome/RadGenome-ChestCT`, volumes of CT-RATE resampled to 1 x 1 x 3 mm)::

    train_preprocessed/train_1/train_1a/train_1_a_1.nii.gz     int16 HU
    train_region_mask/seg_train_1_a_1/<region>.nii.gz          uint8 0/1, ten regions
    valid_preprocessed/…, valid_region_mask/…                  the validation split, named valid_…
    radgenome_files/{train,validation}_region_report.csv       Volumename (with .nii.gz), Anatomy, Sentence

CTRG-Chest-548K (GitHub `tangyuhao2016/CTRG`; volumes as Hugging Face `Trusure/CTRG-Chest-548K_volume` converts them)::

    CTRG-Chest-548K_volume/<id>.nii.gz                         id is a whole number; here int16 HU
    annotation.json                                            {"train": [{"id", "finding"}], "test": [...]}, 8:2
    region_mask/seg_<id>/<region>.nii.gz                       ┐ Reg2RG made both itself (SAT, Qwen2.5) and released
    region_report.csv                                          ┘ neither; named as RadGenome's

Both carry the marker `PHANTOM.json`. The same seed gives the same bytes: gzip without time or name, no timestamps.
A patient whose files are all there is not drawn again; files appear under their final names only when whole.
"""

from __future__ import annotations

import csv
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol, TypeVar

import nibabel
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from datamodules.files import put
from datamodules.masks import REGIONS
from datamodules.phantom.patient import draw_patient
from datamodules.phantom.render import affine, render_ct
from datamodules.phantom.wording import word_report
from datamodules.study import DataFault

VERSION = 3  # raise it whenever the same seed would give other bytes
MARKER = "PHANTOM.json"
NOTICE = "Synthetic patients drawn by rrg-zoo's phantom. They stand for nobody and teach nothing clinical."


class Drawing(Protocol):
    """One patient to draw, in any layout; `files` are those that it fills, relative to the root."""

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def seed(self) -> int: ...
    def files(self) -> list[str]: ...


J = TypeVar("J", bound=Drawing)


@dataclass(frozen=True)
class Job:
    """One patient to draw and the paths, relative to the root, that it fills."""

    name: str
    split: str
    seed: int
    volume: str
    masks: str

    def files(self) -> list[str]:
        """All files of the patient; the volume comes last, so its presence says that the patient is done."""
        return [f"{self.masks}/{region}.nii.gz" for region in REGIONS] + [self.volume]


def write_radgenome(
    root: Path | str, train: int, validation: int, seed: int = 0, workers: int = 1, description: str | None = None
) -> None:
    """Draw patients into RadGenome-ChestCT's layout.

    Args:
        root: Folder to fill; made when absent, completed when a former run was cut short.
        train: Number of training patients.
        validation: Number of validation patients.
        seed: Of the whole set; its patients never overlap those of the other split.
        workers: Processes that draw.
        description: What the progress bar says.

    Raises:
        DataFault: The root holds a phantom of another seed, size or version.
    """
    jobs = []
    for split, prefix, count in (("train", "train", train), ("validation", "valid", validation)):
        for n in range(1, count + 1):
            folder, name = f"{prefix}_{n}", f"{prefix}_{n}_a_1"
            jobs.append(
                Job(
                    name,
                    split,
                    patient_seed(seed, split, n),
                    f"{prefix}_preprocessed/{folder}/{folder}a/{name}.nii.gz",
                    f"{prefix}_region_mask/seg_{name}",
                )
            )

    def tables() -> Iterable[tuple[str, str]]:
        for split in ("train", "validation"):
            rows = [
                (f"{job.name}.nii.gz", region, text)
                for job in jobs
                if job.split == split
                for region, text in _report(job).items()
            ]
            yield f"radgenome_files/{split}_region_report.csv", csv_text(("Volumename", "Anatomy", "Sentence"), rows)

    write_layout(
        Path(root),
        "RadGenome-ChestCT",
        jobs,
        {"train": train, "validation": validation},
        seed,
        workers,
        description,
        _draw,
        tables,
        _labels,
    )


def write_ctrg(
    root: Path | str, train: int, test: int, seed: int = 0, workers: int = 1, description: str | None = None
) -> None:
    """Draw patients into CTRG-Chest-548K's layout (see the module's head); arguments as in `write_radgenome`."""
    jobs = []
    for split, start, count in (("train", 0, train), ("test", train, test)):
        for n in range(start + 1, start + count + 1):
            jobs.append(
                Job(
                    str(n),
                    split,
                    patient_seed(seed, f"ctrg {split}", n),
                    f"CTRG-Chest-548K_volume/{n}.nii.gz",
                    f"region_mask/seg_{n}",
                )
            )

    def tables() -> Iterable[tuple[str, str]]:
        splits: dict[str, list[dict[str, object]]] = {"train": [], "test": []}
        for job in jobs:
            splits[job.split].append({"id": int(job.name), "finding": " ".join(_report(job).values())})
        yield "annotation.json", json.dumps(splits, indent=1) + "\n"
        rows = [(f"{job.name}.nii.gz", region, text) for job in jobs for region, text in _report(job).items()]
        yield "region_report.csv", csv_text(("Volumename", "Anatomy", "Sentence"), rows)

    counts = {"train": train, "test": test}
    write_layout(Path(root), "CTRG-Chest-548K", jobs, counts, seed, workers, description, _draw, tables, _labels)


def patient_seed(seed: int, split: str, number: int) -> int:
    """The seed of the n-th patient of a split of a whole set's seed."""
    return zlib.crc32(f"{seed}/{split}/{number}".encode())


def _report(job: Job) -> dict[str, str]:
    return word_report(draw_patient(job.seed))


def csv_text(header: tuple[str, ...], rows: Sequence[Sequence[object]]) -> str:
    """A table as CSV, lines ended by a line feed."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def _labels(job: Job) -> list[str]:
    return list(draw_patient(job.seed).labels)


def write_layout(
    root: Path,
    layout: str,
    jobs: list[J],
    counts: dict[str, int],
    seed: int,
    workers: int,
    description: str | None,
    draw: Callable[[Path, J], str],
    tables: Callable[[], Iterable[tuple[str, str | bytes]]],
    labels: Callable[[J], list[str]],
    version: int = VERSION,
) -> None:
    """Draw what is missing of a layout, then write its tables and the marker; does nothing where all is there.

    Args:
        root: Folder to fill or to complete.
        layout: The dataset's name, for the marker.
        jobs: The patients.
        counts: Patients of every split, for the marker.
        seed: Of the whole set.
        workers: Processes that draw.
        description: What the progress bar says.
        draw: Writes the files of one patient (a module's function: it runs in the workers) and gives its name.
        tables: Gives the path and the text (or bytes) of every file that tells of all patients; asked once
            all are drawn.
        labels: Gives the labels of one drawn patient, for the marker.
        version: Raised whenever the same seed would give other bytes.

    Raises:
        DataFault: The root holds a phantom of another seed, size or version, or other files.
    """
    marker = {
        "notice": NOTICE,
        "generator": "rrg-zoo phantom",
        "version": version,
        "layout": layout,
        "seed": seed,
        "counts": counts,
    }
    _check_marker(root, marker)
    todo = [job for job in jobs if not all((root / name).exists() for name in job.files())]
    if not todo and json.loads((root / MARKER).read_text())["complete"]:
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task(
            description or f"drawing {layout} phantom", total=len(jobs), completed=len(jobs) - len(todo)
        )
        for _ in _draw_all(root, todo, workers, draw):
            bar.advance(task)
    for name, content in tables():
        put(root / name, content if isinstance(content, bytes) else content.encode())
    studies = {job.name: {"split": job.split, "seed": job.seed, "findings": labels(job)} for job in jobs}
    put(root / MARKER, (json.dumps({**marker, "complete": True, "studies": studies}, indent=1) + "\n").encode())


def _check_marker(root: Path, marker: dict[str, object]) -> None:
    path = root / MARKER
    if path.exists():
        try:
            there = json.loads(path.read_text())
        except ValueError:
            there = None
        if not isinstance(there, dict) or not isinstance(there.get("complete"), bool):
            raise DataFault(f"{path} is damaged; delete {root} to draw the phantom anew")
        for key in ("version", "layout", "seed", "counts"):
            if there.get(key) != marker[key]:
                raise DataFault(
                    f"{root} holds a phantom with {key} {there.get(key)}, not {marker[key]}; delete it or take another"
                )
    elif root.exists() and any(not entry.name.startswith(".") for entry in root.iterdir()):
        raise DataFault(f"{root} holds other files and no {MARKER}; choose an empty folder for the phantom")
    else:
        put(path, (json.dumps({**marker, "complete": False}, indent=1) + "\n").encode())


def _draw_all(root: Path, jobs: list[J], workers: int, draw: Callable[[Path, J], str]) -> Iterable[str]:
    if workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield draw(root, job)
        return
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(draw, root, job) for job in jobs]):
            yield future.result()


def _draw(root: Path, job: Job) -> str:
    study = render_ct(draw_patient(job.seed))
    assert study.volume is not None and study.masks is not None
    placed = affine(study.volume)
    for region, mask in study.masks.items():
        put(root / job.masks / f"{region}.nii.gz", nifti_bytes(mask, placed))
    put(root / job.volume, nifti_bytes(study.volume, placed))
    return job.name


def nifti_bytes(array: np.ndarray, placed: np.ndarray) -> bytes:
    """A gzipped NIfTI-1 file of an array `(x, y, z)` with its affine; the same array gives the same bytes.

    Level 1, slice by slice; in masks only runs are looked for, and empty slices cost nothing.
    """
    header = nibabel.Nifti1Image(array, placed).header
    header.set_xyzt_units("mm")
    header.set_data_offset(352)
    strategy = zlib.Z_RLE if array.dtype == np.uint8 else zlib.Z_DEFAULT_STRATEGY
    press = zlib.compressobj(1, zlib.DEFLATED, -15, 9, strategy)
    head, body = header.binaryblock + bytes(4), array.tobytes(order="F")
    page = len(body) // array.shape[2]
    parts = [
        b"\x1f\x8b\x08\0\0\0\0\0\x04\xff",
        press.compress(head) + press.flush(zlib.Z_FULL_FLUSH),
    ]  # time 0, no name
    for k in range(array.shape[2]):
        if array[..., k].any():
            parts.append(press.compress(body[k * page : (k + 1) * page]) + press.flush(zlib.Z_FULL_FLUSH))
        else:  # most of a mask: compressed once, as a full flush leaves no link to what came before
            parts.append(_empty_page(page))
    check = zlib.crc32(body, zlib.crc32(head))
    return b"".join((*parts, press.flush(), struct.pack("<II", check, len(head) + len(body))))


@cache
def _empty_page(size: int) -> bytes:
    press = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_RLE)
    return press.compress(bytes(size)) + press.flush(zlib.Z_FULL_FLUSH)
