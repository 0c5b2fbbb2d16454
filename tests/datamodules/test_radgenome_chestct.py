"""RadGenome-ChestCT's layout, its faults, and single examinations from loose files."""

from __future__ import annotations

import gzip
import json
import shutil

import numpy as np
import pytest
import small_ct
from small_ct import Means, radgenome

from datamodules.ct_volume import read_nifti
from datamodules.masks import REGIONS, TOTALSEGMENTATOR
from datamodules.radgenome_chestct import RadGenomeChestCT
from datamodules.study import DataFault


@pytest.fixture
def root(tmp_path):
    return radgenome(tmp_path / "data")


def _mask(root, name, region):
    return root / f"{name.split('_')[0]}_region_mask/seg_{name}/{region}.nii.gz"


def _volume(root, name):
    return next(root.glob(f"*_preprocessed/*/*/{name}.nii.gz"))


def test_reads_the_layout(root):
    data = RadGenomeChestCT(str(root))
    studies = data.studies("train")
    assert [study.id for study in studies] == ["train_1_a_1", "train_2_a_1", "train_3_a_1"]
    assert data.studies("test") == data.studies("validation")
    study = data.read(studies[1])
    assert study.split == "train" and study.report == "Heart 2. Lungs 2."
    assert study.regions == {"heart": "Heart 2.", "lung": "Lungs 2."}
    assert study.volume.dtype == np.int16 and np.array_equal(study.volume, small_ct.volume(2))
    assert set(study.masks) == {"heart", "lung", "thyroid"}  # a region without a report keeps its mask
    assert study.masks["lung"].dtype == np.uint8 and np.array_equal(study.masks["lung"], small_ct.mask(1))
    assert study.spacing == (1, 1, 3) and study.orientation == ("L", "P", "S")


def test_rows_as_the_reference_reads_them(root):
    name = "train_1_a_1.nii.gz"
    texts = [("lung", "First."), ("", "Of the whole."), ("nan", "Of the whole."), ("lung", "Last."),
             ("lung/left lung", "Of a part."), ("trachea and bronchie", "Open.")]  # fmt: skip
    rows = [(name, *text) for text in texts]
    small_ct.write_rows(root / "radgenome_files/train_region_report.csv", rows)
    small_ct.save(small_ct.mask(4), _mask(root, "train_1_a_1", "trachea and bronchie"))
    data = RadGenomeChestCT(str(root), limit=1)
    (study,) = data.studies("train")
    assert study.regions == {"lung": "Last.", "trachea and bronchie": "Open."}
    assert list(study.regions) == ["lung", "trachea and bronchie"] and study.report == "Last. Open."


def _rewrite_rows(root, extra):
    path = root / "radgenome_files/train_region_report.csv"
    path.write_text(path.read_text() + extra)
    return path


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda root: _mask(root, "train_2_a_1", "lung").unlink(), "seg_train_2_a_1/lung.nii.gz: missing mask"),
        (lambda root: shutil.rmtree(_mask(root, "train_2_a_1", "lung").parent), "seg_train_2_a_1: no mask in it"),
        (lambda root: _volume(root, "train_3_a_1").unlink(), "train_3_a_1.nii.gz has a report, but no volume"),
        (
            lambda root: small_ct.save(small_ct.volume(9), root / "train_preprocessed/a/b/train_9_a_1.nii.gz"),
            "train_9_a_1.nii.gz: has no row in",
        ),
        (
            lambda root: _rewrite_rows(root, "train_1_a_1.nii.gz,Lung,Typed wrongly.\n"),
            r"report.csv:8: Anatomy 'Lung' is not in the list of regions \(1 rows\); did you mean 'lung'",
        ),
    ],
)
def test_faults_that_show_without_opening_a_file(root, break_it, expected):
    break_it(root)
    with pytest.raises(DataFault, match=expected):
        RadGenomeChestCT(str(root)).studies("train")


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda v, m: small_ct.save(np.zeros(small_ct.SHAPE, np.uint8), m), "heart.nii.gz: empty mask"),
        (lambda v, m: small_ct.save(small_ct.mask(0)[:-1], m), r"heart.nii.gz: has shape \(19, 18, 10\)"),
        (lambda v, m: small_ct.save(small_ct.mask(0), m, np.eye(4)), "heart.nii.gz: its affine places it"),
        (lambda v, m: small_ct.save(small_ct.mask(0) * 255, m), "heart.nii.gz: a mask holds 0 and 1"),
        (lambda v, m: _truncate(m), "heart.nii.gz: cannot be read"),
        (lambda v, m: _truncate(v), "train_1_a_1.nii.gz: cannot be read"),
        (lambda v, m: v.write_text("no volume"), "train_1_a_1.nii.gz: cannot be read"),
        (lambda v, m: small_ct.save(np.zeros((4, 4, 4, 3), np.int16), v), "train_1_a_1.nii.gz: has 4 axes"),
        (lambda v, m: small_ct.save(np.full(small_ct.SHAPE, -1024, np.int16), v), "holds nothing but air"),
        (lambda v, m: small_ct.save(np.full(small_ct.SHAPE, np.nan, np.float32), v), "values that are no numbers"),
    ],
)
def test_faults_that_show_on_reading(root, break_it, expected):
    data = RadGenomeChestCT(str(root))
    study = data.studies("train")[0]
    break_it(_volume(root, "train_1_a_1"), _mask(root, "train_1_a_1", "heart"))
    with pytest.raises(DataFault, match=expected):
        data.read(study)


def test_all_faults_are_named_at_once(root):
    for name in ("train_1_a_1", "train_3_a_1"):
        _mask(root, name, "heart").unlink()
    with pytest.raises(DataFault) as caught:
        RadGenomeChestCT(str(root)).studies("train")
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 faults in the data:" and len(lines) == 4
    assert "seg_train_1_a_1/heart" in lines[1] and "seg_train_3_a_1/heart" in lines[2] and "on_error=skip" in lines[3]


def test_missing_column_lists_those_there_are(root):
    path = root / "radgenome_files/train_region_report.csv"
    path.write_text(path.read_text().replace("Anatomy", "Region"))
    with pytest.raises(DataFault, match=r"no column Anatomy; the columns are: Volumename, Region, Sentence"):
        RadGenomeChestCT(str(root)).studies("train")


def test_an_empty_mask_without_a_report_is_no_fault(root):
    small_ct.save(np.zeros(small_ct.SHAPE, np.uint8), _mask(root, "train_1_a_1", "thyroid"))
    data = RadGenomeChestCT(str(root))
    assert set(data.read(data.studies("train")[0]).masks) == {"heart", "lung"}


def test_skipping_is_counted_and_written_down(root):
    _truncate(_volume(root, "train_2_a_1"))
    _mask(root, "train_3_a_1", "lung").unlink()
    small_ct.save(np.zeros(small_ct.SHAPE, np.uint8), _mask(root, "valid_1_a_1", "lung"))
    data = RadGenomeChestCT(str(root), on_error="skip")
    data.preprocessor = Means()
    for _ in range(2):  # the second time everything is in the store, and still nothing is forgotten
        data.prepare_data()
        rows = [json.loads(line) for line in next(root.glob(".store/*/skipped.jsonl")).read_text().splitlines()]
        assert {(row["id"], row["split"], row["dropped"]) for row in rows} == {
            ("train_2_a_1", "train", True), ("train_3_a_1", "train", False), ("valid_1_a_1", "validation", False)
        }  # fmt: skip
        assert all(".nii.gz" in row["what"] for row in rows)
        assert [study.id for study in data.studies("train")] == ["train_1_a_1", "train_3_a_1"]
        assert len(data.studies("validation")) == 2
        assert list(data.skipped) == ["train_2_a_1"]
        data = RadGenomeChestCT(str(root), on_error="skip")
        data.preprocessor = Means()
    data.setup()  # another process, which did not prepare
    assert [study.id for study in data.studies("train")] == ["train_1_a_1", "train_3_a_1"]
    (batch,) = [batch for batch in data.val_dataloader() if batch["ids"] == ["valid_1_a_1"]]
    assert set(batch["arrays"][0]) == {"heart", "thyroid"}  # evaluated with the regions that it has


def test_evaluation_never_drops_a_study(root):
    _truncate(_volume(root, "valid_2_a_1"))
    data = RadGenomeChestCT(str(root), on_error="skip")
    data.preprocessor = Means()
    with pytest.raises(DataFault, match=r"valid_2_a_1.nii.gz: cannot be read[^$]*leaves no study out"):
        data.prepare_data()


def test_skipping_needs_a_store(root):
    with pytest.raises(ValueError, match="data.store=auto"):
        RadGenomeChestCT(str(root), on_error="skip", store=None)


def test_no_root():
    with pytest.raises(DataFault, match="/nowhere: no such folder; set data.root"):
        RadGenomeChestCT("/nowhere").studies("train")


def test_fingerprint_follows_text_and_files(root):
    before = RadGenomeChestCT(str(root)).fingerprint()
    assert RadGenomeChestCT(str(root)).fingerprint() == before
    _rewrite_rows(root, "train_1_a_1.nii.gz,lung,Another.\n")
    assert RadGenomeChestCT(str(root)).fingerprint() != before


def test_numbers_keep_their_value_in_a_small_type(tmp_path):
    import nibabel as nib

    hu = small_ct.volume(0)
    for dtype in (np.float32, np.float64, np.int32):
        small_ct.save(hu.astype(dtype), tmp_path / "v.nii.gz")
        array, _ = read_nifti(tmp_path / "v.nii.gz")
        assert array.dtype == np.int16 and np.array_equal(array, hu)
    image = nib.Nifti1Image((hu + 1024).astype(np.int16), small_ct.AFFINE)
    image.header.set_slope_inter(1, -1024)  # CT-RATE keeps HU this way
    content = bytearray(image.to_bytes())
    content[112:120] = np.array([1, -1024], "<f4").tobytes()
    (tmp_path / "scaled.nii.gz").write_bytes(gzip.compress(bytes(content)))
    array, _ = read_nifti(tmp_path / "scaled.nii.gz")
    assert array.dtype == np.int16 and np.array_equal(array, hu)


def test_loose_files_in_radgenomes_scheme(root):
    data = RadGenomeChestCT(str(root))
    study = data.study_from_files(_volume(root, "valid_1_a_1"), _mask(root, "valid_1_a_1", "lung").parent)
    assert study.id == "valid_1_a_1" and set(study.masks) == {"heart", "lung", "thyroid"}
    assert study.report is None and study.regions is None
    with pytest.raises(DataFault, match="one label map"):
        data.study_from_files(_volume(root, "valid_1_a_1"), root, "totalsegmentator")
    with pytest.raises(DataFault, match="holds no mask"):
        data.study_from_files(_volume(root, "valid_1_a_1"), root)


def test_loose_files_in_totalsegmentators_scheme(tmp_path):
    labels = np.zeros(small_ct.SHAPE, np.uint8)
    labels[3, 3, 3], labels[4, 4, 4], labels[5, 5, 5], labels[6, 6, 6] = 14, 117, 92, 63
    small_ct.save(small_ct.volume(0), tmp_path / "ct.nii.gz")
    small_ct.save(labels, tmp_path / "labels.nii.gz")
    data = RadGenomeChestCT(str(tmp_path))
    study = data.study_from_files(tmp_path / "ct.nii.gz", tmp_path / "labels.nii.gz", "totalsegmentator")
    assert {region: mask.sum() for region, mask in study.masks.items()} == {"lung": 1, "bone": 1}
    labels[0, 0, 0] = 118
    small_ct.save(labels, tmp_path / "labels.nii.gz")
    with pytest.raises(DataFault, match=r"labels \[118\] are not in TotalSegmentator v2's list"):
        data.study_from_files(tmp_path / "ct.nii.gz", tmp_path / "labels.nii.gz", "totalsegmentator")


def test_totalsegmentator_cannot_give_breast_and_pleura():
    assert set(TOTALSEGMENTATOR.values()) == set(REGIONS) - {"breast", "pleura"}
    assert min(TOTALSEGMENTATOR) == 1 and max(TOTALSEGMENTATOR) == 116


def test_a_real_ct(shared):
    folder = shared / "real" / "ct"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    data = RadGenomeChestCT("unused")
    study = data.study_from_files(
        folder / "chest_ct_3mm.nii.gz", folder / "chest_ct_3mm_totalsegmentator.nii.gz", "totalsegmentator"
    )
    assert study.volume.shape == (122, 101, 30) and study.spacing == (3, 3, 3) and study.orientation == ("R", "A", "S")
    assert set(study.masks) == {"abdomen", "bone", "lung", "mediastinum"}
    assert study.volume[study.masks["lung"] != 0].mean() < -500 < 100 < study.volume[study.masks["bone"] != 0].mean()
