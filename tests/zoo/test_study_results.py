"""Tables of studies from runs whose figures are written by hand."""

import pytest

from tests.zoo.toy_results import METRICS, Written, design, uncut
from zoo.command import UsageError
from zoo.studies.design import Arm
from zoo.studies.plot import _spaced, plot_study
from zoo.studies.report import comma_separated, markdown
from zoo.studies.results import collect


@pytest.fixture
def written(tmp_path):
    return Written(tmp_path)


def test_means_spreads_and_groups(written):
    written.add("weak", [0.1, 0.2, 0.3]).add("strong", [0.5, 0.6, 0.8])
    results = collect(design([], expect=(("strong", "weak"), ("weak", "strong"))), written.points, {})
    strong, weak = results.rows
    assert (strong.point.name, weak.point.name) == ("strong", "weak")
    assert strong.mean("cider") == pytest.approx(1.9 / 3)
    assert strong.sd("cider") == pytest.approx(0.152753, abs=1e-6)  # √((.1333² + .0333² + .1667²) / 2)
    assert weak.mean("positive/cider") == pytest.approx(0.4)
    first = results.outcomes[0]
    assert (first.held, first.held_in, len(first.paired)) == (True, 3, 3)
    assert first.difference == pytest.approx(1.3 / 3)
    assert first.sd == pytest.approx(0.057735, abs=1e-6)  # of .4, .4, .5
    assert first.p == pytest.approx(0.0099276, abs=1e-6)  # scipy.stats.ttest_ind, unequal variances, "greater"
    assert results.outcomes[3].held is False
    assert results.outcomes[3].p == pytest.approx(1 - first.p)
    text = markdown(results)
    assert text.startswith("# What helps (phantom, not patients)\n")
    assert "phantom, not patients: toy/s, recipe phantom, split test, 12 studies, protocol regionformer" in text
    assert "| strong | 3 | 12 | 0.6333 ± 0.1528 | 1.2667 ± 0.3055 | 0.5000 ± 0.0000 |" in text
    assert "* group positive: 9 studies" in text
    assert "region recognition F1: protocol region_recognition (version 1)" in text


def test_seeds_are_paired_by_number_where_a_run_is_missing(written):
    written.add("a", [None, 0.4, 0.5]).add("b", [0.9, 0.3, 0.6])
    results = collect(design([], ("cider",), expect=(("a", "b"),)), written.points, {"a-0": "the disk is full"})
    (outcome,) = results.outcomes
    assert outcome.paired == pytest.approx((0.1, -0.1))
    assert (outcome.held, outcome.held_in) == (False, 1)
    assert outcome.difference == pytest.approx(0.45 - 0.6)
    assert "a, seed 0: no figures: the disk is full" in results.notes
    assert "| a | 2 | 12 | 0.4500 ± 0.0707 |" in markdown(results)


def test_an_absent_metric_says_why(written):
    skipped = {"cider": {"value": None, "reason": "weights are not at hand", "how_to": "fetch them"}}
    written.add("a", [0.1, 0.1], metrics={}, skipped=skipped, groups={}).add("b", [0.3, 0.4])
    results = collect(design([], seeds=(0, 1), expect=(("b", "a"),)), written.points, {})
    notes = " | ".join(results.notes)
    assert "CIDEr absent: weights are not at hand; fetch them (a)" in notes
    assert "CIDEr (positive) absent: the run has no group 'positive', only none (a)" in notes
    assert "region recognition F1 absent: it is not among the run's figures (a)" in notes
    assert [row.point.name for row in results.rows] == ["b", "a"]
    assert [outcome.held for outcome in results.outcomes] == [None, None, None]
    assert comma_separated(results).splitlines()[2] == "a,,2,12,,,,,,,toy/s,phantom,True,test,regionformer,1"


def test_runs_scored_in_different_ways_stand_in_no_table(written):
    written.add("a", [0.1]).add("b", [0.2], version=2)
    with pytest.raises(UsageError, match="not scored alike; delete the folders"):
        collect(design([]), written.points, {})


def test_without_a_run_there_is_no_table(written):
    assert collect(design([]), written.add("a", [None]).points, {}) is None


def picture(written, tmp_path, arms, metrics=METRICS):
    results = collect(design(arms, metrics), written.points, {})
    plot_study(results, tmp_path / "plot.png")
    plot_study(results, tmp_path / "again.png")
    assert (tmp_path / "plot.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    return uncut(tmp_path / "plot.png")


@pytest.mark.parametrize("places", [(0, 1, 5), ("crop", "pad", "squash")])
def test_a_plot_along_an_axis(written, tmp_path, places):
    for number, at in enumerate(places):
        written.add("line", [0.6 - number / 10, 0.7 - number / 10, None], at=at)
    written.add("flat", [0.2, 0.3, 0.25])
    arms = [Arm("line", (), {}, {"data.noise": list(places)}), Arm("flat", (), {}, {})]
    whole = picture(written, tmp_path, arms)
    assert whole.shape[0] > picture(written, tmp_path, arms, METRICS[:1]).shape[0] + 200  # the others in a row below


def test_a_plot_of_dots_leaves_out_a_metric_that_nobody_has(written, tmp_path):
    written.add("a", [0.1, 0.2, 0.3]).add("b", [0.3, 0.4, 0.5])
    assert picture(written, tmp_path, [], ("cider",)).shape == picture(written, tmp_path, [], ("cider", "bleu_4")).shape


def test_names_on_a_crowded_axis_keep_their_distance():
    percent = {value: value for value in (5, 10, 20, 50, 80, 100)}
    assert _spaced(percent, 0.08) == ["5", "", "20", "50", "80", "100"]
    assert _spaced(percent, 0.02) == ["5", "10", "20", "50", "80", "100"]
    assert _spaced({7: 7}, 0.08) == ["7"]
