"""Of processes that prepare the same data, on one machine or two that share a folder, one does the work."""

import json
import multiprocessing
import time

import pytest

from datamodules.study import DataFault
from tests.zoo.toy import ToyData, ToyPreprocessor

FORK = multiprocessing.get_context("fork")


def test_two_that_begin_at_once_draw_and_store_once(tmp_path, capfd):
    drawn, made = FORK.Queue(), FORK.Queue()

    class Data(ToyData):
        def draw_phantom(self, train, validation):
            if not (self.root / "PHANTOM.json").exists():
                time.sleep(0.5)
                drawn.put(1)
                super().draw_phantom(train, validation)

        def inspect(self, study):
            made.put(study.id)
            return super().inspect(study)

    def prepare():
        data = Data(str(tmp_path / "data"), phantom=4)
        data.preprocessor = ToyPreprocessor()
        data.prepare_data()

    both = [FORK.Process(target=prepare) for _ in range(2)]
    for process in both:
        process.start()
    names = sorted(made.get(timeout=30) for _ in range(8))
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert names == sorted({f"train{number}" for number in range(4)} | {f"validation{number}" for number in range(4)})
    assert made.empty()
    assert drawn.get(timeout=1) == 1
    assert drawn.empty()
    assert capfd.readouterr().out.count("waiting for another process that prepares") >= 1
    assert json.loads((tmp_path / "data" / "PHANTOM.json").read_text()) == {"train": 4, "validation": 4}


def test_a_root_that_is_not_there_is_not_made(tmp_path):
    data = ToyData(str(tmp_path / "data"))
    data.preprocessor = ToyPreprocessor()
    with pytest.raises(DataFault, match="set data.root"):
        data.prepare_data()
    assert not (tmp_path / "data").exists()
