"""Every kind of file that a dataset has, broken in every way: one line that names it, no study lost, no wrong picture.

The datasets are small ones in the true layouts; what each file stands for decides what becomes of it:

* `study`: `raise` names it; `skip` leaves its study out of training and lists it, and an evaluation never does without;
* `part`: masks: `raise` names it; `skip` goes on without them, and lists it;
* `table`: of many studies: named in either case.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from datamodules.candid_ptx import CandidPTX
from datamodules.ct_volume import read_nifti
from datamodules.ctrg_chest import CTRGChest
from datamodules.mimic_cxr import MimicCXR
from datamodules.padchest_gr import PadChestGR
from datamodules.radgenome_chestct import RadGenomeChestCT
from datamodules.radiograph import read_grey
from datamodules.study import DataFault
from datamodules.tables import read_csv, read_json, read_text
from tests.datamodules import small_ct, small_radiographs


class Sums:
    """A preprocessor that reads every pixel and every mask."""

    def settings(self) -> dict[str, Any]:
        return {"sums": 1}

    def arrays(self, study) -> dict[str, np.ndarray]:
        pixels = {"pixels": study.volume if study.image is None else study.image, **(study.masks or {})}
        return {name: np.float64([pixels[name].sum()]) for name in pixels}

    def __call__(self, study, arrays, rng) -> dict[str, Any]:
        return {"id": study.id}

    def collate(self, samples) -> dict[str, Any]:
        return {"ids": [sample["id"] for sample in samples]}


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def nearly_whole(content: bytes) -> bytes:
    """Of a table: within its last value, behind a quote that is not closed."""
    return content.rstrip(b'"\r\n}] ')


def noise(content: bytes) -> bytes:
    return np.random.default_rng(0).bytes(len(content))


def scratched(content: bytes) -> bytes:
    """Right in length, head and end, wrong between: only a checksum tells."""
    middle = len(content) * 3 // 5
    return content[:middle] + bytes(255 - byte for byte in content[middle : middle + 8]) + content[middle + 8 :]


def zeroed(content: bytes) -> bytes:
    """What a file system leaves of a file when the power went."""
    return bytes(len(content))


def emptied(content: bytes) -> bytes:
    return b""


def pointer(content: bytes) -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"


ALL = (cut, noise, scratched, zeroed, emptied, pointer)
NO_CHECKSUM = tuple(each for each in ALL if each is not scratched)
TABLE = (cut, nearly_whole, noise, zeroed, emptied, pointer)


@dataclass(frozen=True)
class Case:
    """A kind of file.

    Attributes:
        name: Dataset and kind.
        make: Writes the dataset.
        data: Its DataModule.
        files: Pattern of a training study's file, or of the table.
        counts_for: `study`, `part` or `table`.
        evaluated: Pattern of the same file of an evaluated study.
        damages: What is done to it.
        options: Of the DataModule.
    """

    name: str
    make: Callable[[Path], Path]
    data: type
    files: str
    counts_for: str
    evaluated: str = ""
    damages: tuple[Callable[[bytes], bytes], ...] = ALL
    options: dict[str, Any] = field(default_factory=dict)


def _mimic(form: str) -> Callable[[Path], Path]:
    return lambda root: small_radiographs.mimic(root, form)


def _unparted(root: Path) -> Path:
    small_ct.ctrg(root, parted=False)
    CTRGChest(str(root)).studies("train")  # parts it
    return root


_CT = "{0}_preprocessed/{0}_1/{0}_1a/{0}_1_a_1.nii.gz"
_CT_MASK = "{0}_region_mask/seg_{0}_1_a_1/heart.nii.gz"
_MASKED: dict[str, Any] = {"masks": "masks"}
_GIVEN: dict[str, Any] = {"split": "{root}/split.json"}
CASES = [
    Case("radgenome volume", small_ct.radgenome, RadGenomeChestCT, _CT.format("train"), "study", _CT.format("valid")),
    Case("radgenome mask", small_ct.radgenome, RadGenomeChestCT, _CT_MASK.format("train"), "part"),
    Case("radgenome table", small_ct.radgenome, RadGenomeChestCT, "*/train_region_report.csv", "table", damages=TABLE),
    Case("ctrg volume", small_ct.ctrg, CTRGChest, "*_volume/1.nii.gz", "study", "*_volume/5.nii.gz", (cut, scratched)),
    Case("ctrg mask", small_ct.ctrg, CTRGChest, "region_mask/seg_1/lung.nii.gz", "part", damages=(cut, scratched)),
    Case("ctrg annotation", small_ct.ctrg, CTRGChest, "annotation.json", "table", damages=TABLE),
    Case("ctrg table", small_ct.ctrg, CTRGChest, "region_report.csv", "table", damages=TABLE),
    Case("ctrg split", _unparted, CTRGChest, "split_8_2.json", "table", damages=TABLE),
    Case("padchest image", small_radiographs.padchest, PadChestGR, "*/1001.png", "study", "*/1004.png"),
    Case("padchest reports", small_radiographs.padchest, PadChestGR, "grounded*.json", "table", damages=TABLE),
    Case("padchest table", small_radiographs.padchest, PadChestGR, "master_table.csv", "table", damages=TABLE),
    Case("mimic image", _mimic("png"), MimicCXR, "**/d1.jpg", "study", "**/d5.jpg", NO_CHECKSUM),
    Case("mimic report", _mimic("png"), MimicCXR, "**/s50000001.txt", "study", damages=(noise, zeroed)),
    Case("mimic split", _mimic("png"), MimicCXR, "*-split.csv.gz", "table"),
    Case("mimic metadata", _mimic("png"), MimicCXR, "*-metadata.csv.gz", "table"),
    Case("mimic labels", _mimic("png"), MimicCXR, "*-chexpert.csv.gz", "table"),
    Case(
        "png masks",
        _mimic("png"),
        MimicCXR,
        "masks/d1/lung.png",
        "study",
        "masks/d4/lung.png",
        (cut, scratched, pointer),
        _MASKED,
    ),
    Case("npz masks", _mimic("npz"), MimicCXR, "masks/d1.npz", "part", options=_MASKED),
    Case("npy masks", _mimic("npy"), MimicCXR, "masks/d1.npy", "part", damages=(cut, noise, emptied), options=_MASKED),
    Case("coco masks", _mimic("json"), MimicCXR, "masks/d1.json", "part", damages=TABLE, options=_MASKED),
    Case("candid image", small_radiographs.candid, CandidPTX, "dataset/1.2.1", "study", "*/1.2.4", NO_CHECKSUM, _GIVEN),
    Case("candid table", small_radiographs.candid, CandidPTX, "Pneumo*.csv", "table", damages=TABLE),
    Case("candid split", small_radiographs.candid, CandidPTX, "split.json", "table", damages=TABLE, options=_GIVEN),
    Case("candid phantom", small_radiographs.candid, CandidPTX, "PHANTOM.json", "table", damages=TABLE),
    Case(
        "predicted mask",
        small_radiographs.candid,
        CandidPTX,
        "predicted/1.2.5.png",
        "table",  # of the test split alone, which nothing is left out of
        options={"masks": "{root}/predicted", **_GIVEN},
    ),
]


def opened(case: Case, root: Path, on_error: str):
    options = {key: value.format(root=root) for key, value in case.options.items()}
    data = case.data(str(root), on_error=on_error, store=str(root / ".store"), **options)
    data.preprocessor = Sums()
    return data


def broken(case: Case, whole: Path, to: Path, pattern: str, damage: Callable[[bytes], bytes]) -> tuple[Path, Path]:
    """A copy of the dataset with one broken file: its root and the file."""
    shutil.copytree(whole, to)
    (path,) = to.glob(pattern)
    path.write_bytes(damage(path.read_bytes()))
    return to, path


def refused(data, path: Path) -> None:
    """Preparing and reading ends with a line that names the file, and says what to do."""
    with pytest.raises(DataFault) as caught:
        data.prepare_data()
        for study in data.studies("test"):
            data.read(study)
    lines = str(caught.value).splitlines()
    (line,) = {line for line in lines if path.name in line or f"{path.parent}:" in line}
    assert len(lines) <= 4 and all(line.isprintable() for line in lines)
    assert any(
        word in str(caught.value) for word in ("fetch it again", "repair", "take the original", "delete", "expected")
    )
    assert "Film" not in line and "Heart " not in line and "Nodule " not in line  # no word of a report


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_broken_file_is_named_and_loses_nothing_else(tmp_path, case):
    whole = case.make(tmp_path / "whole")
    sound = opened(case, shutil.copytree(whole, tmp_path / "sound"), "raise")
    sound.prepare_data()
    before = {split: [study.id for study in sound.studies(split)] for split in sound.splits}
    for damage in case.damages:
        root, path = broken(case, whole, tmp_path / f"raise {damage.__name__}", case.files, damage)
        refused(opened(case, root, "raise"), path)
        data = opened(case, root, "skip")
        if case.counts_for == "table":
            refused(data, path)
            continue
        data.prepare_data()
        (listed,) = root.glob(".store/*/skipped.jsonl")
        rows = [json.loads(line) for line in listed.read_text("utf-8").splitlines()]
        lost = {row["id"] for row in rows if row["dropped"]}
        after = {split: [study.id for study in data.studies(split)] for split in data.splits}
        assert after == before | {"train": [name for name in before["train"] if name not in lost]}
        assert rows and len(after["train"]) > 0 and (lost or case.counts_for == "part")
        assert all(path.name in row["what"] or str(path.parent) in row["what"] for row in rows)
        if case.evaluated:
            root, path = broken(case, whole, tmp_path / f"evaluated {damage.__name__}", case.evaluated, damage)
            refused(opened(case, root, "skip"), path)


# Single readers.


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_volume_cut_anywhere_is_named_in_one_line(tmp_path, suffix, share):
    path = tmp_path / f"a{suffix}"
    small_ct.save(small_ct.volume(0), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DataFault) as caught:
        read_nifti(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_no_header_makes_a_reader_ask_for_all_memory(tmp_path):
    path = tmp_path / "a.nii"
    small_ct.save(small_ct.volume(0), path)
    content = bytearray(path.read_bytes())
    content[40:48] = np.int16([3, 32767, 32767, 32767]).tobytes()  # 70 TB
    path.write_bytes(content)
    with pytest.raises(DataFault, match="a.nii: cannot be read"):
        read_nifti(path)


def test_what_stands_in_a_files_place_is_said(tmp_path):
    for content, told in (
        (pointer(b""), "is a Git LFS pointer, .*git lfs pull"),
        (b"\n<!DOCTYPE html><html>Log in</html>", "is a web page, .*log in"),
        (b"", "is empty; fetch it again"),
    ):
        for name, read in (("a.nii.gz", read_nifti), ("a.png", read_grey), ("a.json", read_json)):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(DataFault, match=f"{name}: {told}"):
                read(tmp_path / name)
        (tmp_path / "a.csv").write_bytes(content)
        with pytest.raises(DataFault, match=f"a.csv: {told}"):
            list(read_csv(tmp_path / "a.csv", ("id", "text")))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_pillow_never_fills_up_what_is_missing(tmp_path, suffix):
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False  # whatever was imported
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 12, 97):  # of a PNG without its last chunk nothing is missing
        path.write_bytes(whole[:length])
        with pytest.raises(DataFault, match=f"a.{suffix}: "):
            read_grey(path)


LONG = "Patchy opacities. " * 10_000
TEXTS = ["", " \t ", "µ é 肺 🫁 \u202eעברית", "two\r\nlines", "one\u2028paragraph", LONG]


def test_any_text_comes_through_a_table_as_it_is(tmp_path):
    """Written on Windows: a mark at the start and CR LF at line ends, within quotes too."""
    path = tmp_path / "Ångström ü 患者.csv"
    quoted = "".join(f'{number},"{text}"\r\n' for number, text in enumerate(TEXTS))
    path.write_bytes(("\ufeffid,text\r\n" + quoted).encode())
    rows = [row for _, row in read_csv(path, ("id", "text"))]
    assert [row["text"] for row in rows] == TEXTS and rows[0]["id"] == "0"
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(TEXTS).encode())
    assert read_json(tmp_path / "a.json") == TEXTS


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'id,text\n1,"Heart', "its last line has no end"),
        (b'id,text\n1,"Heart\n', "unexpected end of data"),
        (b"id,text\n1,Heart, large.\n", "a.csv:2: its row has more values"),
        (b"id,text\n1\n", "a.csv:2: its row has fewer values"),
        (b"id,text\n1,Heart\0\n", "holds characters 0"),
        ("id,text\n1,Heart\n".encode("utf-16"), "is not UTF-8 text"),
        ("id,text\n1,Heart µ\n".encode("latin-1"), "is not UTF-8 text"),
        (b"1,The Heart is as large as it was then.\n", "no column id, text; its first line is no header"),
    ],
)
def test_a_table_that_lost_something_says_so_without_its_words(tmp_path, content, told):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(DataFault, match=told) as caught:
        list(read_csv(path, ("id", "text")))
    assert "Heart" not in str(caught.value)


@pytest.mark.parametrize("content", ['["Heart \\u0000"]', '["Heart \\ud83e"]', '["Heart" "', "[" * 100_000, '["Heart'])
def test_json_without_text_in_it_says_so_without_its_words(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataFault, match="a.json: cannot be read as JSON") as caught:
        read_json(tmp_path / "a.json")
    assert "Heart" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_text_with_a_zero_in_it_is_damaged(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"Heart\0\0\0")
    with pytest.raises(DataFault, match="a.txt: holds characters 0"):
        read_text(tmp_path / "a.txt", ".txt")
