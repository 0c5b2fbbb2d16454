"""The store: built once, resumable, never half an item, made anew when a file or a setting changes."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import small_ct
from small_ct import Means, radgenome

from datamodules.radgenome_chestct import RadGenomeChestCT
from datamodules.store import Store
from datamodules.study import DataFault


@pytest.fixture
def data(tmp_path):
    return RadGenomeChestCT(str(radgenome(tmp_path / "data", train=4)))


class Counting(Means):
    """Notes each study that it is asked about in a file, for workers are other processes."""

    def __init__(self, notes, scale=1.0, stop_at=None):
        super().__init__(scale)
        self.notes, self.stop_at = notes, stop_at

    def arrays(self, study):
        with open(self.notes, "a") as file:  # noqa: PTH123
            file.write(study.id + "\n")
        if study.id == self.stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().arrays(study)


def _made(notes):
    made = notes.read_text().split() if notes.exists() else []
    notes.unlink(missing_ok=True)
    return made


def _build(data, store, preprocessor, workers=0):
    return store.build(data.studies("train"), preprocessor, data.inspect, workers, progress=False)


@pytest.mark.parametrize("workers", [0, 2])
def test_built_once(data, tmp_path, workers):
    notes = tmp_path / "notes"
    means = Counting(notes)
    store = Store(tmp_path / "store", means.settings())
    assert _build(data, store, means, workers) == []
    assert sorted(_made(notes)) == [study.id for study in data.studies("train")]
    for study in data.studies("train"):
        expected = means.arrays(data.read(study))
        got = store.load(study)
        assert got.keys() == expected.keys() and all(np.array_equal(got[key], expected[key]) for key in expected)
    _made(notes)
    _build(data, store, means, workers)
    assert _made(notes) == []


def test_a_build_that_was_killed_goes_on(data, tmp_path):
    notes, store = tmp_path / "notes", Store(tmp_path / "store", Means().settings())
    child = os.fork()
    if child == 0:
        _build(data, store, Counting(notes, stop_at="train_3_a_1"))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert _made(notes) == ["train_1_a_1", "train_2_a_1", "train_3_a_1"]
    _build(data, store, Counting(notes))
    assert _made(notes) == ["train_3_a_1", "train_4_a_1"]


def test_half_an_item_does_not_count(data, tmp_path):
    notes, store = tmp_path / "notes", Store(tmp_path / "store", Means().settings())
    _build(data, store, Counting(notes))
    _made(notes)
    first, second = (store.path(study) for study in data.studies("train")[:2])
    first.write_bytes(first.read_bytes()[:-4])  # cut short by a copy
    second.rename(second.with_name(f".{second.name}.{platform.node()}-999999999.partial"))  # its writer was killed
    with pytest.raises(DataFault, match="delete it and prepare the data again"):
        store.load(data.studies("train")[0])
    with pytest.raises(DataFault, match="train_2_a_1 is not in the store"):
        store.load(data.studies("train")[1])
    _build(data, store, Counting(notes))
    assert _made(notes) == ["train_1_a_1", "train_2_a_1"]
    assert not list(store.folder.glob(".*"))  # what the killed writer left is swept away


def test_another_setting_is_another_store(data, tmp_path):
    one, other = Means(1.0), Means(2.0)
    first, second = Store(tmp_path, one.settings()), Store(tmp_path, other.settings())
    _build(data, first, one)
    assert first.folder != second.folder and not second.holds(data.studies("train")[0])


def test_a_changed_file_makes_a_new_item_and_a_copy_does_not(data, tmp_path):
    notes, store = tmp_path / "notes", Store(tmp_path / "store", Means().settings())
    _build(data, store, Counting(notes))
    _made(notes)
    study, other = data.studies("train")[:2]
    stamp = study.files["masks/heart"].stat()
    small_ct.save(small_ct.mask(5), study.files["masks/heart"])
    os.utime(study.files["masks/heart"], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # not even the time tells
    copy = tmp_path / "copy" / other.files["volume"].name
    copy.parent.mkdir()
    shutil.copy(other.files["volume"], copy)
    moved = replace(other, files={**other.files, "volume": copy})
    assert store.ready(moved) == [] and store.ready(study) is None
    _build(data, store, Counting(notes))
    assert _made(notes) == [study.id]


def test_a_read_only_folder_is_named(data, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)  # permissions would not stop root
    with pytest.raises(OSError, match="Read-only file system; set data.store to a folder") as caught:
        _build(data, Store(tmp_path / "store", {}), Means())
    assert caught.value.errno == errno.EROFS


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_is_named_and_keeps_what_is_done(data, tmp_path, monkeypatch, workers):
    import datamodules.store as module

    real, notes = module.save_file, tmp_path / "notes"

    def save_file(arrays, path, metadata):
        if "train_2" in str(path):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(arrays, path, metadata)

    monkeypatch.setattr(module, "save_file", save_file)
    store = Store(tmp_path / "store", Means().settings())
    with pytest.raises(OSError, match="the disk is full; what is done is kept") as caught:
        _build(data, store, Means(), workers)
    assert caught.value.errno == errno.ENOSPC
    assert store.holds(data.studies("train")[0]) and not store.holds(data.studies("train")[1])
    time.sleep(0.2 if workers else 0)  # the other worker may still be finishing its item
    monkeypatch.undo()
    _build(data, store, Counting(notes))
    assert "train_1_a_1" not in _made(notes)


def test_a_store_that_will_not_fit_is_refused_after_one_item(data, tmp_path, monkeypatch):
    import datamodules.store as module

    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(OSError, match="the store needs .* GB more, the disk has 0.0 GB"):
        _build(data, Store(tmp_path / "store", {}), Means())


def test_what_is_found_broken_only_while_arrays_are_made_is_a_fault(data, tmp_path):
    """Masks that are decoded when they are asked for, say: the other studies' items are made, and the store goes on."""

    class Picky(Means):
        def arrays(self, study):
            if study.id == "train_2_a_1":
                raise DataFault("the mask of heart cannot be decoded")
            return super().arrays(study)

    store = Store(tmp_path / "store", Means().settings())
    faults = _build(data, store, Picky())
    assert [(fault.study_id, fault.what, fault.fatal) for fault in faults] == [
        ("train_2_a_1", "the mask of heart cannot be decoded", True)
    ]
    held = [study.id for study in data.studies("train") if store.holds(study)]
    assert held == [study.id for study in data.studies("train") if study.id != "train_2_a_1"]
