"""`trainer.max_epochs=0`: a model is tested as it is built, and leaves a run without checkpoints."""

import json

import pytest

from datamodules.study import DataFault
from tests.zoo.toy import fit
from zoo import predict, run_directory, study

NOTHING = "trainer.max_epochs=0"


def newest(folder):
    return max(folder.glob("runs/*"), key=lambda path: path.stat().st_mtime)


def predictions(run):
    return (run / "predictions.jsonl").read_text()


@pytest.fixture
def trained(toy):
    """A run of one epoch."""
    assert fit("trainer.max_epochs=1") == 0
    return newest(toy)


def test_an_untrained_model_leaves_all_but_checkpoints(toy, capfd):
    assert fit(NOTHING, "data.global_batch_size=32") == 0  # more than there are
    assert "nothing is trained" in capfd.readouterr().out
    untrained = newest(toy)
    names = {str(path.relative_to(untrained)) for path in untrained.rglob("*")}
    assert names == {"config.yaml", "provenance.json", "metrics.csv", "metrics.json", "predictions.jsonl",
                     "per_study.csv", "gallery.html"}  # fmt: skip
    record = json.loads((untrained / "provenance.json").read_text())
    assert (record["status"], record["phantom"]) == ("done", True)
    header, *rows = (untrained / "metrics.csv").read_text().splitlines()
    assert header == "epoch,step,metric,value"
    assert rows and all(row.startswith("0,0,test/") for row in rows)
    assert fit("trainer.max_epochs=1", "model.lr=0.0") == 0
    assert predictions(untrained) == predictions(newest(toy))


def test_it_may_begin_from_a_checkpoint(toy, trained):
    assert fit(NOTHING) == 0
    assert predictions(newest(toy)) != predictions(trained)
    assert fit(NOTHING, f"model.init_from={trained / 'checkpoints' / 'best.ckpt'}") == 0
    assert predictions(newest(toy)) == predictions(trained)


def test_there_is_nothing_to_resume(toy, trained, capfd):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    assert fit(NOTHING, "--resume", "auto") == 0
    assert "nothing to resume: a new run begins" in capfd.readouterr().out
    untrained = newest(toy)
    assert untrained != trained
    for run in (trained, untrained):
        assert fit(NOTHING, "--resume", str(run)) == 2
        assert f"{run}: trainer.max_epochs=0 trains nothing" in capfd.readouterr().err
    assert fit("--resume", str(untrained)) == 2
    assert "no whole checkpoint there" in capfd.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_who_asks_for_its_checkpoint_is_told_that_there_is_none(toy, capsys):
    assert fit(NOTHING) == 0
    with pytest.raises(DataFault, match="trainer.max_epochs=0 trained nothing there, so there is no checkpoint"):
        run_directory.tested_checkpoint(newest(toy))
    assert predict.main(["--checkpoint", str(newest(toy)), "--output", "out"]) == 3
    assert "there is no checkpoint" in capsys.readouterr().err
    assert predict.main(["--method", "toy", "--output", "out"]) == 2
    assert "no finished run of toy" in capsys.readouterr().err


def test_a_study_tests_untrained_models_and_other_arms_checkpoints(forked, capsys):
    assert study.main(["toy/zero_shot", "--jobs", "2"]) == 0
    capsys.readouterr()
    assert study.main(["toy/zero_shot", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("3 runs: 3 done")
    said = {}
    for path in forked.glob("runs/studies/runs/*/*/config.yaml"):
        text = path.read_text()
        arm = "trained" if "max_epochs: 3" in text else "untrained" if "init_from: null" in text else "again"
        said[arm] = predictions(path.parent)
    assert said["again"] == said["trained"] != said["untrained"]
