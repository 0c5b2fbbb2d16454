"""MIMIC-CXR (Johnson et al., Sci Data 6:317, 2019): 377,110 radiographs of 227,835 studies with their reports.

Layout below `root`, as PhysioNet gives out MIMIC-CXR-JPG; tables may stay gzipped:

    files/p10/p10000032/s50414267/<dicom_id>.jpg      8-bit grey
    mimic-cxr-2.0.0-split.csv.gz                      dicom_id, study_id, subject_id, split (train, validate, test)
    mimic-cxr-2.0.0-metadata.csv.gz                   dicom_id, study_id, subject_id, ViewPosition, …
    mimic-cxr-2.0.0-chexpert.csv.gz                   study_id and 14 labels; it may be missing

The reports come with MIMIC-CXR (mimic-cxr-reports.zip), below `root` too or below `reports`:

    files/p10/p10000032/s50414267.txt

The text to be written is a section of the report, by the dataset makers' rules (`mimic_cxr_sections`). Its `___`, which
stands for what was taken out to protect the patient, stays. Its white space is collapsed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from rich.progress import track

from datamodules.faults import Fault
from datamodules.mimic_cxr_sections import Section, section_of
from datamodules.mimic_cxr_tables import Radiograph, read_labels, read_radiographs
from datamodules.radiograph import read_grey
from datamodules.report_datamodule import ReportDataModule
from datamodules.resized_images import make_copies, make_copy
from datamodules.segmentation_files import made_by, mask_file, open_masks
from datamodules.store import Store
from datamodules.study import DataFault, SettingsFault, Study
from datamodules.tables import read_text

_PREFERRED = {"PA": 0, "AP": 1}  # the frontal views


class MimicCXR(ReportDataModule):
    """MIMIC-CXR. Its other arguments and its faults are those of `ReportDataModule`.

    `Study.findings` are the labels that CheXpert's labeller found in the whole report, `()` where it found none and
    `None` where its table lacks the study or is missing. Studies whose report lacks the section are not part of the
    dataset: they are no fault, but counted. Nor are studies without an image of the views.

    Besides what cannot be read, these are faults: a patient of two splits (training goes without), an image that only
    one of the tables knows or that is not there, a missing report, a study without masks where there is a folder of
    them (it goes without masks).

    Args:
        root: The dataset's folder.
        reports: The folder whose `files/p10/…` holds the reports, where this is not `root`.
        section: What the report is: `findings`, as in ASaRG, `impression`, or both, `findings+impression` (what there
            is of them).
        views: `frontal` images only (ViewPosition PA or AP) or `all`.
        per_study: `one` image a study, PA before AP before others, then the first in the split table; or `all`, each a
            study of its own, named `<study>/<dicom_id>`, with the same report.
        resized: Copy the images with this shorter side (pixels) to `<root>/.resized-<n>` once and read these. `None`:
            the originals, of some 2500 × 3000 pixels.
        masks: A folder of segmentation outputs, named by dicom_id; see `segmentation_files`. Below `root`, where there
            is such a folder. They keep the size of their files, whatever `resized` says. Or a function, written
            `package.module:name`, that makes them: grey values `(row, column)` → class name → `{0, 1}` of that shape.
        options: See `ReportDataModule`.

    Attributes:
        without_section: Split → studies that are not part of it for want of the section.
    """

    modality: ClassVar[str] = "radiograph"
    regions: ClassVar[tuple[str, ...]] = ()
    splits: ClassVar[tuple[str, ...]] = ("train", "validation", "test")
    published_counts: ClassVar[Mapping[str, int]] = {
        "train images": 368_960, "train studies": 222_758, "train patients": 64_586,
        "validation images": 2_991, "validation studies": 1_808, "validation patients": 500,
        "test images": 5_159, "test studies": 3_269, "test patients": 293,
    }  # fmt: skip

    def __init__(
        self,
        root: str,
        reports: str | None = None,
        section: Section = "findings",
        views: Literal["frontal", "all"] = "frontal",
        per_study: Literal["one", "all"] = "one",
        resized: int | None = None,
        masks: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if resized is not None and resized < 1:
            raise SettingsFault(f"data.resized={resized}: give the shorter side in pixels, or null for the originals")
        self.reports = self.root if reports is None else Path(reports)
        self.section, self.views, self.per_study = section, views, per_study
        self.resized, self.masks = resized, masks
        self.without_section: dict[str, int] = {}

    def list_studies(self, split: str) -> tuple[list[Study], list[Fault]]:
        """Studies of a split in the order of the split table."""
        radiographs, placed = read_radiographs(self.root)
        faults = [fault for place, fault in placed if place == split]
        broken = {fault.study_id for fault in faults if fault.fatal}
        later = {r.patient for r in radiographs if self.splits.index(r.split) > self.splits.index(split)}
        labels = read_labels(self.root)
        groups = {name: group for name, group in self._grouped(radiographs, split).items() if name not in broken}
        studies: list[Study] = []
        unread = self.without_section[split] = 0
        quick = len(groups) < 500
        for name, group in track(groups.items(), f"reading {split} reports", transient=True, disable=quick):
            if self.limit is not None and len(studies) >= self.limit:
                break
            if group[0].patient in later:
                what = f"{self.root}: patient p{group[0].patient} of {name} is in the {split} split and in one"
                faults.append(Fault(name, f"{what} evaluated after it", fatal=split == "train"))
                if split == "train":
                    continue
            try:
                report = section_of(self._report(group[0]), self.section, name)
            except DataFault as fault:
                unread += 1
                faults.append(Fault(name, str(fault), reference=False))
                continue
            if not report:
                self.without_section[split] += 1
                continue
            found = None if labels is None else labels.get(group[0].study)
            for study in self._studies_of(name, group, report, found):
                if self._there(study.files["image"]):
                    studies.append(study)
                else:
                    what = f"{self._original(study.files['image'])}: no such file, but there is a report of {name}"
                    faults.append(Fault(study.id, what))
        if groups and unread == len(groups):
            raise DataFault(
                f"{self.reports}: holds no report of the {split} split; set data.reports to the folder whose files/ "
                "holds p10/p10000032/s50414267.txt (they come with MIMIC-CXR, not with MIMIC-CXR-JPG)"
            )
        return studies[: self.limit], faults

    def inspect(self, study: Study) -> tuple[Study, list[Fault]]:
        """The study with its image's grey values (see `radiograph.read_grey`) and, where asked for, its masks."""
        image = study.files["image"]
        try:
            if self.resized:
                make_copy(self._original(image), image, self.resized)
            grey = read_grey(image)
        except DataFault as fault:
            return study, [Fault(study.id, str(fault))]
        study = replace(study, image=grey)
        if self.masks is None:
            return study, []
        if (segment := self._function()) is not None:
            return replace(study, masks=segment(grey)), []
        try:
            shape = None if self.resized else grey.shape
            return replace(study, masks=open_masks(self._masks(self.masks), image.stem, shape)), []
        except DataFault as fault:
            return study, [Fault(study.id, str(fault), fatal=False)]

    def draw_phantom(self, train: int, validation: int) -> None:
        """Phantom patients in this layout, masks below `<root>/masks`, as many studies to test as to validate."""
        from datamodules.phantom.mimic_layout import write_mimic_cxr

        workers = max(1, self.num_workers)
        write_mimic_cxr(
            self.root, train, validation, validation, self.phantom_seed, workers, "drawing phantom patients"
        )

    def label_findings(self) -> Callable[[str], frozenset[str]] | None:
        """As ever, by the words of the phantom's radiographs."""
        if super().label_findings() is None:
            return None
        from datamodules.phantom.radiograph_wording import findings_in

        return findings_in

    def examination_of(self, study: Study) -> str:
        """The study's name, of an image too."""
        return study.id.partition("/")[0]

    def patient_of(self, study: Study) -> str | None:
        """The name of the patient's folder, `p10000032`; `None` of loose files."""
        return study.files["image"].parts[-3] if study.split else None

    def counts(self) -> Mapping[str, int]:
        """Images, studies and patients of the split table."""
        found = {}
        radiographs, _ = read_radiographs(self.root)
        for split in self.splits:
            there = [radiograph for radiograph in radiographs if radiograph.split == split]
            found[f"{split} images"] = len(there)
            found[f"{split} studies"] = len({radiograph.study for radiograph in there})
            found[f"{split} patients"] = len({radiograph.patient for radiograph in there})
        return found

    def patients(self) -> Mapping[str, frozenset[str]]:
        """Those of the split table, named as `patient_of` names them."""
        radiographs, _ = read_radiographs(self.root)
        return {split: frozenset(f"p{r.patient}" for r in radiographs if r.split == split) for split in self.splits}

    def prepare_data(self) -> None:
        """As ever; then makes the smaller copies that are not there yet, and says what lacks the section."""
        super().prepare_data()
        if self.resized:
            images = [study.files["image"] for split in self.splits for study in self.studies(split)]
            pairs = [(self._original(image), image) for image in images]
            make_copies(pairs, self.resized, self.num_workers, "shrinking images")
        if lacking := {split: count for split, count in self.without_section.items() if count}:
            counts = ", ".join(f"{count} of {split}" for split, count in lacking.items())
            print(f"studies that are not used, for their reports have no {self.section}: {counts}")

    def study_from_files(self, image: Path, masks: Path | None = None) -> Study:
        """One radiograph from loose files.

        Args:
            image: Grey JPEG, PNG (8 or 16 bit) or DICOM; see `radiograph.read_grey`.
            masks: Folder of segmentation outputs, the image's own named as the image is; see `segmentation_files`.

        Raises:
            DataFault: A file cannot be read, or there are no masks of the image.
        """
        image = Path(image)
        grey = read_grey(image)
        found = None if masks is None else open_masks(Path(masks), image.stem, grey.shape)
        return Study(id=image.stem, image=grey, masks=found, files={"image": image})

    def open_store(self) -> Store | None:
        """A folder for each choice of images and masks: they decide the arrays as much as the preprocessor does."""
        store = super().open_store()
        if store is None or self.preprocessor is None:
            return None
        choice = {name: value for name in ("resized", "masks") if (value := getattr(self, name)) is not None}
        if self.masks is not None and ":" not in self.masks and (tool := made_by(self._masks(self.masks))):
            choice["masks_made_by"] = tool
        return Store(store.folder.parent, {**self.preprocessor.settings(), **choice})

    def _grouped(self, radiographs: Sequence[Radiograph], split: str) -> Mapping[str, list[Radiograph]]:
        """Study → its images of the split and the views, in order."""
        groups: dict[str, list[Radiograph]] = {}
        for radiograph in radiographs:
            if radiograph.split == split and (self.views == "all" or radiograph.view in _PREFERRED):
                groups.setdefault(f"s{radiograph.study}", []).append(radiograph)
        return groups

    def _studies_of(
        self, name: str, group: list[Radiograph], report: str, findings: tuple[str, ...] | None
    ) -> list[Study]:
        """The studies that a study's images make."""
        one = self.per_study == "one"
        folder = self.root / f".resized-{self.resized}" if self.resized else self.root
        studies = []
        for radiograph in [min(group, key=lambda r: _PREFERRED.get(r.view, 2))] if one else group:
            files = {"image": folder / radiograph.folder / f"{radiograph.dicom}.jpg"}
            in_files = self.masks is not None and ":" not in self.masks
            if in_files and (masks := mask_file(self._masks(self.masks or ""), radiograph.dicom)):
                files["masks"] = masks
            known = name if one else f"{name}/{radiograph.dicom}"
            studies.append(Study(known, radiograph.split, report=report, findings=findings, files=files))
        return studies

    def _masks(self, given: str) -> Path:
        """The folder of segmentation outputs: below `root`, or as it was given."""
        below = self.root / given
        return Path(given) if Path(given).is_dir() and not below.is_dir() else below

    def _function(self) -> Callable[[np.ndarray], Mapping[str, np.ndarray]] | None:
        """What makes the masks, where they come from no files."""
        module, colon, name = (self.masks or "").partition(":")
        if not colon:
            return None
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise SettingsFault(
                f"data.masks={self.masks}: no such function ({error}); write package.module:name"
            ) from None

    def _report(self, radiograph: Radiograph) -> str:
        path = self.reports / f"{radiograph.folder}.txt"
        if not path.is_file():
            raise DataFault(f"{path}: no such file, the report of s{radiograph.study}")
        return read_text(path, ".txt")

    def _original(self, image: Path) -> Path:
        """The image that a smaller copy is of; any other as it is."""
        return self.root.joinpath(*image.parts[-5:]) if self.resized else image

    def _there(self, image: Path) -> bool:
        return image.is_file() or self._original(image).is_file()
