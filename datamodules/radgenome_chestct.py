"""RadGenome-ChestCT (Zhang et al., arXiv 2404.16754): chest CTs of CT-RATE with ten region masks and region reports.

Layout below `root`, as released and as Reg2RG reads it:

    {train,valid}_preprocessed/<patient>/<scan>/<volume>.nii.gz     HU, 1 × 1 × 3 mm
    {train,valid}_region_mask/seg_<volume>/<region>.nii.gz          {0, 1} on the volume's grid
    radgenome_files/{train,validation}_region_report.csv            Volumename (with .nii.gz), Anatomy, Sentence

`Anatomy` is one of `REGIONS`. Rows without one speak of the whole volume, rows with a deeper name (`lung/left lung`) of
a part; both go unused, as in Reg2RG. Of two rows with the same volume and region the last one counts. The dataset gives
no report of the whole: `Study.report` is the region reports in the order of `REGIONS`, as the paper evaluates them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from datamodules.ct_volume import SUFFIX, MaskScheme, ct_from_files, read_ct
from datamodules.faults import Fault, shown
from datamodules.masks import REGIONS
from datamodules.report_datamodule import ReportDataModule
from datamodules.study import Study
from datamodules.tables import read_csv

__all__ = ["REGIONS", "RadGenomeChestCT"]

_COLUMNS = ("Volumename", "Anatomy", "Sentence")
_WHOLE = {"", "nan", "whole"}


class RadGenomeChestCT(ReportDataModule):
    """RadGenome-ChestCT in its released layout. Arguments and faults are those of `ReportDataModule`."""

    modality: ClassVar[str] = "ct"
    regions: ClassVar[tuple[str, ...]] = REGIONS
    # Reg2RG §IV-A
    published_counts: ClassVar[Mapping[str, int]] = {
        "train volumes": 24_128, "validation volumes": 1_564, "patients": 21_304
    }  # fmt: skip

    def list_studies(self, split: str) -> tuple[list[Study], list[Fault]]:
        """Studies that have a volume and a region report, by name."""
        folder = self._folder(split)
        masks = self.root / ("train_region_mask" if split == "train" else "valid_region_mask")
        table = self.root / "radgenome_files" / f"{split}_region_report.csv"
        reports, faults = read_region_reports(table)
        volumes = {path.name.removesuffix(SUFFIX): path for path in folder.glob(f"*/*/*{SUFFIX}")}
        names = sorted({*reports, *volumes})[: self.limit]
        studies = []
        for name in names:
            if name not in volumes:
                faults.append(Fault(name, f"{table}: {name}{SUFFIX} has a report, but no volume below {folder}"))
            elif name not in reports:
                faults.append(Fault(name, f"{volumes[name]}: has no row in {table}", reference=False))
            else:
                studies.append(_study(name, split, volumes[name], masks / f"seg_{name}", reports[name]))
                faults += mask_faults(studies[-1], masks / f"seg_{name}")
        return studies, faults

    def inspect(self, study: Study) -> tuple[Study, list[Fault]]:
        """See `ct_volume.read_ct`."""
        return read_ct(study)

    def draw_phantom(self, train: int, validation: int) -> None:
        """Phantom patients in this layout."""
        from datamodules.phantom.layouts import write_radgenome

        write_radgenome(
            self.root, train, validation, self.phantom_seed, max(1, self.num_workers), "drawing phantom patients"
        )

    def counts(self) -> Mapping[str, int]:
        """Volumes that have a region report, and the patients whose folders hold them."""
        found, patients = {}, set()
        for split in self.splits:
            table = self.root / "radgenome_files" / f"{split}_region_report.csv"
            reports, _ = read_region_reports(table)
            volumes = self._folder(split).glob(f"*/*/*{SUFFIX}")
            there = [path for path in volumes if path.name.removesuffix(SUFFIX) in reports]
            found[f"{split} volumes"] = len(there)
            patients |= {path.parts[-3] for path in there}
        return found | {"patients": len(patients)}

    def patients(self) -> Mapping[str, frozenset[str]]:
        """The names of the patients' folders, `train_1`."""
        return {
            split: frozenset(path.parts[-3] for path in self._folder(split).glob(f"*/*/*{SUFFIX}"))
            for split in self.splits
        }

    def _folder(self, split: str) -> Path:
        return self.root / ("train_preprocessed" if split == "train" else "valid_preprocessed")

    def study_from_files(self, volume: Path, masks: Path, mask_scheme: MaskScheme = "radgenome") -> Study:
        """One examination from loose files; see `ct_volume.ct_from_files`."""
        return ct_from_files(Path(volume), Path(masks), mask_scheme)


def _study(name: str, split: str, volume: Path, masks: Path, regions: dict[str, str]) -> Study:
    files = {"volume": volume}
    files |= {f"masks/{region}": path for region in REGIONS if (path := masks / f"{region}{SUFFIX}").is_file()}
    return Study(id=name, split=split, report=" ".join(regions.values()), regions=regions, files=files)


def mask_faults(study: Study, folder: Path) -> list[Fault]:
    """What is wrong with a study's masks before any is opened."""
    if not any(name.startswith("masks/") for name in study.files):
        return [Fault(study.id, f"{folder}: no mask in it; expected <region>{SUFFIX}")]
    missing = {r: folder / f"{r}{SUFFIX}" for r in study.regions or {} if f"masks/{r}" not in study.files}
    what = "missing mask, but there is a report of the"
    return [Fault(study.id, f"{path}: {what} {region}", fatal=False) for region, path in missing.items()]


def read_region_reports(path: Path, others: tuple[str, ...] = ()) -> tuple[dict[str, dict[str, str]], list[Fault]]:
    """Volume → region → sentences, regions in the order of `REGIONS`, then of `others`.

    Args:
        path: CSV with the columns `Volumename`, `Anatomy`, `Sentence`.
        others: Further names that `Anatomy` may hold.

    Returns:
        The reports, without volumes that have none of the regions; and the faults: names that are not in the list.

    Raises:
        DataFault: See `tables.read_csv`.
    """
    known = (*REGIONS, *others)
    found: dict[str, dict[str, str]] = {}
    unknown: dict[str, tuple[int, int]] = {}
    for line, row in read_csv(path, _COLUMNS):
        anatomy, sentence = row["Anatomy"], row["Sentence"].strip()
        top, *deeper = anatomy.split("/")
        if anatomy.strip().lower() in _WHOLE:
            continue
        if top not in known:
            first, count = unknown.get(top, (line, 0))
            unknown[top] = first, count + 1
        elif not deeper and sentence:
            found.setdefault(row["Volumename"].removesuffix(SUFFIX), {})[top] = sentence
    faults = []
    for name, (line, count) in unknown.items():
        close = difflib.get_close_matches(name.strip().lower(), known, 1)
        meant = f"did you mean {close[0]!r}?" if close else f"the list is: {', '.join(known)}"
        where = f"{path}:{line}: Anatomy {shown(name)} is not in the list of regions ({count} rows)"
        faults.append(Fault("", f"{where}; {meant}", fatal=False))
    return {name: {key: texts[key] for key in known if key in texts} for name, texts in found.items()}, faults
