"""A study's file: what is wrong with it, what a recipe changes, which runs are one and the same."""

from dataclasses import replace
from pathlib import Path

import pytest

from zoo import study
from zoo.command import UsageError
from zoo.studies.design import plan, read_design
from zoo.studies.runs import names_of, runs_of

GOOD = """\
# A description
metrics: [bleu_4]
seeds: [0]
expect: [b at 8 > a]
arms:
  a:
  b: {along: {model.net.width: [4, 8], model.lr: [0.1, 0.2]}}
"""


def read(folder, text, recipe="phantom"):
    (folder / "s.yaml").write_text(text)
    return read_design("toy/s", folder / "s.yaml", recipe)


def test_a_file_becomes_points(toy):
    design = read(toy, GOOD)
    assert (design.description, design.axis) == ("A description", "model.net.width")
    points = plan(design, ["trainer.max_epochs=1"], Path("out"))
    assert [(point.name, point.at) for point in points] == [("a", None), ("b at 4", 4), ("b at 8", 8)]
    model = points[2].runs[0].config.values["model"]
    assert (model["net"]["width"], model["lr"]) == (8, 0.2)
    assert points[0].runs[0].config.values["trainer"]["max_epochs"] == 1
    assert points[0].runs[0].config.values["run"]["folder"] == str(points[0].runs[0].folder)


def test_a_seed_is_the_run_s_and_the_data_s(toy):
    design = read(toy, GOOD.replace("[0]", "[0, 7]"))
    config = plan(design, [], Path("out"))[0].runs[7].config
    assert (config.values["run"]["seed"], config.values["data"]["seed"]) == (7, 7)


def test_the_recipe_s_part_is_laid_over_the_rest(toy):
    text = GOOD + "when: {paper: {seeds: [1, 2], arms: {b: {along: {model.net.width: [1, 2]}}}}}\n"
    text = text.replace("b at 8", "b at 2")
    design = read(toy, text, "paper")
    assert design.seeds == (1, 2)
    assert design.arms[1].along["model.net.width"] == [1, 2]
    with pytest.raises(UsageError, match="no point 'b at 2'"):
        read(toy, text)


def test_runs_with_the_same_settings_are_one(toy):
    arms = "  c: {set: {model.net.width: 16}}\n  d: {with: [wide]}\n"
    points = plan(read(toy, GOOD + arms), [], Path("out"))
    assert len(runs_of(points)) == 4
    assert points[3].runs[0] is points[4].runs[0]
    assert names_of(points)[points[4].runs[0].digest] == "c, seed 0"

    def digest(*overrides, output="out"):
        return plan(read(toy, GOOD), overrides, Path(output))[0].runs[0].digest

    assert digest() == digest("data.num_workers=2", "run.checkpoint_every=5", "log.wandb=offline", output="elsewhere")
    changes = ("data.root=other", "trainer.max_epochs=9", "metrics.rules14=true")
    assert len({digest(), *map(digest, changes)}) == 4


def test_a_run_after_another_is_known_by_that_one_s_settings_and_seed(toy):
    arms = "  first: {after: b at 8}\n  second: {after: first, set: {model.lr: 0.5}}\n  again: {after: b at 8}\n"

    def planned(text, *overrides, output="out"):
        return {point.name: point for point in plan(read(toy, text), overrides, Path(output))}

    text = GOOD.replace("[0]", "[0, 1]") + arms
    points = planned(text)
    assert list(points) == ["a", "b at 4", "b at 8", "first", "second", "again"]
    for seed in (0, 1):
        assert points["first"].runs[seed].after is points["b at 8"].runs[seed]
        assert points["second"].runs[seed].after is points["again"].runs[seed]  # `first` and `again` are one run
        assert points["a"].runs[seed].digest != points["first"].runs[seed].digest
        assert [points[name].runs[seed].stage for name in ("a", "first", "second")] == [0, 1, 2]
    assert points["second"].settings == {"model.lr": 0.5, "after": "first"}

    def second(*arguments, **options):
        return planned(*arguments, **options)["second"].runs[0].digest

    assert second(text) == second(text, output="elsewhere") == second(text.replace("first", "b in two"))
    assert second(text) != second(text.replace("0.2]", "0.3]"))  # of the first one of the three
    late, *others = text.splitlines()[-3], *text.splitlines()[:-3], *text.splitlines()[-2:]
    moved = planned("\n".join([*others, late]))
    assert (list(moved)[-1], moved["second"].runs[0].digest) == ("first", second(text))


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ("c: {after: b at 9}", "s.yaml:8: the study has no point 'b at 9' to come after; did you mean b at"),
        ("c: {after: b}", "s.yaml:8: arm 'b' has several points; take one: b at 4, b at 8"),
        ("c: {after: c}", "s.yaml:8: no run of these could be the first one: 'c' after 'c'"),
        ("c: {after: d}\n  d:\n    after: c", "s.yaml:8: .*'c' after 'd' after 'c'(.|\n)*s.yaml:10: .*'d' after 'c'"),
        ("c: {after: a, set: {model.init_from: x}}", "s.yaml:8: arm 'c' must not set model.init_from"),
    ],
)
def test_stages_that_cannot_be_are_said_with_their_line(toy, arm, words):
    with pytest.raises(UsageError, match=words):
        read(toy, f"{GOOD}  {arm}\n")


def test_a_model_that_begins_from_no_checkpoint_comes_after_nothing(toy):
    design = read(toy, GOOD + "  c: {after: a, set: {model.class: 'tests.zoo.toy_study:Beginner'}}\n")
    words = "s.yaml:8: tests.zoo.toy_study:Beginner has no setting init_from: it cannot begin from a checkpoint"
    with pytest.raises(UsageError, match=words):
        plan(design, [], Path("out"))
    with pytest.raises(UsageError, match="for the whole study: arms begin from others'"):
        plan(design, ["model.init_from=x"], Path("out"))


def test_what_is_not_trained_leaves_nothing_to_begin_from(toy):
    arms = "  tested: {after: a, set: {trainer.max_epochs: 0}}\n  c: {after: tested}\n"
    words = r"s.yaml:9: 'tested' is trained for 0 epochs .* leaves no checkpoint; come after 'a', whose checkpoint"
    with pytest.raises(UsageError, match=words):
        plan(read(toy, GOOD + arms), [], Path("out"))
    with pytest.raises(UsageError, match="'a' is trained for 0 epochs .*; come after one that is trained"):
        plan(read(toy, GOOD + "  c: {after: a}\n"), ["trainer.max_epochs=0"], Path("out"))


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        ("metrics:", "metrcis:", "s.yaml:2: there is no 'metrcis' here.*did you mean metrics?"),
        ("[bleu_4]", "[positive/bleu4]", "s.yaml:2: no protocol has a metric 'bleu4'; did you mean bleu_4?"),
        ("[bleu_4]", "bleu_4", "metrics is a list of distinct names"),
        ("seeds: [0]", "seeds: [0, 0]", "seeds is a list of distinct whole numbers"),
        ("seeds: [0]", "with: [wide]\nseeds: [0]", "arms have `with`"),
        ("b at 8 > a", "b at 8 = a", "expectations are pairs, written `A > B`"),
        ("b at 8 > a", "b at 8 > a > b", "expectations are pairs"),
        ("b at 8 > a", "b at 7 > a", "s.yaml:4: the study has no point 'b at 7'; did you mean b at"),
        ("seeds: [0]", "seeds: [0]\nplot: boxes", "s.yaml:4: plot is mean or box, not 'boxes'; did you mean box?"),
        ("  a:", "  a: 5", "s.yaml:6: arm 'a' is written"),
        ("  a:", "  a: {alogn: {model.lr: [1]}}", "there is no 'alogn' here.*did you mean along?"),
        ("  a:", "  a: {with: wide}", "`with` is a list"),
        ("  a:", "  a: {along: {model.lr: [1]}}", "arms vary along different keys"),
        ("  a:", "  a: {set: {data: {seed: 3}}}", "arm 'a' must not set data.seed"),
        ("  a:", "  b at 4:", "two points are called 'b at 4'"),
        ("[0.1, 0.2]", "[0.1]", "s.yaml:7: the keys of `along` need lists of one length"),
        ("[4, 8]", "[8, 8]", "distinct plain values"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(toy, good, bad, words):
    with pytest.raises(UsageError, match=words):
        read(toy, GOOD.replace(good, bad))


def test_all_faults_are_named_at_once(toy):
    with pytest.raises(UsageError) as error:
        read(toy, GOOD.replace("[bleu_4]", "[bleu4]").replace("b at 8", "b at 7").replace("seeds: [0]", "seeds: []"))
    assert len(str(error.value).splitlines()) == 3
    settings = GOOD.replace("model.lr", "model.lrr").replace("  a:", "  a: {with: [wied]}")
    with pytest.raises(UsageError, match=r"arm 'a': no ablation .* did you mean wide(.|\n)*arm 'b': .*model\.lrr"):
        plan(read(toy, settings), [], Path("out"))


def test_every_study_in_the_repository_resolves(monkeypatch):
    monkeypatch.delenv("ZOO_CONFIGS", raising=False)
    for name, path in study.studies().items():
        for recipe in ("phantom", "paper"):
            design = read_design(name, path, recipe)
            points = plan(replace(design, seeds=design.seeds[:1]), [], Path("out"), allow_missing=True)
            assert all(point.runs for point in points), name
