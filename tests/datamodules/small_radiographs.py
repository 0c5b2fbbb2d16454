"""Small datasets of radiographs on disk, for tests: noise as films, in each dataset's own layout and file formats."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset

from datamodules.mimic_cxr_tables import FINDINGS
from datamodules.siim_rle import encode

SHAPE = (40, 32)
SPLITS = ("train", "train", "train", "validation", "test")  # of patients 1 to 5


def film(number: int, high: int = 256) -> np.ndarray:
    return np.random.default_rng(number).integers(0, high, SHAPE).astype(np.uint8 if high <= 256 else np.uint16)


def lesion(number: int) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[5 + number : 15 + number, 4:20] = 1
    return mask


def table(path: Path, rows: list[dict[str, str]]) -> None:
    """A CSV; gzipped where its name says so."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def padchest(root: Path) -> Path:
    """Studies 1001 to 1005 with two sentences each; the first has a box."""
    (root / "PadChest_GR").mkdir(parents=True)
    reports, rows = [], []
    for number, split in enumerate(SPLITS, 1):
        name = f"{1000 + number}"
        Image.fromarray(film(number, 65536)).save(root / f"PadChest_GR/{name}.png")
        nodule = {"sentence_en": f"Nodule {number}.", "abnormal": True, "labels": ["nodule"], "boxes": [[0, 0, 0.5, 1]]}
        findings = [nodule, {"sentence_en": "No effusion.", "abnormal": False}]
        reports.append({"StudyID": name, "ImageID": f"{name}.png", "findings": findings})
        row = {"StudyID": name, "ImageID": f"{name}.png", "PatientID": f"P{number}", "split": split}
        rows.append(row | {"sentence_en": f"Nodule {number}.", "label": "nodule"})
    (root / "grounded_reports_1.json").write_text(json.dumps(reports))
    table(root / "master_table.csv", rows)
    return root


def mimic(root: Path, masks: str = "png") -> Path:
    """Studies s50000001 to s50000005 with an image and masks of two classes, in one of the forms that tools write."""
    keys, labels = [], []
    for number, split in enumerate(SPLITS, 1):
        patient, study, dicom = f"1000000{number}", f"5000000{number}", f"d{number}"
        folder = root / f"files/p10/p{patient}/s{study}"
        folder.mkdir(parents=True)
        Image.fromarray(film(number)).save(folder / f"{dicom}.jpg", quality=95)
        folder.with_suffix(".txt").write_text(f" FINAL REPORT\n \n FINDINGS:  Film {number}.\n")
        key = {"dicom_id": dicom, "study_id": study, "subject_id": patient}
        keys.append(key | {"split": split.replace("validation", "validate"), "ViewPosition": "PA"})
        labels.append({"study_id": study, "subject_id": patient, **dict.fromkeys(FINDINGS, "0.0")})
        _masks(root / "masks", dicom, np.stack([lesion(number), lesion(0)]), masks)
    for name, rows in (("split", keys), ("metadata", keys), ("chexpert", labels)):
        table(root / f"mimic-cxr-2.0.0-{name}.csv.gz", rows)
    (root / "masks/classes.txt").write_text("heart\nlung\n")
    return root


def _masks(folder: Path, stem: str, masks: np.ndarray, form: str) -> None:
    folder.mkdir(exist_ok=True)
    if form == "png":
        (folder / stem).mkdir()
        for name, mask in zip(("heart", "lung"), masks, strict=True):
            Image.fromarray(mask * 255).save(folder / stem / f"{name}.png")
    elif form == "json":
        from pycocotools import mask as coco

        counts = [coco.encode(np.asfortranarray(mask))["counts"].decode() for mask in masks]
        cut = [
            {"image_id": 1, "category_id": n, "segmentation": {"size": SHAPE, "counts": c}}
            for n, c in enumerate(counts)
        ]
        content = {"images": [{"id": 1, "file_name": f"{stem}.jpg"}], "annotations": cut}
        (folder / f"{stem}.json").write_text(json.dumps(content))
    else:
        (np.save if form == "npy" else np.savez_compressed)(folder / f"{stem}.{form}", masks)


def candid(root: Path) -> Path:
    """Images 1.2.1 to 1.2.5 as DICOM without a suffix, each with a lesion and a predicted mask, marked as a phantom."""
    (root / "dataset").mkdir(parents=True)
    (root / "predicted").mkdir()
    rows = []
    for number in range(1, 6):
        name = f"1.2.{number}"
        save_dicom(film(number), root / "dataset" / name)
        Image.fromarray(lesion(number)).save(root / f"predicted/{name}.png")
        known = {"SOPInstanceUID": name, "StudyInstanceUID": f"1.9.{number}", "EncodedPixels": encode(lesion(number))}
        rows.append(known | {"Report": f"Pneumothorax {number}, large.", "filename": f"P{number:04}_20100101.dcm"})
    table(root / "Pneumothorax_reports.csv", rows)
    counts = {"train": 3, "validation": 1, "test": 1}
    (root / "PHANTOM.json").write_text(json.dumps({"counts": counts, "complete": True}))
    names = [row["SOPInstanceUID"] for row in rows]
    split = {"train": names[:3], "validation": names[3:4], "test": names[4:]}
    (root / "split.json").write_text(json.dumps(split))
    return root


def save_dicom(image: np.ndarray, path: Path) -> None:
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.DigitalXRayImageStorageForPresentation, path.name
    dataset.Rows, dataset.Columns = image.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = image.tobytes()
    dataset.save_as(path, enforce_file_format=True)
