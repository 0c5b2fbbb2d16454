"""`zoo.prepare --verify`: planted faults are found and named; what is sound is not."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from datamodules.ctrg_chest import CTRGChest
from datamodules.mimic_cxr import MimicCXR
from datamodules.padchest_gr import PadChestGR
from datamodules.radgenome_chestct import RadGenomeChestCT
from tests.datamodules import small_ct
from tests.datamodules.test_mimic_cxr import IMAGES, find, write_metadata, write_split
from tests.datamodules.test_mimic_cxr import root as mimic  # noqa: F401
from tests.datamodules.test_padchest_gr import root as padchest  # noqa: F401
from zoo.prepare import main
from zoo.verify_data import datasets

LEAKS = ("patients in two splits", "examinations in two splits", "files of the same content in two splits")


@pytest.fixture
def ct(tmp_path) -> Path:
    """Five small CTs, no two alike."""
    root = small_ct.radgenome(tmp_path / "with space" / "ct")
    for number in (1, 2):
        small_ct.save(small_ct.volume(10 + number), volume(root, f"valid_{number}_a_1"))
    return root


def volume(root: Path, name: str) -> Path:
    split, number, _, _ = name.split("_")
    return root / f"{split}_preprocessed/{split}_{number}/{split}_{number}a/{name}.nii.gz"


def add_report(root: Path, split: str, name: str, text: str) -> None:
    with (root / f"radgenome_files/{split}_region_report.csv").open("a", newline="") as file:
        csv.writer(file).writerow((f"{name}.nii.gz", "heart", text))


def verify(dataset: str, root: Path, *more: str) -> tuple[int, dict, str]:
    code = main(["--verify", dataset, f"data.root={root}", *more])
    text = (root / "verify.json").read_text()
    return code, json.loads(text), text


def found(content: dict) -> dict:
    """Check → what it found, of those that found something."""
    return {name: check["found"] for name, check in content["checks"].items() if check["found"]}


def test_a_sound_dataset_passes_and_its_counts_are_compared(ct, capsys):
    code, content, _ = verify("radgenome_chestct", ct)
    out = capsys.readouterr().out
    assert code == 0 and content["problems"] == [] and found(content) == {}
    assert content["counts"]["train"] == {"studies": 3, "patients": 3, "files": 3}
    assert content["published"]["patients"] == {"here": 5, "published": 21304}
    assert "! train volumes: 3 here, 24,128 published" in out and "✓ patients in two splits: none" in out


@pytest.mark.parametrize("workers", [0, 2])
def test_planted_faults_are_found(ct, workers, capsys):
    cut = volume(ct, "train_2_a_1")
    cut.write_bytes(cut.read_bytes()[:-200])
    shutil.copy(volume(ct, "train_1_a_1"), volume(ct, "valid_1_a_1"))  # the same content in another split
    stranger = "train_3_b_1"  # a second scan of a training patient, put beside those that are evaluated
    small_ct.save(small_ct.volume(20), ct / f"valid_preprocessed/train_3/train_3b/{stranger}.nii.gz")
    small_ct.save(small_ct.mask(0), ct / f"valid_region_mask/seg_{stranger}/heart.nii.gz")
    add_report(ct, "validation", stranger, "A sentence.")
    code, content, text = verify("radgenome_chestct", ct, f"data.num_workers={workers}")
    (unread,) = found(content)["files that cannot be read or used"]
    (same,) = found(content)["files of the same content in two splits"]
    assert code == 3 and len(found(content)) == 3
    assert unread["id"] == "train_2_a_1" and str(cut) in unread["what"]
    assert same == {
        "splits": ["train", "validation"],
        "ids": ["train_1_a_1", "valid_1_a_1"],
        "files": [str(volume(ct, name)) for name in ("train_1_a_1", "valid_1_a_1")],
    }
    assert found(content)["patients in two splits"] == [{"patient": "train_3", "splits": ["train", "validation"]}]
    assert "sentence" not in text.lower() and "Heart" not in text
    assert "patients in two splits" in capsys.readouterr().err


def test_copies_within_a_split_and_broken_masks_are_shown_but_pass(ct):
    shutil.copy(volume(ct, "train_1_a_1"), volume(ct, "train_2_a_1"))
    (ct / "train_region_mask/seg_train_3_a_1/lung.nii.gz").write_bytes(b"no mask")
    code, content, _ = verify("radgenome_chestct", ct)
    assert code == 0 and set(found(content)) == {"files of the same content in one split", "masks that cannot be used"}
    assert found(content)["masks that cannot be used"][0]["id"] == "train_3_a_1"


def test_an_error_that_no_dataset_foresees_names_the_file_and_stops_nothing(ct, monkeypatch):
    read = RadGenomeChestCT.inspect

    def inspect(self, study):
        return 1 / 0 if study.id == "train_1_a_1" else read(self, study)

    monkeypatch.setattr(RadGenomeChestCT, "inspect", inspect)
    code, content, _ = verify("radgenome_chestct", ct)
    (fault,) = found(content)["files that cannot be read or used"]
    assert code == 3 and fault["what"] == f"{volume(ct, 'train_1_a_1')}: reading it failed (ZeroDivisionError)"


def test_an_empty_report_is_shown(tmp_path):
    root = small_ct.ctrg(tmp_path)
    table = root / "annotation.json"
    table.write_text(table.read_text().replace("Heart 2. Comparison with the last scan.", "  "))
    code, content, _ = verify("ctrg_chest", root)
    assert code == 0 and found(content) == {"empty reports": [{"id": "2", "split": "train"}]}
    assert "patients in two splits" not in content["checks"]  # CTRG names no patients


def test_a_patient_whom_training_goes_without_is_found_all_the_same(mimic):  # noqa: F811
    moved = [(*row[:2], 19000005, *row[3:]) if row[0] == "f" else row for row in IMAGES]
    write_split(mimic, moved)
    write_metadata(mimic, moved)
    code, content, _ = verify("mimic_cxr", mimic)
    assert code == 3
    assert found(content)["patients in two splits"] == [{"patient": "p19000005", "splits": ["train", "test"]}]


def test_the_same_image_of_two_splits_is_found_in_every_unit(mimic, padchest):  # noqa: F811
    shutil.copy(find(mimic, "c"), find(mimic, "i"))
    _, content, _ = verify("mimic_cxr", mimic)
    assert [row["splits"] for row in found(content)["files of the same content in two splits"]] == [["test", "train"]]
    code, content, _ = verify("padchest_gr", padchest)  # a study is a sentence: many have one image
    assert code == 0 and found(content) == {}


def test_what_is_published_is_what_is_counted(ct, tmp_path, mimic, padchest):  # noqa: F811
    expected = {
        RadGenomeChestCT(str(ct)): {"train volumes": 3, "validation volumes": 2, "patients": 5},
        CTRGChest(str(small_ct.ctrg(tmp_path / "ctrg"))): {"reports": 5},
        PadChestGR(str(padchest)): {
            "train studies": 3, "validation studies": 1, "test studies": 1, "patients": 5,
            "positive findings": 4, "negative findings": 4,
        },
        MimicCXR(str(mimic)): {
            "train images": 7, "train studies": 4, "train patients": 3,
            "validation images": 1, "validation studies": 1, "validation patients": 1,
            "test images": 1, "test studies": 1, "test patients": 1,
        },
    }  # fmt: skip
    for data, counts in expected.items():
        assert data.counts() == counts
        assert data.published_counts.keys() == counts.keys()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["mimic_cxx", "data.root=."], 2, "did you mean mimic_cxr?"),
        (["mimic_cxr"], 2, "data.root is missing"),
        (["mimic_cxr", "data.root=.", "data.section=all"], 2, "data.section=all"),
        (["mimic_cxr", "data.root=.", "model.lr=1"], 2, "there is no setting model.lr"),
        (["mimic_cxr", "data.root=.", "--method", "toy"], 2, "leave out --method"),
        (["mimic_cxr", "data.root=nowhere"], 3, "set data.root"),
        (["mimic_cxr", "data.root=."], 3, "no such file"),
        (["mimic_cxr", "data.root=.", "--output", "no/such/folder.json"], 4, "--output FILE"),
    ],
)
def test_what_cannot_be_verified_is_said_in_a_line(toy, capsys, arguments, code, said):
    assert main(["--verify", *arguments]) == code
    assert said in capsys.readouterr().err
    assert list(toy.iterdir()) == []


def test_datasets_are_found_by_their_files():
    assert {"mimic_cxr", "ctrg_chest"} < datasets().keys()
    assert datasets()["padchest_gr"] == "datamodules.padchest_gr:PadChestGR"
