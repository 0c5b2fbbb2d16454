"""CTRG-Chest-548K (Tang et al., github.com/tangyuhao2016/CTRG): 1,804 chest CTs with reports, in Reg2RG's use of it.

Layout below `root`:

    annotation.json                          {"train": [{"id", "finding"}, …], "test": […]}, as released
    CTRG-Chest-548K_volume/<id>.nii.gz       as converted in Trusure/CTRG-Chest-548K_volume; id is a whole number
    region_mask/seg_<id>/<region>.nii.gz     {0, 1} on the volume's grid
    region_report.csv                        Volumename, Anatomy, Sentence, as RadGenome-ChestCT's

Reg2RG (§IV-A) made the last two itself, with SAT and Qwen2.5-14B, and released neither: bring your own. `Anatomy` may
also be `other`, for sentences of no region; they stand in the whole report only. Where the annotation has one list
without splits, it is parted 8:2 at random, as in the paper, and the parts are written to `split_8_2.json`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from datamodules.ct_volume import SUFFIX, MaskScheme, ct_from_files, read_ct
from datamodules.faults import Fault
from datamodules.masks import REGIONS
from datamodules.radgenome_chestct import mask_faults, read_region_reports
from datamodules.report_datamodule import ReportDataModule
from datamodules.study import DataFault, Study
from datamodules.tables import read_json

_EVALUATED = ("test", "val", "validation")


class CTRGChest(ReportDataModule):
    """CTRG-Chest-548K. Arguments and faults are those of `ReportDataModule`."""

    modality: ClassVar[str] = "ct"
    regions: ClassVar[tuple[str, ...]] = REGIONS
    published_counts: ClassVar[Mapping[str, int]] = {"reports": 1_804}  # of all splits; the parts are each one's own

    def list_studies(self, split: str) -> tuple[list[Study], list[Fault]]:
        """Studies that have a volume and a report, by number."""
        folder, table = self.root / "CTRG-Chest-548K_volume", self.root / "annotation.json"
        findings, elsewhere = self._findings(table, split)
        regions, faults = read_region_reports(self.root / "region_report.csv", others=("other",))
        volumes = {path.name.removesuffix(SUFFIX): path for path in folder.glob(f"*{SUFFIX}")}
        unnamed = set() if split != "train" else volumes.keys() - findings.keys() - elsewhere
        studies = []
        for name in sorted({*findings, *unnamed}, key=lambda name: (len(name), name))[: self.limit]:
            masks = self.root / "region_mask" / f"seg_{name}"
            if name in unnamed:
                faults.append(Fault(name, f"{volumes[name]}: {table} does not name it", reference=False))
            elif name not in volumes:
                faults.append(Fault(name, f"{table}: {name} has a report, but there is no {folder / (name + SUFFIX)}"))
            else:
                spoken = {region: text for region, text in regions.get(name, {}).items() if region in REGIONS}
                study = _study(name, split, volumes[name], masks, findings[name], spoken)
                if split == "train" and not spoken:
                    faults.append(Fault(name, f"{self.root / 'region_report.csv'}: {name} has no region's report"))
                studies.append(study)
                faults += mask_faults(study, masks)
        return studies, faults

    def inspect(self, study: Study) -> tuple[Study, list[Fault]]:
        """See `ct_volume.read_ct`."""
        return read_ct(study)

    def draw_phantom(self, train: int, validation: int) -> None:
        """Phantom patients in this layout."""
        from datamodules.phantom.layouts import write_ctrg

        write_ctrg(
            self.root, train, validation, self.phantom_seed, max(1, self.num_workers), "drawing phantom patients"
        )

    def counts(self) -> Mapping[str, int]:
        """Reports of the annotation, over all its lists."""
        return {"reports": sum(map(len, _read_annotation(self.root / "annotation.json").values()))}

    def study_from_files(self, volume: Path, masks: Path, mask_scheme: MaskScheme = "radgenome") -> Study:
        """One examination from loose files; see `ct_volume.ct_from_files`."""
        return ct_from_files(Path(volume), Path(masks), mask_scheme)

    def _findings(self, table: Path, split: str) -> tuple[dict[str, str], set[str]]:
        """Id → whole report of one split, and the ids of all others."""
        lists = _read_annotation(table)
        evaluated = next((name for name in _EVALUATED if name in lists), None)
        if evaluated is None:
            lists = self._part(lists.get("train", []))
            evaluated = "test"
        chosen = "train" if split == "train" else evaluated
        texts = {name: {str(row["id"]): _text(row, table) for row in rows} for name, rows in lists.items()}
        if both := texts.get("train", {}).keys() & texts[evaluated].keys():
            raise DataFault(f"{table}: {', '.join(sorted(both)[:5])} stand in train and in {evaluated}")
        return texts.get(chosen, {}), {name for other, rows in texts.items() if other != chosen for name in rows}

    def _part(self, rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """80 % for training, 20 % for evaluation; the first to ask decides, by its seed, and writes it down."""
        path = self.root / "split_8_2.json"
        ids = sorted((str(row["id"]) for row in rows), key=lambda name: (len(name), name))
        if path.is_file():
            parts = read_json(path)
            try:
                same = sorted(parts["train"] + parts["test"]) == sorted(ids)
            except (KeyError, TypeError):
                same = False
            if not same:
                raise DataFault(f"{path}: names other studies than annotation.json; delete it to part them anew")
        else:
            random.Random(f"split/{self.seed}").shuffle(ids)
            cut = round(0.8 * len(ids))
            parts = {"train": ids[:cut], "test": ids[cut:]}
            with suppress(OSError):  # a folder that cannot be written gets the same parts from the same seed
                partial = path.with_name(f".{path.name}.partial")
                partial.write_text(json.dumps(parts) + "\n", encoding="utf-8")
                partial.replace(path)
        train = set(parts["train"])
        return {
            "train": [row for row in rows if str(row["id"]) in train],
            "test": [row for row in rows if str(row["id"]) not in train],
        }


def _study(name: str, split: str, volume: Path, masks: Path, report: str, regions: dict[str, str]) -> Study:
    files = {"volume": volume}
    files |= {f"masks/{region}": path for region in REGIONS if (path := masks / f"{region}{SUFFIX}").is_file()}
    return Study(id=name, split=split, report=report, regions=regions, files=files)


def _read_annotation(table: Path) -> dict[str, list[dict[str, Any]]]:
    content = read_json(table)
    lists = {"train": content} if isinstance(content, list) else content
    rows_of = list(lists.values()) if isinstance(lists, dict) else [None]
    every = [row for rows in rows_of for row in (rows if isinstance(rows, list) else [None])]
    if not all(isinstance(row, dict) and "id" in row for row in every):
        raise DataFault(f'{table}: expected {{"train": [{{"id": …, "finding": …}}, …], "test": […]}}')
    return lists


def _text(row: dict[str, Any], table: Path) -> str:
    for key in ("finding", "findings"):
        if isinstance(row.get(key), str):
            return row[key]
    raise DataFault(f"{table}: {row['id']} has no 'finding'; its keys are {', '.join(row)}")
