"""CANDID-PTX (Feng et al., Radiol Artif Intell 3(6):e210136, 2021): 19,237 chest radiographs, 3,196 with pneumothorax.

Layout below `root`, as the University of Auckland gives it out; the table may be gzipped or zipped:

    Pneumothorax_reports.csv          SOPInstanceUID, StudyInstanceUID, EncodedPixels, Report, filename; a row a lesion
    dataset/<SOPInstanceUID>          DICOM, 1024 × 1024, without a suffix; converted .dcm, .png, .jpg will do

`EncodedPixels` is run-length text (`siim_rle`), "-1" where there is no pneumothorax. `filename` begins with the
patient, `P<number>_`. There is no official split: it is drawn from the seed (`candid_ptx_tables`).
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from rich.progress import track

from datamodules.candid_ptx_tables import (
    SPLITS,
    Film,
    draw_split,
    find_films_table,
    find_folder,
    find_image,
    name_of,
    read_films,
    read_split,
    shared_patients,
    write_split,
)
from datamodules.faults import Fault
from datamodules.mask_quality import degrade, dice_of, pick_cases, prediction_file, read_prediction
from datamodules.radiograph import read_grey
from datamodules.report_cleaning import clean
from datamodules.report_datamodule import PHANTOM_MARKER, ReportDataModule
from datamodules.siim_rle import decode
from datamodules.store import Store
from datamodules.study import DataFault, SettingsFault, Study
from datamodules.tables import read_json

REGION, ANNOTATION = "pneumothorax", "annotation"
SHAPE = (1024, 1024)  # rows and columns of every image


class CandidPTX(ReportDataModule):
    """CANDID-PTX. Its other arguments and its faults are those of `ReportDataModule`.

    `Study.masks["pneumothorax"]` is the mask that is given to the method, all 0 where there is no pneumothorax. Where
    that is not the radiologists' own, theirs is `Study.masks["annotation"]`.

    Besides what cannot be read, these are faults: an image of the split that is not there, run-length text that is none
    or leaves the image, a predicted mask that is missing or of another size. No fault, for the published table has
    them, but counted: images that stand under two patients or have two reports, and reports of which cleaning leaves
    nothing.

    Args:
        root: The dataset's folder.
        images: The folder of images, below `root` or anywhere; without it the known ones are tried (`dataset`, …).
        only_positive: Only images with a pneumothorax, as a prompt that points at it needs.
        split_unit: What is drawn: single `image`s, as in the paper, which lets a patient be trained on and tested; or
            `patient`s with all their images.
        split: A JSON file of a split made before (see `candid_ptx_tables`). Without it, it is drawn by `seed` and kept
            in `<root>/splits`, or in the store's folder if that lies elsewhere.
        size: Images that are drawn; a phantom's are all used, and divided as it was asked for.
        validation: So many of the training images are kept to choose the checkpoint by; the paper keeps none.
        test: So many of the images are tested on.
        clean: Take out of the reports what no single image shows; see `report_cleaning`.
        rle_base: The number of an image's first pixel in EncodedPixels; see `siim_rle.decode`.
        masks: A folder of a segmentation model's masks, `<SOPInstanceUID>.png` or `.nii.gz` (see `mask_quality`), given
            in the test split in place of the radiologists'.
        dice: Test with masks of this Dice score: those of `masks` that have it (± 0.03, the nearest `cases` of them),
            else the radiologists' made worse by `degradation`. The same image gets the same mask each time.
        degradation: How a mask is made worse; see `mask_quality.degrade`.
        cases: Test on so many images; without `masks` these are the same for every `dice`.
        options: See `ReportDataModule`.

    Attributes:
        left_out: Why images are not used → how many.
        short: How many of `cases` there are not.
    """

    modality: ClassVar[str] = "radiograph"
    regions: ClassVar[tuple[str, ...]] = (REGION,)
    splits: ClassVar[tuple[str, ...]] = SPLITS
    published_counts: ClassVar[Mapping[str, int]] = {"images": 19_237, "images with pneumothorax": 3_196}

    def __init__(
        self,
        root: str,
        images: str | None = None,
        only_positive: bool = True,
        split_unit: Literal["image", "patient"] = "image",
        split: str | None = None,
        size: int = 1000,
        validation: int = 50,
        test: int = 50,
        clean: bool = True,
        rle_base: int = 0,
        masks: str | None = None,
        dice: float | None = None,
        degradation: Literal["erode", "dilate", "shift", "elastic"] = "elastic",
        cases: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if rle_base not in (0, 1):
            raise SettingsFault(f"data.rle_base={rle_base}: an image's first pixel is number 0 or 1")
        if dice is not None and not 0 < dice <= 1:
            raise SettingsFault(f"data.dice={dice}: choose a Dice score above 0, 1 at most")
        if cases is not None and (dice is None or cases < 1):
            raise SettingsFault(f"data.cases={cases}: choose 1 or more, and data.dice, which they are to have")
        self.images, self.only_positive, self.split_unit, self.split = images, only_positive, split_unit, split
        self.size, self.validation, self.test = size, validation, test
        self.clean, self.rle_base = clean, rle_base
        self.masks, self.dice, self.degradation, self.cases = masks, dice, degradation, cases
        self.left_out: dict[str, int] = {}
        self.short = 0
        self._films: dict[str, Film] = {}

    # Studies.

    def list_studies(self, split: str) -> tuple[list[Study], list[Fault]]:
        """Studies of a split in the order in which they were drawn."""
        table, films = find_films_table(self.root), self.films()
        folder = find_folder(self.root, self.images)
        names = self.drawn()[split]
        studies: list[Study] = []
        faults: list[Fault] = []
        empty = 0
        for name in names:
            film, image = films.get(name), find_image(folder, name)
            if film is None:
                faults.append(Fault(name, f"{table}: has no {name} that can be used, but the split names it"))
                continue
            report = clean(film.report)[0] if self.clean else " ".join(film.report.split())
            if not report:
                empty += 1
            elif image is None:
                faults.append(
                    Fault(name, f"{folder / name}: no such file (nor .dcm, .png, .jpg), but there is a report")
                )
            else:
                studies.append(Study(name, split, report=report, files={"image": image, "annotation": table}))
        if empty:
            self.left_out[f"of {split} have no report{' once it is cleaned' if self.clean else ''}"] = empty
        if split == "test" and self.masks:
            studies, found = self._with_predictions(studies, Path(self.masks))
            faults += found
        if split == "test" and (self.cases or (self.masks and self.dice)):
            studies = self._chosen(studies)
        return studies[: self.limit], faults

    def films(self) -> Mapping[str, Film]:
        """SOPInstanceUID → what the table says of the image, of all that can be used."""
        if not self._films:
            self._films, wrong = read_films(find_films_table(self.root))
            self.left_out |= wrong
        return self._films

    def drawn(self) -> Mapping[str, Sequence[str]]:
        """Split → SOPInstanceUIDs: as `split` says, else as it was kept, else drawn anew."""
        kept = Path(self.split) if self.split else self._split_file()
        if kept and (self.split or kept.is_file()):
            return read_split(kept)
        films = [film for film in self.films().values() if film.lesions or not self.only_positive]
        return draw_split(films, self.split_unit, *self._sizes(len(films)), self.seed)

    def inspect(self, study: Study) -> tuple[Study, list[Fault]]:
        """The study with its image's grey values (see `radiograph.read_grey`) and its masks."""
        try:
            image = read_grey(study.files["image"])
            return replace(study, image=image, masks=self._masks(study, image.shape)), []
        except DataFault as fault:
            return study, [Fault(study.id, str(fault))]

    def _masks(self, study: Study, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """The mask that is given to the method, and the radiologists' where that is another."""
        annotation = self._annotation(study, shape)
        if study.split != "test" or not (self.masks or self.dice):
            return {REGION: annotation}
        if self.masks:
            given = read_prediction(study.files["prediction"], annotation.shape)
        else:
            seed = hashlib.sha256(f"{study.id}/{self.dice}/{self.degradation}".encode()).digest()
            rng = np.random.default_rng(int.from_bytes(seed[:8], "big"))
            given, _ = degrade(annotation, self.dice or 1, self.degradation, rng)
        return {REGION: given, ANNOTATION: annotation}

    def _annotation(self, study: Study, shape: tuple[int, ...]) -> np.ndarray:
        """All of an image's lesions, `(row, column)`, uint8."""
        rows, columns = shape
        if shape != SHAPE and not self.is_phantom():
            what = f"{study.files['image']}: has {rows} × {columns} pixels, but its mask counts those of a larger image"
            raise DataFault(f"{what}; give it with {SHAPE[0]} × {SHAPE[1]}")
        mask = np.zeros(shape, np.uint8)
        for text, line in self.films()[study.id].lesions:
            try:
                mask |= decode(text, rows, columns, self.rle_base)
            except ValueError as error:
                where = f"{study.files['annotation']}:{line}: {study.id}"
                raise DataFault(f"{where}: EncodedPixels cannot be read: {error}") from None
        return mask

    # The split and the test's cases.

    def _sizes(self, there: int) -> tuple[int, int, int]:
        """How many images are drawn, to validate, and to test; a phantom is used whole."""
        if not self.is_phantom():
            return self.size, self.validation, self.test
        marker = self.root / PHANTOM_MARKER
        try:
            counts = read_json(marker)["counts"]
            return there, counts["validation"], counts["test"]
        except (KeyError, TypeError):
            raise DataFault(f"{marker}: is damaged; delete {self.root} to draw the phantom anew") from None

    def _split_file(self) -> Path | None:
        """Where the split is kept: in the dataset's folder or, if that is elsewhere, the store's."""
        if self.store is None:
            return None
        phantom = self.is_phantom()
        folder = self.root if phantom or self.store == "auto" else Path(self.store)
        drawn = "phantom" if phantom else f"{self.size - self.validation - self.test}-{self.validation}-{self.test}"
        what = "positive" if self.only_positive else "all"
        return folder / "splits" / f"{what}_{self.split_unit}_{drawn}_seed{self.seed}.json"

    def _with_predictions(self, studies: Sequence[Study], folder: Path) -> tuple[list[Study], list[Fault]]:
        """The studies with the files of their predicted masks."""
        found: list[Study] = []
        faults: list[Fault] = []
        for study in studies:
            if path := prediction_file(folder, study.id):
                found.append(replace(study, files={**study.files, "prediction": path}))
            else:
                faults.append(
                    Fault(study.id, f"{folder / study.id}.png: no such file (nor .nii.gz), the predicted mask")
                )
        return found, faults

    def _chosen(self, studies: Sequence[Study]) -> list[Study]:
        """The images that are tested on, in the split's order."""
        names, cases = sorted(study.id for study in studies), self.cases or len(studies)
        if self.masks:
            scores = {}
            for study in track(studies, "comparing predicted masks", transient=True):
                masks = self._masks(study, read_grey(study.files["image"]).shape)
                scores[study.id] = dice_of(masks[REGION], masks[ANNOTATION])
            names = list(pick_cases(scores, self.dice or 1, cases, self.seed).names)
        elif cases < len(names):
            names = random.Random(f"CANDID-PTX cases/{self.seed}").sample(names, cases)
        self.short = max(0, (self.cases or 0) - len(names))
        return [study for study in studies if study.id in names]

    # What else a dataset tells.

    def prepare_data(self) -> None:
        """As ever; keeps the split, and says what is not used and whether patients are shared between splits."""
        super().prepare_data()
        split, kept = self.drawn(), self._split_file()
        if kept and not self.split and not kept.is_file():
            write_split(kept, split, unit=self.split_unit, only_positive=self.only_positive, seed=self.seed)
        for split_name in self.splits:
            self.studies(split_name)
        if self.short:
            print(f"test: {self.short} images too few with a mask of Dice score {self.dice}; data.cases={self.cases}")
        if self.left_out:
            print(f"images not used: {', '.join(f'{count} {reason}' for reason, count in self.left_out.items())}")
        if shared := shared_patients(self.films(), split):
            whole = len(split["test"])
            print(
                f"{shared} of {whole} test images are of patients who are trained on; data.split_unit=patient has none"
            )

    def draw_phantom(self, train: int, validation: int) -> None:
        """Phantom patients in this layout, as many to test as to validate."""
        from datamodules.phantom.candid_layout import write_candid_ptx

        workers = max(1, self.num_workers)
        write_candid_ptx(
            self.root, train, validation, validation, self.phantom_seed, workers, "drawing phantom patients"
        )

    def label_findings(self) -> Callable[[str], frozenset[str]] | None:
        """As ever, by the words of the phantom's reports on pneumothorax."""
        if super().label_findings() is None:
            return None
        from datamodules.phantom.pneumothorax_wording import findings_in

        return findings_in

    def group_of(self, study: Study) -> str | None:
        """Whether there is a pneumothorax, where both kinds of images are used."""
        film = self.films().get(study.id) if study.split else None
        return None if film is None or self.only_positive else REGION if film.lesions else f"no {REGION}"

    def examination_of(self, study: Study) -> str:
        """The StudyInstanceUID, where the table tells it."""
        return (self.films()[study.id].study if study.split else "") or study.id

    def patient_of(self, study: Study) -> str | None:
        """What the table's `filename` begins with, `P<number>`; `None` of loose files."""
        return (self.films()[study.id].patient if study.split else "") or None

    def counts(self) -> Mapping[str, int]:
        """Images of the table; of those with a pneumothorax, the ones whose rows agree."""
        films, wrong = read_films(find_films_table(self.root))
        positive = sum(bool(film.lesions) for film in films.values())
        return {"images": len(films) + sum(wrong.values()), "images with pneumothorax": positive}

    def open_store(self) -> Store | None:
        """As ever, but masks of another quality are stored nowhere: a level differs in a few test images only, and
        would fill a store of its own with the training images again. They are where `on_error="skip"` needs it."""
        if (self.masks or self.dice) and self.on_error == "raise":
            return None
        store = super().open_store()
        if store is None or self.preprocessor is None:
            return None
        given = {"masks": self.masks, "dice": self.dice, "degradation": self.degradation if self.dice else None}
        choice = {name: value for name, value in {"rle_base": self.rle_base, **given}.items() if value}
        return Store(store.folder.parent, {**self.preprocessor.settings(), **choice})

    def study_from_files(self, image: Path, masks: str = "") -> Study:
        """One radiograph from loose files.

        Args:
            image: Grey PNG (8 or 16 bit), JPEG or DICOM; see `radiograph.read_grey`.
            masks: Where the pneumothorax is: a mask's PNG or NIfTI file, the folder that holds `<image's name>.png`, or
                run-length text as in EncodedPixels ("-1": nowhere). None: not known.

        Raises:
            DataFault: A file cannot be read, or the mask is not as large as the image.
            SettingsFault: The run-length text is none.
        """
        image = Path(image)
        name, grey, files = name_of(image), read_grey(image), {"image": image}
        rows, columns = grey.shape
        if not masks.strip():
            return Study(id=name, image=grey, files=files)
        if re.fullmatch(r"\s*(-1|[\d\s]+)", masks):
            try:
                mask = decode(masks, rows, columns, self.rle_base)
            except ValueError as error:
                raise SettingsFault(f"--masks: as run-length text it cannot be read: {error}") from None
            return Study(id=name, image=grey, masks={REGION: mask}, files=files)
        path = Path(masks)
        found = prediction_file(path, name) if path.is_dir() else path if path.is_file() else None
        if found is None:
            raise DataFault(f"{path / name if path.is_dir() else path}: no such file; give a mask's PNG or NIfTI file")
        mask = read_prediction(found, (rows, columns))
        return Study(id=name, image=grey, masks={REGION: mask}, files={**files, "masks": found})
