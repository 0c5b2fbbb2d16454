"""PadChest-GR (de Castro et al., arXiv 2411.05085): 4,555 frontal radiographs, a sentence and boxes for every finding.

Layout below `root`, as BIMCV gives it out (tables may stay zipped; join the image parts and unzip them):

    grounded_reports_<date>.json     [{"StudyID", "ImageID", "findings": [{"sentence_en", "abnormal", "boxes", …}]}]
    master_table.csv                 StudyID, ImageID, PatientID, split, sentence_en, label, …; positive sentences only
    <any folder>/<ImageID>           16-bit grey PNG

A positive finding has `boxes`, which may be empty, perhaps `extra_boxes` of a second reader, and `labels`; a negative
one has none of these keys. Ids are whole numbers of some 39 digits and stay text.

In place of the JSON, the tables that RegionFormer's authors derive from it will do (`*_final_separated.csv`: StudyID,
ImageID, report_es, report_en, boxes, extra_boxes, split). They do not say which sentences are positive; the master
table does, where it lies beside them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from datamodules.faults import Fault
from datamodules.masks import Box, disturbed_box
from datamodules.padchest_gr_tables import Entry, Finding, boxes_of, find_images, read_entries
from datamodules.radiograph import read_grey
from datamodules.report_datamodule import ReportDataModule
from datamodules.store import Store
from datamodules.study import DataFault, SettingsFault, Study


class PadChestGR(ReportDataModule):
    """PadChest-GR. Its other arguments and its faults are those of `ReportDataModule`.

    `Study.findings` says whether a sentence is positive: its labels, `()` where it is negative, `None` where the files
    do not tell. `Study.boxes` is empty where nothing is marked, whether positive or negative.

    Besides what cannot be read, these are faults: a patient of two splits (training goes without), a box that is not
    four numbers or has no area (training goes without the sentence), one that reaches out of the image (it is clipped).

    Args:
        root: The dataset's folder.
        unit: What a study is: one `finding` (image, sentence, its boxes; named `<StudyID>/<number from 0>`), which is
            RegionFormer's task, or a whole `study`, the sentences joined in the file's order.
        boxes: The first reader's `boxes`, or the `union` of these with `extra_boxes`.
        validation_split: The official split on which checkpoints are chosen. RegionFormer chose on the `test` split,
            which flatters the figures; that choice is for repeating the paper alone.
        percent: Use this share of the training studies (findings), drawn by `seed`: `int(N · percent / 100)` of them.
        box_noise: Shift and scale every box at random, level 0 (not at all) to 5; see `masks.disturbed_box`. A box's
            draw depends on `seed`, its image and itself, so it is the same at each level, in each epoch and split.
        options: See `ReportDataModule`.
    """

    modality: ClassVar[str] = "radiograph"
    regions: ClassVar[tuple[str, ...]] = ()  # sentences belong to boxes, not to regions with names
    splits: ClassVar[tuple[str, ...]] = ("train", "validation", "test")
    published_counts: ClassVar[Mapping[str, int]] = {
        "train studies": 3_185, "validation studies": 455, "test studies": 915, "patients": 4_459,
        "positive findings": 7_037, "negative findings": 3_422,
    }  # fmt: skip

    def __init__(
        self,
        root: str,
        unit: Literal["finding", "study"] = "finding",
        boxes: Literal["boxes", "union"] = "boxes",
        validation_split: Literal["validation", "test"] = "validation",
        percent: int = 100,
        box_noise: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if not 0 < percent <= 100:
            raise SettingsFault(f"data.percent={percent}: choose 1 to 100")
        if not 0 <= box_noise <= 5:
            raise SettingsFault(f"data.box_noise={box_noise}: choose 0 to 5")
        self.unit, self.boxes, self.validation_split = unit, boxes, validation_split
        self.percent, self.box_noise = percent, box_noise

    def list_studies(self, split: str) -> tuple[list[Study], list[Fault]]:
        """Studies of a split in the file's order; `validation` is what `validation_split` says."""
        official = self.validation_split if split == "validation" else split
        entries, placed = read_entries(self.root)
        images = find_images(self.root)
        later = {entry.patient for entry in entries if self.splits.index(entry.split) > self.splits.index(official)}
        faults = [fault for place, fault in placed if place == official]
        studies: list[Study] = []
        for entry in entries:
            if entry.split != official:
                continue
            wrong = list(_entry_faults(entry, images.get(entry.image, []), later))
            faults += wrong
            if any(fault.fatal for fault in wrong):
                continue
            for study, found in self._made_of(entry, images[entry.image][0]):
                faults += found
                if not any(fault.fatal for fault in found):
                    studies.append(study)
        if split == "train":
            studies = share(studies, self.percent, self.seed)
        return studies[: self.limit], faults

    def inspect(self, study: Study) -> tuple[Study, list[Fault]]:
        """The study with its image's own grey values; see `radiograph.read_grey`."""
        try:
            return replace(study, image=read_grey(study.files["image"])), []
        except DataFault as fault:
            return study, [Fault(study.id, str(fault))]

    def draw_phantom(self, train: int, validation: int) -> None:
        """Phantom patients in this layout, as many for the test split as for validation."""
        from datamodules.phantom.padchest_layout import write_padchest_gr

        workers = max(1, self.num_workers)
        write_padchest_gr(
            self.root, train, validation, validation, self.phantom_seed, workers, "drawing phantom patients"
        )

    def label_findings(self) -> Callable[[str], frozenset[str]] | None:
        """As ever, by the words of the phantom's radiographs."""
        if super().label_findings() is None:
            return None
        from datamodules.phantom.radiograph_wording import findings_in

        return findings_in

    def group_of(self, study: Study) -> str | None:
        """`positive` or `negative` of a sentence, where the files tell."""
        if self.unit == "study" or study.findings is None:
            return None
        return "positive" if study.findings else "negative"

    def examination_of(self, study: Study) -> str:
        """The StudyID, of a sentence too."""
        return study.id.partition("/")[0]

    def study_from_files(self, image: Path, boxes: str = "") -> Study:
        """One radiograph from loose files.

        Args:
            image: Grey PNG (8 or 16 bit), JPEG or DICOM; see `radiograph.read_grey`.
            boxes: What the report is to speak of: `x0,y0,x1,y1;…` as fractions of width and height from the upper left
                corner, or a JSON file with a list of such boxes. None: the image as a whole.

        Raises:
            DataFault: A file cannot be read.
            SettingsFault: The boxes are no boxes.
        """
        image = Path(image)
        grey = read_grey(image)
        found = _given_boxes(boxes)
        return Study(id=image.stem, image=grey, boxes={"finding": found} if found else {}, files={"image": image})

    def counts(self) -> Mapping[str, int]:
        """Studies, patients and sentences of the reports that are in one official split."""
        entries, _ = read_entries(self.root)
        found = {f"{split} studies": sum(entry.split == split for entry in entries) for split in self.splits}
        known = [bool(finding.labels) for entry in entries for finding in entry.findings if finding.labels is not None]
        found |= {"positive findings": sum(known), "negative findings": len(known) - sum(known)}
        return found | {"patients": len({entry.patient for entry in entries if entry.patient})}

    def patients(self) -> Mapping[str, frozenset[str]]:
        """Those of the official splits."""
        entries, _ = read_entries(self.root)
        of_split = {split: [entry.patient for entry in entries if entry.split == split] for split in self.splits}
        return {split: frozenset(name for name in names if name) for split, names in of_split.items()}

    def open_store(self) -> Store | None:
        """A folder for each choice of boxes: they decide the arrays as much as the preprocessor's settings do."""
        store = super().open_store()
        if store is None or self.preprocessor is None:
            return None
        noise = {"box_noise": self.box_noise, "seed": self.seed} if self.box_noise else {}
        return Store(store.folder.parent, {**self.preprocessor.settings(), "boxes": self.boxes, **noise})

    def _made_of(self, entry: Entry, image: Path) -> Iterator[tuple[Study, list[Fault]]]:
        """The studies that an entry makes, each with what is wrong with it."""
        if self.unit == "study":
            yield self._study(entry.study, entry, entry.findings, image)
        else:
            for number, finding in enumerate(entry.findings):
                yield self._study(f"{entry.study}/{number}", entry, [finding], image)

    def _study(self, name: str, entry: Entry, findings: list[Finding], image: Path) -> tuple[Study, list[Fault]]:
        faults = []
        boxes: dict[str, tuple[Box, ...]] = {}
        for finding in findings:
            label = ", ".join(finding.labels or ("finding",))
            for raw in (finding.boxes, finding.extra_boxes if self.boxes == "union" else []):
                usable, wrong = boxes_of(raw)
                faults += [Fault(name, f"{entry.source}: {name}: {what}", fatal=lost) for what, lost in wrong]
                if usable:
                    boxes[label] = boxes.get(label, ()) + tuple(self._placed(box, entry.image) for box in usable)
        sentences = [finding.sentence for finding in findings if finding.sentence]
        if len(sentences) < len(findings):
            what = f"{entry.source}: {name}: a finding has no English sentence"
            faults.append(Fault(name, what, fatal=not sentences, reference=bool(sentences)))
        known = [finding.labels for finding in findings if finding.labels is not None]
        labels = tuple(dict.fromkeys(label for each in known for label in each))
        study = Study(
            id=name,
            split=entry.split,
            boxes=boxes,
            report=" ".join(sentences),
            findings=labels if len(known) == len(findings) else None,
            files={"image": image, "annotation": entry.source},
        )
        return study, faults

    def _placed(self, box: Box, image: str) -> Box:
        """The box where `box_noise` puts it."""
        rng = random.Random(f"box noise/{self.seed}/{image}/{box}")
        return disturbed_box(box, (rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(-1, 1)), self.box_noise)


def share(studies: Sequence[Study], percent: int, seed: int) -> list[Study]:
    """`int(N · percent / 100)` of the studies in their order, drawn as RegionFormer's code does, but from a seed."""
    drawn = torch.randperm(len(studies), generator=torch.Generator().manual_seed(seed))
    return [studies[index] for index in sorted(drawn[: int(len(studies) * percent / 100)].tolist())]


def _entry_faults(entry: Entry, images: list[Path], patients_of_later_splits: set[str | None]) -> Iterator[Fault]:
    """What keeps a whole study from being used."""
    where = f"{entry.source}: {entry.study}"
    if not images:
        yield Fault(entry.study, f"{where}: its image {entry.image} lies nowhere below the dataset's folder")
    if len(images) > 1:
        yield Fault(entry.study, f"{where}: there are several images of its name: {', '.join(map(str, images))}")
    if not entry.findings:
        yield Fault(entry.study, f"{where}: has no findings", reference=False)
    if entry.patient and entry.patient in patients_of_later_splits:
        what = f"{where}: its patient {entry.patient} is in the {entry.split} split and in one evaluated after it"
        yield Fault(entry.study, what, fatal=entry.split == "train")


def _given_boxes(text: str) -> tuple[Box, ...]:
    """Boxes from the command line, or from the JSON file that it names."""
    raw: Any
    try:
        if text.strip().endswith(".json"):
            raw = json.loads(Path(text.strip()).read_text(encoding="utf-8"))
        else:
            raw = [[float(edge) for edge in box.split(",")] for box in text.split(";") if box.strip()]
    except OSError as error:
        raise DataFault(f"{text}: cannot be read ({error.strerror})") from None
    except ValueError:
        raw = text
    boxes, wrong = boxes_of(raw if isinstance(raw, (list, str)) else str(raw))
    if wrong:
        expected = "expected x0,y0,x1,y1;… as fractions of the image, 0 to 1, or a JSON file with a list of such boxes"
        raise SettingsFault(f"{text!r}: {'; '.join(what for what, _ in wrong)}: {expected}")
    return tuple(boxes)
