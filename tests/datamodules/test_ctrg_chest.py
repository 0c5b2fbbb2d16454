"""CTRG-Chest-548K's layout, its split and its faults."""

from __future__ import annotations

import json

import pytest
from small_ct import ctrg, write_rows

from datamodules.ctrg_chest import CTRGChest
from datamodules.study import DataFault


def test_reads_the_layout(tmp_path):
    data = CTRGChest(str(ctrg(tmp_path)))
    assert [study.id for study in data.studies("train")] == ["1", "2", "3"]
    assert [study.id for study in data.studies("test")] == ["4", "5"]
    study = data.read(data.studies("test")[0])
    assert study.report == "Heart 4. Comparison with the last scan."  # the whole report, other sentences included
    assert study.regions == {"heart": "Heart 4."} and set(study.masks) == {"heart", "lung"}


def test_an_annotation_without_splits_is_parted_once(tmp_path):
    root = ctrg(tmp_path, 10, 0, parted=False)
    data = CTRGChest(str(root), seed=1)
    train, test = ({study.id for study in data.studies(split)} for split in ("train", "test"))
    assert len(train) == 8 and len(test) == 2 and not train & test
    again = CTRGChest(str(root), seed=2)  # the first to ask decided
    assert {study.id for study in again.studies("train")} == train
    (root / "split_8_2.json").unlink()
    assert {study.id for study in CTRGChest(str(root), seed=1).studies("train")} == train
    (root / "split_8_2.json").write_text(json.dumps({"train": ["1"], "test": []}))
    with pytest.raises(DataFault, match="split_8_2.json: names other studies"):
        CTRGChest(str(root)).studies("train")


def _annotate(root, content):
    (root / "annotation.json").write_text(content if isinstance(content, str) else json.dumps(content))


def _report(root, region):
    write_rows(root / "region_report.csv", [("1.nii.gz", region, "Text.")])


VOLUME, TABLE = "CTRG-Chest-548K_volume", "annotation.json"
TWICE = {"train": [{"id": 1, "finding": ""}], "test": [{"id": 1, "finding": ""}]}


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda root: (root / VOLUME / "2.nii.gz").unlink(), f"{TABLE}: 2 has a report, but there is no"),
        (lambda root: (root / VOLUME / "2.nii.gz").rename(root / VOLUME / "77.nii.gz"), "77.nii.gz: .* not name it"),
        (lambda root: (root / "region_mask/seg_1/heart.nii.gz").unlink(), "seg_1/heart.nii.gz: missing mask"),
        (lambda root: (root / "region_report.csv").unlink(), "region_report.csv: no such file"),
        (lambda root: _report(root, "liver"), "'liver' is not in the list"),
        (lambda root: _report(root, "heart"), "2 has no region's report"),
        (lambda root: _annotate(root, "{"), f"{TABLE}: cannot be read as JSON"),
        (lambda root: _annotate(root, {"train": [{"name": 1}]}), f"{TABLE}: expected"),
        (lambda root: _annotate(root, {"train": [{"id": 1, "text": ""}], "test": []}), "keys are id, text"),
        (lambda root: _annotate(root, TWICE), "1 stand in train and in test"),
    ],
)
def test_faults(tmp_path, break_it, expected):
    break_it(ctrg(tmp_path))
    with pytest.raises(DataFault, match=expected):
        CTRGChest(str(tmp_path)).studies("train")
