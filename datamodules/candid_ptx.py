"""CANDID-PTX (Feng et al., Radiol Artif Intell 3(6):e210136, 2021): 19,237 chest radiographs, 3,196 with pneumothorax.

Layout below `root`, as the University of Auckland gives it out; the table may be gzipped or zipped:

    Pneumothorax_reports.csv          SOPInstanceUID, StudyInstanceUID, EncodedPixels, Report, filename; a row a lesion
    dataset/<SOPInstanceUID>          DICOM, 1024 × 1024, without a suffix; converted .dcm, .png, .jpg will do

`EncodedPixels` is run-length text (`siim_rle`), "-1" where there is no pneumothorax. `filename` begins with the
patient, `P<number>_`. There is no official split: it is drawn from the seed (`candid_ptx_tables`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from datamodules.faults import Fault
from datamodules.report_datamodule import ReportDataModule
from datamodules.study import SettingsFault, Study


class CandidPTX(ReportDataModule):
    """CANDID-PTX. Its other arguments and its faults are those of `ReportDataModule`.

    `Study.masks["pneumothorax"]` is the mask that is given to the method, all 0 where there is no pneumothorax. Where
    that is not the radiologists' own, theirs is `Study.masks["annotation"]`.

    Args:
        root: The dataset's folder.
        images: The folder of images, below `root` or anywhere; without it the known ones are tried (`dataset`, …).
        only_positive: Only images with a pneumothorax, as a prompt that points at it needs.
        split_unit: What is drawn: single `image`s, as the paper does, which lets a patient be trained on and tested;
            or `patient`s with all their images.
        split: A JSON file of a split made before (see `candid_ptx_tables`); without it, it is made from `seed`.
        size: Images that are drawn; a phantom's are all used, split as its marker says.
        validation: So many of the training images are kept to choose the checkpoint by; the paper keeps none.
        test: So many of the images are tested on.
        clean: Take out of the reports what no single image shows; see `report_cleaning`.
        rle_base: The number of an image's first pixel in EncodedPixels; see `siim_rle.decode`.
        masks: A folder of a segmentation model's masks (see `mask_quality`), given in the test split in place of the
            radiologists'.
        dice: Test with masks of this Dice score (± 0.03): those of `masks` that have it, or else the radiologists',
            made worse by `degradation`.
        degradation: How a mask is made worse; see `mask_quality.degrade`.
        cases: Test on so many images: with `masks`, those whose Dice score is nearest to `dice`, else drawn by `seed`.
        options: See `ReportDataModule`.
    """

    modality: ClassVar[str] = "radiograph"
    regions: ClassVar[tuple[str, ...]] = ("pneumothorax",)
    splits: ClassVar[tuple[str, ...]] = ("train", "validation", "test")

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
        rle_base: Literal[0, 1] = 0,
        masks: str | None = None,
        dice: float | None = None,
        degradation: Literal["erode", "dilate", "shift", "elastic"] = "elastic",
        cases: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if dice is not None and not 0 < dice <= 1:
            raise SettingsFault(f"data.dice={dice}: choose a Dice score above 0, 1 at most")
        self.images, self.only_positive, self.split_unit, self.split = images, only_positive, split_unit, split
        self.size, self.validation, self.test = size, validation, test
        self.clean, self.rle_base = clean, rle_base
        self.masks, self.dice, self.degradation, self.cases = masks, dice, degradation, cases

    def list_studies(self, split: str) -> tuple[list[Study], list[Fault]]:
        """Studies of a split in the order in which they were drawn."""
        raise NotImplementedError

    def inspect(self, study: Study) -> tuple[Study, list[Fault]]:
        """The study with its image's grey values (see `radiograph.read_grey`) and its masks."""
        raise NotImplementedError

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
        raise NotImplementedError
