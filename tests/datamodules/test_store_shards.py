"""Packing: nothing is ever lost, whenever it is killed; what is newer wins; readers with an old view still read."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from itertools import count

import numpy as np
import pytest
from safetensors import safe_open

import datamodules.store_shards as shards
from datamodules.faults import Fault
from datamodules.store import Store
from datamodules.study import DataFault, Study

FEW = 2


class Values:
    """A preprocessor: an array of the study's number and one whose name has a slash."""

    def __init__(self, extra=0):
        self.extra = extra

    def settings(self):
        return {"classes": ["heart", "lung"], "grid": 4}

    def arrays(self, study):
        number = int(study.id.split("/")[0]) + self.extra
        return {"maps": np.full((2, 4, 4), number, np.uint8), "part/of": np.float32([number, 0.5])}


@pytest.fixture
def small(monkeypatch):
    """Packs more than two items, three to a shard."""
    for name, value in {"_FEW": FEW, "_SHARD_ITEMS": 3}.items():
        monkeypatch.setattr(f"datamodules.store.{name}", value)


def _studies(tmp_path, number):
    folder = tmp_path / "files"
    folder.mkdir(exist_ok=True)
    for index in range(number):
        (folder / f"{index}.png").write_bytes(bytes(index))
    return [Study(id=f"{index}/a b", files={"image": folder / f"{index}.png"}) for index in range(number)]


def _store(tmp_path):
    return Store(tmp_path / "store", Values().settings())


def _inspect(study):
    return study, [Fault(study.id, "odd", fatal=False)] if study.id.startswith("1/") else []


def _build(store, studies, extra=0, inspect=_inspect):
    return store.build(studies, Values(extra), inspect, progress=False)


def _single(store):
    return sorted(path.name for path in store.folder.glob("*.safetensors"))


def _packed(store):
    return sorted(path.name for path in (store.folder / "shards").glob("*.safetensors"))


def _number(store, study):
    arrays = store.load(study)
    assert set(arrays) == {"maps", "part/of"} and arrays["maps"].shape == (2, 4, 4) and arrays["part/of"][1] == 0.5
    return int(arrays["maps"][1, 3, 3])


def _packs_all(store, studies):
    return _single(store) == [] and [_number(store, study) for study in studies] == list(range(len(studies)))


def test_many_items_are_packed_and_read_as_before(tmp_path, small):
    store, studies = _store(tmp_path), _studies(tmp_path, 7)
    faults = _build(store, studies)
    assert [fault.study_id for fault in faults] == ["1/a b"]
    assert _packed(store) == [f"shard-0000{n}.safetensors" for n in range(3)] and _packs_all(store, studies)
    assert all(store.holds(study) for study in studies)
    assert [store.ready(study) for study in studies[:2]] == [[], faults]
    assert _build(store, studies) == faults and len(_packed(store)) == 3  # nothing is made again
    assert not store.holds(Study(id="7/a b"))
    with pytest.raises(DataFault, match="is not in the store; prepare the data first"):
        store.load(Study(id="7/a b"))


def test_a_few_items_stay_single(tmp_path, small):
    store, studies = _store(tmp_path), _studies(tmp_path, FEW)
    _build(store, studies)
    assert len(_single(store)) == FEW and not (store.folder / "shards").exists()


def test_a_shard_ends_at_so_many_bytes(tmp_path, small, monkeypatch):
    store, studies = _store(tmp_path), _studies(tmp_path, 3)
    monkeypatch.setattr("datamodules.store._SHARD_BYTES", 1)
    _build(store, studies)
    assert len(_packed(store)) == 3 and _packs_all(store, studies)


def test_the_header_says_what_is_inside(tmp_path, small):
    store, studies = _store(tmp_path), _studies(tmp_path, 3)
    _build(store, studies)
    with safe_open(store.folder / "shards" / "shard-00000.safetensors", framework="np") as file:
        assert sorted(file.keys())[:2] == ["0%2Fa b/maps", "0%2Fa b/part/of"]
        assert json.loads(file.metadata()["settings"])["classes"] == ["heart", "lung"]
        assert f"numpy {np.__version__}" in file.metadata()["made_with"]


def test_a_changed_file_makes_a_single_item_that_wins_and_is_packed_in_turn(tmp_path, small):
    store, studies = _store(tmp_path), _studies(tmp_path, 4)
    _build(store, studies)
    studies[2].files["image"].write_bytes(b"changed")
    assert store.ready(studies[2]) is None and not store.holds(studies[2])
    _build(store, studies, extra=100)
    assert len(_single(store)) == 1 and [_number(store, study) for study in studies] == [0, 1, 102, 3]
    more = _studies(tmp_path, 9)[4:]
    _build(store, more)
    assert _single(store) == [] and _number(store, studies[2]) == 102  # its first shard still holds the old one


def test_a_study_whose_file_turned_bad_is_no_longer_held(tmp_path, small):
    store, studies = _store(tmp_path), _studies(tmp_path, 4)
    _build(store, studies)
    studies[3].files["image"].write_bytes(b"broken")
    faults = _build(store, studies, inspect=lambda study: (study, [Fault(study.id, "broken")]))
    assert [fault.what for fault in faults] == ["odd", "broken"]
    assert [store.holds(study) for study in studies] == [True, True, True, False]


def test_what_is_read_cannot_be_changed_for_the_next_reader(tmp_path, small):
    store, studies = _store(tmp_path), _studies(tmp_path, 3)
    _build(store, studies)
    with pytest.raises(ValueError, match="read-only"):
        store.load(studies[1])["maps"][:] = 9
    assert _number(store, studies[1]) == 1


def _killed_at(event, work):
    """Does the work in another process that kills itself at its so-manieth operation on files; says whether it did."""
    child = os.fork()
    if child == 0:
        seen = count()

        def watch(name, _):
            if name.startswith(("os.", "open", "fcntl.", "shutil.")) and next(seen) == event:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def test_killed_at_any_operation_nothing_is_lost(tmp_path, small, monkeypatch):
    studies = _studies(tmp_path, 5)
    monkeypatch.setattr("datamodules.store._FEW", 99)
    half_packed = 0
    for event in count():
        store = Store(tmp_path / f"store{event}", Values().settings())
        _build(store, studies)
        killed = _killed_at(event, lambda: shards.pack(store.folder, store.settings, FEW, 3, 2**20, False))  # noqa: B023
        half_packed += 0 < len(_single(store)) < len(studies)
        assert [_number(store, study) for study in studies] == list(range(5))
        assert all(store.ready(study) is not None and store.holds(study) for study in studies)
        shards.pack(store.folder, store.settings, 0, 3, 2**20, False)
        assert _packs_all(store, studies) and not list((store.folder / "shards").glob("*.partial"))
        if not killed:
            break
    assert event > 15 and half_packed > 3  # it did die in the middle


def test_half_a_shard_of_a_killed_packer_is_swept_away(tmp_path, small):
    store, studies = _store(tmp_path), _studies(tmp_path, 3)
    (store.folder / "shards").mkdir(parents=True)
    left = store.folder / "shards" / ".shard-00000.safetensors.partial"
    left.write_bytes(b"half")
    _build(store, studies)
    assert not left.exists() and _packs_all(store, studies)


def test_the_items_of_a_broken_shard_are_made_again(tmp_path, small):
    store, studies = _store(tmp_path), _studies(tmp_path, 4)
    _build(store, studies)
    first = store.folder / "shards" / "shard-00000.safetensors"
    first.write_bytes(first.read_bytes()[:-4])  # cut short by a copy
    assert [store.ready(study) is None for study in studies] == [True, True, True, False]
    _build(store, studies)
    assert _packs_all(store, studies)


def test_a_reader_in_another_process_goes_on_while_items_are_packed_and_packed_again(tmp_path, small, monkeypatch):
    store, studies = _store(tmp_path), _studies(tmp_path, 4)
    monkeypatch.setattr("datamodules.store._FEW", 99)
    _build(store, studies)
    done, started = tmp_path / "done", tmp_path / "started"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            while not done.exists():
                assert [_number(store, study) % 100 for study in studies] == [0, 1, 2, 3]
                started.touch()
            assert [_number(store, study) for study in studies] == [100, 101, 102, 103]
            code = 0
        finally:
            os._exit(code)
    while not started.exists():
        assert os.waitpid(child, os.WNOHANG)[0] == 0
    monkeypatch.setattr("datamodules.store._FEW", FEW)
    _build(store, studies)
    assert _single(store) == []
    for study in studies:
        study.files["image"].write_bytes(b"changed")
    _build(store, studies, extra=100)
    assert _single(store) == []
    done.touch()
    assert os.waitpid(child, 0)[1] == 0


def test_an_item_made_anew_while_its_shard_is_written_stays(tmp_path, small, monkeypatch):
    store, studies = _store(tmp_path), _studies(tmp_path, 3)
    real = shards.save_file

    def save_file(arrays, path, metadata):
        real(arrays, path, metadata)
        store.write(studies[1], Values(50).arrays(studies[1]), [])

    monkeypatch.setattr(shards, "save_file", save_file)
    _build(store, studies)
    assert _single(store) == ["1%2Fa b.safetensors"] and [_number(store, study) for study in studies] == [0, 51, 2]


def test_two_do_not_pack_at_once(tmp_path, small, monkeypatch):
    store, studies = _store(tmp_path), _studies(tmp_path, 3)
    real = shards.save_file

    def save_file(arrays, path, metadata):
        shards.pack(store.folder, store.settings, FEW, 3, 2**20, False)
        assert _packed(store) == []
        real(arrays, path, metadata)

    monkeypatch.setattr(shards, "save_file", save_file)
    _build(store, studies)
    assert _packed(store) == ["shard-00000.safetensors"] and _packs_all(store, studies)


def test_without_room_for_a_shard_items_stay_single(tmp_path, small, monkeypatch):
    store, studies = _store(tmp_path), _studies(tmp_path, 3)

    def save_file(arrays, path, metadata):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, "save_file", save_file)
    _build(store, studies)
    assert len(_single(store)) == 3 and [_number(store, study) for study in studies] == [0, 1, 2]
    assert not list((store.folder / "shards").glob("*.partial"))


def test_what_is_no_item_is_left_alone(tmp_path, small):
    store, studies = _store(tmp_path), _studies(tmp_path, 3)
    store.folder.mkdir(parents=True)
    shards.save_file({"x": np.zeros(1)}, store.folder / "foreign.safetensors")
    (store.folder / "half.safetensors").write_bytes(b"half")
    _build(store, studies)
    assert _single(store) == ["foreign.safetensors", "half.safetensors"]
    assert [_number(store, study) for study in studies] == [0, 1, 2]
