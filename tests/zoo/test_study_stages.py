"""Studies whose runs begin from other runs' checkpoints: weights, order, kills at any place, failures."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from tests.zoo.toy_study import HANG, in_background, wait_for
from zoo import study
from zoo.studies import runs
from zoo.studies.design import plan, read_design

ARMS = ("first at 8", "second", "third")


def planned(name, output, seeds=(0, 1)):
    """Point's name and seed → run."""
    design = read_design(f"toy/{name}", study.studies()[f"toy/{name}"], "phantom")
    points = plan(design, [], Path(output))
    return {(point.name, seed): point.runs[seed] for point in points for seed in seeds}


def weights(run, name="best"):
    """Of a finished run's checkpoint."""
    state = torch.load(runs.finished(run.folder).checkpoint(name), weights_only=True)["state_dict"]
    return torch.cat([weight.flatten() for weight in state.values()])


def dry(capsys, *arguments):
    capsys.readouterr()
    assert study.main([*arguments, "--dry-run"]) == 0
    return capsys.readouterr().out.splitlines()


def test_stages_begin_from_the_tested_checkpoint_of_their_seed_after_a_kill_at_any_place(forked, capsys, monkeypatch):
    assert study.main(["toy/stages", "--output", "whole", "--jobs", "2"]) == 0
    said = capsys.readouterr().out
    whole = planned("stages", "whole")
    for seed in (0, 1):
        done = [said.index(f"done    {arm}, seed {seed}") for arm in ARMS]
        begun = [said.index(f"begun   {arm}, seed {seed}") for arm in ARMS]
        assert all(ended < next_one for ended, next_one in zip(done, begun[1:], strict=False))
        first, second, third = (whole[arm, seed] for arm in ARMS)
        assert torch.equal(weights(second), weights(first))  # its learning rate is 0
        assert not torch.equal(weights(first), weights(first, "last"))
        assert not torch.equal(weights(third, "last"), weights(second, "last"))
    assert not torch.equal(weights(whole["second", 0]), weights(whole["second", 1]))

    begin, killed_in_stage = runs._begin, {1}

    def begin_or_die(run, *rest):
        if run.stage in killed_in_stage:
            os.killpg(0, signal.SIGKILL)
        if run.stage == 2:
            HANG.touch()
        return begin(run, *rest)

    monkeypatch.setattr(runs, "_begin", begin_or_die)
    command = ["toy/stages", "--seeds", "1", "--output", "broken"]
    broken = planned("stages", "broken")
    first, second, third = (broken[arm, 1] for arm in ARMS)
    HANG.touch()
    kill_when_there_is_a_checkpoint(first, command)
    assert dry(capsys, *command)[0] == "3 runs: 1 to resume, 2 to do"
    HANG.unlink()
    process = in_background(*command)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert dry(capsys, *command)[0] == "3 runs: 1 done, 2 to do"
    killed_in_stage.clear()
    kill_when_there_is_a_checkpoint(third, command)
    count, *listed = dry(capsys, *command)
    assert count == "3 runs: 2 done, 1 to resume"
    heads = [line.partition(": ")[0] for line in listed if not line.startswith("  ")]
    assert heads == ["first at 8", "second (after first at 8)", "third (after second)"]

    Path("broken").rename("moved")
    monkeypatch.setattr(runs, "_begin", begin)
    HANG.unlink()
    assert study.main([*command[:-1], "moved"]) == 0
    moved = planned("stages", "moved")
    for arm in ARMS:
        assert torch.equal(weights(moved[arm, 1], "last"), weights(whole[arm, 1], "last"))
    assert (moved["third", 1].folder / "log.txt").read_text().count("resuming moved/") == 1
    (place,) = (path.parent for path in moved["third", 1].folder.glob("*/config.yaml"))
    assert f"init_from: {runs.finished(moved['second', 1].folder).best}" in (place / "config.yaml").read_text()


def kill_when_there_is_a_checkpoint(run, command):
    process = in_background(*command)
    wait_for(lambda: list(run.folder.glob("*/checkpoints/last.ckpt")))
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    wait_for(lambda: runs.state(run.folder) == "to resume")  # the kernel lets go of its lock


def test_stages_after_one_that_failed_are_not_begun_and_the_others_go_on(forked, capsys):
    assert study.main(["toy/broken_stage", "--jobs", "2"]) == 1
    said = capsys.readouterr().out
    assert "FAILED  broken, seed 0: RuntimeError: the toy broke" in said
    for arm in ("second", "third"):
        assert f"FAILED  {arm}, seed 0: not begun: broken, seed 0 failed" in said
        assert f"begun   {arm}" not in said
    assert "done    whole, seed 0" in said
    table = (forked / "runs" / "studies" / "toy-broken_stage-phantom" / "table.md").read_text()
    assert "* third, seed 0: no figures: not begun: broken, seed 0 failed" in table


@pytest.fixture
def two(toy):
    """A first run that is done and a second one that was interrupted, as their folders show it."""
    first, second = (planned("stages", "out")[arm, 0] for arm in ARMS[:2])
    write(first.folder / "one", "best", first.config.yaml())
    (first.folder / "one" / "metrics.json").write_text("{}")
    write(second.folder / "two", "last", runs._begun_from(second.config, runs._beginning(second)).yaml())
    return first, second


def write(place, checkpoint, config):
    (place / "checkpoints").mkdir(parents=True)
    (place / "checkpoints" / f"{checkpoint}.ckpt").write_text("")
    (place / "config.yaml").write_text(config)


def test_an_interrupted_stage_is_left_where_the_one_before_it_was_made_anew(two):
    first, second = two
    assert runs._to_resume(second, runs._beginning(second)).path.name == "two"
    (first.folder / "one").rename(first.folder / "anew")
    assert runs._to_resume(second, runs._beginning(second)) is None


def test_a_stage_whose_checkpoint_was_deleted_says_what_to_do(two):
    first, second = two
    assert runs._ready(second)
    assert not runs._never(second, {}, {})
    shutil.rmtree(first.folder / "one" / "checkpoints")
    why = f"not begun: {first.folder / 'one'} has no checkpoint any more; delete that folder to make it anew"
    assert runs._never(second, {}, {}) == why


def test_stages_of_one_seed_are_not_made_side_by_side(toy):
    stages = planned("stages", "out")
    assert runs.side_by_side(list(stages.values()), 9)[0] == 2
    assert runs.side_by_side([run for (_, seed), run in stages.items() if seed == 0], 9)[0] == 1
