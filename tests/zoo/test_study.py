"""`zoo.study` from its command line to its table: shared runs, resuming, failures, two at once."""

import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
from tests.zoo.toy_study import HANG, in_background, wait_for
from zoo import study
from zoo.studies import runs

HOME = Path(zoo.__file__).parent.parent


def figures(folder):
    """`metrics.json` of every run, by the run's name."""
    return {path.parts[-3]: path.read_bytes() for path in folder.glob("runs/*/*/metrics.json")}


def test_help_and_no_study_list_what_there_is_and_import_nothing_heavy(toy):
    code = "import sys; from zoo.study import main; main(sys.argv[1:]); print(sorted(sys.modules))"
    for arguments in (["--help"], []):
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=HOME, capture_output=True, text=True, check=True
        )
        *said, loaded = result.stdout.splitlines()
        assert any(
            "toy/words" in line and "How many words the toy should say that are not true" in line for line in said
        )
        assert not [name for name in ("torch", "lightning", "numpy", "omegaconf", "rich") if f"'{name}'" in loaded]


def test_a_fit_is_begun_by_a_command_that_exists():
    assert subprocess.run([*runs.FIT, "--help"], cwd=HOME, capture_output=True, check=True).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["toy/wrods"], "did you mean toy/words?"),
        (["toy/words", "--recipe", "phantm"], "did you mean phantom?"),
        (["toy/words", "--seeds", "1,1"], "distinct whole numbers"),
        (["toy/words", "--jobs", "0"], "give 1 or more"),
        (["toy/words", "model.wrong=3"], "arm 'varied' sets it"),
        (["toy/words", "data.seed=3"], "give --seeds"),
        (["toy/words", "run.folder=x"], "give --output"),
        (["toy/words", "model.wrnog=3"], "did you mean model.wrong?"),
        (["toy/words", "--recipe", "paper"], "data.root is missing"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(toy, capsys, arguments, words):
    assert study.main(arguments) == 2
    assert words in capsys.readouterr().err
    assert not list(toy.iterdir())


def test_a_study_from_its_first_run_to_its_table(forked, capsys):
    assert study.main(["toy/words", "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert "4 runs: 4 to do" in listed  # `varied at 1` is the same run as `vague`, for either seed
    assert "varied at 0: model.breaks=False, model.class=tests.zoo.toy_study:Speaker, model.lr=0.02" in listed
    assert not list(forked.iterdir())
    assert study.main(["toy/words"]) == 0
    said = capsys.readouterr().out
    assert "toy/words, recipe phantom: 4 runs, 0 done" in said
    folder = forked / "runs" / "studies" / "toy-words-phantom"
    assert {path.name for path in folder.iterdir()} == {"study.json", "table.md", "table.csv", "plot.png"}
    # The reference is one word, so that ROUGE-L is 2 / (1 + words said): 1 and 2/3 where the seed alone adds wrong
    # words, 2/3 and 1/2 where the arm adds one more. Over two seeds the sd is |difference| / √2.
    table = (folder / "table.md").read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    assert lines[0] == ["arm", "seeds", "studies", "ROUGE-L", "BLEU-1", "RadBERT-CT-18 micro-F1"]
    assert [line[:4] for line in lines[2:5]] == [  # arms by their mean in the first metric
        ["varied at 0", "2", "4", "0.8333 ± 0.2357"],
        ["varied at 1", "2", "4", "0.5833 ± 0.1179"],
        ["vague", "2", "4", "0.5833 ± 0.1179"],
    ]
    assert {line[5] for line in lines[2:5]} == {"–"}
    assert "* RadBERT-CT-18 micro-F1 absent: RadBertClassifier.pth" in table
    assert "(vague, varied at 0, varied at 1)" in table
    held, failed = (
        line for line in lines if line[:2] in (["varied at 0 > vague", "ROUGE-L"], ["vague > varied at 1", "ROUGE-L"])
    )
    # The seeds' differences are 1/3 and 1/6; scipy's ttest_ind gives 0.1749.
    assert held[2:] == ["held", "2 of 2", "+0.2500 ± 0.1179", "0.1749"]
    assert failed[2:5] == ["did not hold", "0 of 2", "+0.0000 ± 0.0000"]
    assert "phantom, not patients" in table
    assert "protocol reg2rg (version 1), seeds 0, 1" in table
    with (folder / "table.csv").open() as opened:
        rows = {(row["arm"], row["at"]): row for row in csv.DictReader(opened)}
    assert float(rows["varied", "0"]["rouge_l"]) == pytest.approx(5 / 6)
    assert float(rows["varied", "0"]["rouge_l_sd"]) == pytest.approx(1 / 3 / 2**0.5)
    assert rows["vague", ""]["phantom"] == "True"
    record = json.loads((folder / "study.json").read_text())
    values = {(row["name"], run["seed"]): run["values"]["rouge_l"] for row in record["points"] for run in row["runs"]}
    assert values["varied at 0", 1] == pytest.approx(2 / 3)
    assert len({run["hash"] for row in record["points"] for run in row["runs"]}) == 4

    before = {path: path.stat().st_mtime_ns for path in forked.glob("runs/studies/runs/*/*/metrics.json")}
    assert study.main(["toy/words", "--seeds", "1"]) == 0
    said = capsys.readouterr().out
    assert "2 runs, 2 done\n" in said
    assert "begun" not in said
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_killed_in_the_middle_it_goes_on_and_comes_to_the_same(forked, capsys):
    assert study.main(["toy/words", "--seeds", "0", "--output", "whole"]) == 0
    HANG.touch()
    process = in_background("toy/words", "--seeds", "0", "--output", "broken", "--jobs", "2")
    wait_for(lambda: len(list(forked.glob("broken/runs/*/*/checkpoints/last.ckpt"))) == 2)
    wait_for(lambda: "underway" in states(capsys))
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert not figures(forked / "broken")
    assert states(capsys) == "2 runs: 2 to resume"
    # One that got no further than its first files is begun anew, the other goes on.
    first, second = (path.parent for path in sorted(forked.glob("broken/runs/*/*/checkpoints")))
    shutil.rmtree(first / "checkpoints")
    HANG.unlink()
    assert study.main(["toy/words", "--seeds", "0", "--output", "broken"]) == 0
    assert figures(forked / "broken") == figures(forked / "whole")
    assert not first.exists()
    assert (
        f"resuming {Path('broken') / 'runs' / second.parent.name / second.name}"
        in (second.parent / "log.txt").read_text()
    )
    for name in ("table.csv", "plot.png"):
        one, other = (forked / at / "toy-words-phantom" / name for at in ("whole", "broken"))
        assert one.read_bytes() == other.read_bytes()


def states(capsys):
    capsys.readouterr()
    assert study.main(["toy/words", "--seeds", "0", "--output", "broken", "--dry-run"]) == 0
    return capsys.readouterr().out.splitlines()[0]


def test_a_failed_run_is_named_and_the_others_go_on(forked, capsys):
    assert study.main(["toy/breaks", "--jobs", "1"]) == 1
    said = capsys.readouterr().out
    assert "FAILED  broken, seed 0: RuntimeError: the toy broke" in said
    assert "done    whole, seed 0" in said
    table = (forked / "runs" / "studies" / "toy-breaks-phantom" / "table.md").read_text()
    assert "* broken, seed 0: no figures: RuntimeError: the toy broke" in table
    assert "| whole > broken | ROUGE-L | not known | 0 of 0 | – | – |" in table


def test_a_study_that_is_told_to_end_ends_its_fits(forked, monkeypatch):
    monkeypatch.setattr(runs, "_GRACE", 0.5)
    HANG.touch()
    process = in_background("toy/breaks", "--jobs", "2")
    wait_for(lambda: list(forked.glob("runs/studies/runs/*/*/checkpoints/last.ckpt")))
    (place,) = (path.parents[2] for path in forked.glob("runs/studies/runs/*/*/checkpoints/last.ckpt"))
    assert runs.state(place) == "underway"
    process.terminate()
    process.join()
    assert process.exitcode == 128 + signal.SIGTERM
    assert runs.state(place) == "to resume"


def test_two_at_once_make_each_run_once(forked):
    HANG.touch()
    other = in_background("toy/breaks", "--jobs", "2")
    wait_for(lambda: len(list(forked.glob("runs/studies/runs/*/*/checkpoints/last.ckpt"))) == 1)
    (place,) = (path.parents[2] for path in forked.glob("runs/studies/runs/*/*/checkpoints/last.ckpt"))
    mine = in_background("toy/breaks", "--jobs", "2")
    logs = [path for path in forked.glob("runs/studies/runs/*/log.txt") if path.parent != place]
    wait_for(lambda: sum(log.read_text().count("RuntimeError: the toy broke") for log in logs) == 2)
    HANG.unlink()  # by now the second one has tried both arms
    for process in (other, mine):
        process.join()
        assert process.exitcode == 1  # of the arm that breaks
    (finished,) = forked.glob("runs/studies/runs/*/*/metrics.json")
    log = (finished.parent.parent / "log.txt").read_text()
    assert log.count("run folder") == 1


def test_a_lock_that_was_left_behind_locks_nothing(forked, capsys):
    assert study.main(["toy/breaks", "--dry-run"]) == 0
    folder = Path(next(line for line in capsys.readouterr().out.splitlines() if "seed 0" in line).split()[-1])
    folder.mkdir(parents=True)
    (folder / "lock").write_text("999999\n")
    assert runs.state(folder) == "to do"
    with (folder / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert runs.state(folder) == "underway"
    assert runs.state(folder) == "to do"
