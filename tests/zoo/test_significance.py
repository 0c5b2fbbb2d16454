"""Intervals and tests against scipy, against enumeration by hand, and against the published figures."""

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from zoo.metrics import nlg, significance
from zoo.metrics.pairs import Pairs
from zoo.metrics.significance import (
    Measured,
    bootstrap_ci,
    holm,
    mean,
    paired_difference,
    paired_differences,
    paired_permutation,
    resample,
    resample_sums,
    welch,
    welch_from_stats,
)
from zoo.metrics.tokenise import tokenise_13a


def ratio(sums, n):
    """A corpus metric: recall of a file."""
    return sums[..., 0] / sums[..., 1]


def counted(n, seed, share=0.5):
    """(right, all) of each study."""
    random = np.random.default_rng(seed)
    every = random.integers(1, 30, n)
    return np.stack([random.binomial(every, share), every], axis=1)


# Bootstrap


def test_a_resample_draws_as_many_studies_as_there_are():
    sums = resample_sums(np.stack([np.ones(50), np.arange(50)], axis=1), resamples=200)
    assert sums.shape == (200, 2)
    assert (sums[:, 0] == 50).all()
    assert len(np.unique(sums[:, 1])) > 100


def test_resamples_of_two_studies_have_the_probabilities_of_coin_tosses():
    sums = resample_sums(np.array([[0.0], [1.0]]), resamples=40_000)[:, 0]
    shares = [(sums == value).mean() for value in (0, 1, 2)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.01)


def test_tables_of_the_same_studies_share_their_resamples():
    a, b = counted(40, 1), counted(40, 2)
    together = resample_sums(np.hstack([a, b]), resamples=300, seed=5)
    assert np.array_equal(together[:, :2], resample_sums(a, 300, 5))
    assert np.array_equal(together[:, 2:], resample_sums(b, 300, 5))
    assert not np.array_equal(together, resample_sums(np.hstack([a, b]), 300, 6))


def test_resamples_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch):
    table = counted(37, 0)
    whole = resample_sums(table, resamples=101)
    monkeypatch.setattr(significance, "_CELLS", 37 * 10 + 1)
    assert np.array_equal(resample_sums(table, resamples=101), whole)


def test_interval_of_a_mean_is_scipys():
    values = np.random.default_rng(0).beta(2, 3, 80)
    low, high = bootstrap_ci(resample_sums(values[:, None], 40_000), mean, 80)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=40_000, method="percentile", rng=1).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.03 * (theirs.high - theirs.low))


def test_interval_of_a_corpus_metric_is_scipys():
    table = counted(60, 3)
    low, high = bootstrap_ci(resample_sums(table, 20_000), ratio, 60, level=0.9)

    def statistic(right, every, axis):
        return right.sum(axis) / every.sum(axis)

    theirs = stats.bootstrap(
        tuple(table.T), statistic, paired=True, n_resamples=20_000, confidence_level=0.9, method="percentile", rng=1
    ).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.04 * (theirs.high - theirs.low))


def test_one_study_has_no_interval():
    assert bootstrap_ci(resample_sums(np.array([[0.3]]), 10), mean, 1) is None
    alone = Measured(np.array([[0.3]]), mean, np.array([0.3]))
    difference = paired_difference(alone, Measured(np.array([[0.1]]), mean, np.array([0.1])))
    assert (difference.ci95_a, difference.ci95_b, difference.ci95, difference.effect) == (None,) * 4
    assert difference.p == 1.0  # of two swaps both are as far apart


def test_sentences_of_one_examination_are_drawn_together():
    """Examinations of 1 to 5 sentences: the interval is that of scipy over examinations, of their sums and sizes."""
    random = np.random.default_rng(4)
    sizes = random.integers(1, 6, 60)
    examination = np.repeat(np.arange(60), sizes)
    values = random.beta(2, 3, 60)[examination] + random.normal(0, 0.02, len(examination))  # alike within one
    sums, n = resample(values[:, None], examination, 20_000)
    low, high = bootstrap_ci(sums, mean, n)

    def statistic(sums, sizes, axis):
        return sums.sum(axis) / sizes.sum(axis)

    parts = [values[examination == number].sum() for number in range(60)]
    theirs = stats.bootstrap(
        (parts, sizes), statistic, paired=True, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.04 * (theirs.high - theirs.low))
    alone = bootstrap_ci(resample_sums(values[:, None]), mean, len(values))
    assert high - low > 1.3 * (alone[1] - alone[0])  # as if they were independent: too narrow


def test_a_sentence_that_is_repeated_says_nothing_new():
    values = np.random.default_rng(1).beta(2, 3, 30)[:, None]
    once = bootstrap_ci(resample_sums(values), mean, 30)
    sums, n = resample(np.repeat(values, 4, axis=0), [f"film {place}" for place in range(30) for _ in range(4)])
    assert bootstrap_ci(sums, mean, n) == pytest.approx(once)


def test_one_examination_has_no_interval_however_many_its_sentences():
    assert resample(np.arange(9.0)[:, None], ["a"] * 9) is None
    assert resample(np.ones((1, 1))) is None


@pytest.mark.parametrize("table", [np.zeros((0, 2)), np.zeros(3)])
def test_what_is_no_table_is_refused(table):
    with pytest.raises(ValueError, match="at least one study"):
        resample_sums(table)


# Paired permutation


@pytest.mark.parametrize("seed", range(4))
def test_few_studies_are_swapped_in_all_ways_as_in_scipy(seed):
    a, b = np.random.default_rng(seed).normal([[0.3], [0.0]], 1.0, (2, 9))
    theirs = stats.permutation_test(
        (a, b), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", vectorized=True
    )
    assert paired_permutation(a[:, None], b[:, None], mean) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_swaps_of_a_corpus_metric_by_hand():
    a, b = counted(7, 0, 0.6), counted(7, 1, 0.5)

    def recall(rows):
        return Fraction(sum(int(row[0]) for row in rows), sum(int(row[1]) for row in rows))

    observed, extreme = abs(recall(a) - recall(b)), 0
    for swaps in itertools.product((False, True), repeat=7):
        first = [y if swap else x for x, y, swap in zip(a, b, swaps, strict=True)]
        second = [x if swap else y for x, y, swap in zip(a, b, swaps, strict=True)]
        extreme += abs(recall(first) - recall(second)) >= observed
    assert 2 < extreme < 128
    assert paired_permutation(a, b, ratio) == extreme / 128


def test_many_studies_are_swapped_at_random_with_scipys_p():
    a, b = np.random.default_rng(7).normal([[0.16], [0.0]], 1.0, (2, 150))
    p = paired_permutation(a[:, None], b[:, None], mean, trials=20_000)
    theirs = stats.permutation_test(
        (a, b),
        lambda x, y, axis: (x - y).mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=0,
    ).pvalue
    assert 0.01 < theirs < 0.5
    assert p == pytest.approx(theirs, abs=4 * math.sqrt(2 * theirs * (1 - theirs) / 20_000))


def test_p_is_never_zero():
    a, b = np.full((100, 1), 0.9), np.full((100, 1), 0.1)
    assert paired_permutation(a, b, mean, trials=999) == 1 / 1000


def test_swaps_that_are_equal_on_paper_count_as_equal():
    # 0.1 + 0.2 and 0.3 are different floats; every swap of these differs by the same 0.6 or by 0.
    a, b = np.array([[0.1], [0.2], [0.3]]), np.zeros((3, 1))
    assert paired_permutation(a, b, mean) == 2 / 8
    a[2] = -0.3
    assert paired_permutation(a, b, mean) == 1.0


def test_the_same_seed_gives_the_same_p():
    a, b = counted(200, 1), counted(200, 2)
    assert paired_permutation(a, b, ratio, 500, 3) == paired_permutation(a, b, ratio, 500, 3)
    assert len({paired_permutation(a, b, ratio, 500, seed) for seed in range(5)}) > 1


def test_identical_systems_do_not_differ():
    table = counted(300, 0)
    same = Measured(table, ratio, table[:, 0] / table[:, 1])
    difference = paired_difference(same, same)
    assert (difference.difference, difference.p, difference.effect, difference.ci95) == (0.0, 1.0, 0.0, (0.0, 0.0))


# Differences


def test_the_interval_of_a_difference_takes_the_same_studies_of_both():
    values = np.random.default_rng(0).normal(0.5, 0.2, 64)
    shifted = Measured((values + 0.25)[:, None], mean)
    difference = paired_difference(shifted, Measured(values[:, None], mean))
    assert difference.ci95 == pytest.approx((0.25, 0.25))
    assert difference.ci95_a[1] - difference.ci95_a[0] > 0.05


def test_the_effect_is_the_mean_difference_in_its_standard_deviations():
    a, b = np.array([0.5, 0.7, 0.9]), np.array([0.4, 0.4, 0.4])
    difference = paired_difference(Measured(a[:, None], mean, a), Measured(b[:, None], mean, b))
    assert difference.effect == pytest.approx(0.3 / 0.2)  # differences 0.1, 0.3, 0.5
    assert (difference.value_a, difference.value_b, difference.difference) == pytest.approx((0.7, 0.4, 0.3))


def test_without_values_of_the_studies_there_is_no_effect_size():
    assert paired_difference(Measured(counted(20, 0), ratio), Measured(counted(20, 1), ratio)).effect is None
    equally = Measured(np.ones((4, 1)), mean, np.ones(4))
    assert paired_difference(equally, Measured(np.zeros((4, 1)), mean, np.zeros(4))).effect is None


def test_metrics_together_give_what_they_give_alone():
    a, b = counted(50, 1), counted(50, 2)
    metrics = {"recall": ratio, "share of other": lambda sums, n: 1 - sums[..., 0] / sums[..., 1], "right": mean}
    systems = [{key: Measured(table, aggregate) for key, aggregate in metrics.items()} for table in (a, b)]
    together = paired_differences(*systems, resamples=500, trials=500, seed=2)
    assert list(together) == list(metrics)
    for key in metrics:
        alone = paired_difference(systems[0][key], systems[1][key], resamples=500, trials=500, seed=2)
        assert alone == together[key]
        assert alone.p == paired_permutation(a, b, metrics[key], trials=500, seed=2)
        assert alone.ci95_a == bootstrap_ci(resample_sums(a, 500, 2), metrics[key], 50)
    assert together["share of other"].difference == pytest.approx(-together["recall"].difference)


def test_systems_that_do_not_fit_are_refused():
    a = Measured(counted(5, 0), ratio)
    with pytest.raises(ValueError, match="metrics differ"):
        paired_differences({"x": a}, {"y": a})
    with pytest.raises(ValueError, match="same shape"):
        paired_difference(a, Measured(counted(6, 0), ratio))
    assert paired_differences({}, {}) == {}


# Runs


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_welch_is_scipys(alternative):
    random = np.random.default_rng(4)
    a, b = random.normal(0.40, 0.01, 4), random.normal(0.39, 0.03, 6)
    mine, theirs = welch(a, b, alternative), stats.ttest_ind(a, b, equal_var=False, alternative=alternative)
    assert (mine.t, mine.df, mine.p) == pytest.approx((theirs.statistic, theirs.df, theirs.pvalue), rel=1e-9)
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert mine.ci95 == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert (mine.sd_a, mine.sd_b) == pytest.approx((stats.tstd(a), stats.tstd(b)))
    assert mine.warning == ""


def test_hedges_g_by_hand():
    # Means 2 and 4, variances 1 and 4, pooled sqrt(2.5), correction 1 - 3 / 15.
    assert welch([1, 2, 3], [2, 4, 6]).effect == pytest.approx(-2 / math.sqrt(2.5) * 0.8)


def test_asarg_s_p_value_follows_from_its_printed_figures(shared):
    """Feature fusion in two stages against LLaVA in two stages: CheXbert F1 .3961 ± .0036 and .3872 ± .0037, n = 4."""
    golden = json.loads((shared / "golden/metrics/stats.json").read_text())["asarg_welch_features_two_stage"]
    found = welch_from_stats(0.3961, 0.0036, 4, 0.3872, 0.0037, 4, "greater")
    assert found.t == pytest.approx(golden["t"], rel=1e-9)
    assert found.p == pytest.approx(golden["p_one_sided"], rel=1e-9)
    assert found.p == pytest.approx(golden["paper"], abs=5e-4)


def test_printed_figures_give_what_the_runs_give():
    a, b = [0.31, 0.35, 0.33, 0.36], [0.30, 0.29, 0.33]
    printed = welch_from_stats(np.mean(a), np.std(a), 4, np.mean(b), np.std(b), 3)
    theirs = stats.ttest_ind_from_stats(
        np.mean(a), np.std(a, ddof=1), 4, np.mean(b), np.std(b, ddof=1), 3, equal_var=False
    )
    assert (printed.t, printed.p) == pytest.approx((theirs.statistic, theirs.pvalue))
    assert printed == welch(a, b)


def test_asarg_s_maps_beside_its_features():
    """The paper's other two figures: + maps against LLaVA in two stages p < .001; maps alone are no worse."""
    assert welch_from_stats(0.4149, 0.0034, 4, 0.3872, 0.0037, 4, "greater").p == pytest.approx(3.9e-5, rel=0.02)
    assert welch_from_stats(0.4148, 0.0015, 4, 0.4149, 0.0034, 4).p == pytest.approx(0.965, abs=1e-3)


def test_few_runs_come_with_a_warning():
    two = welch([0.3, 0.4], [0.5, 0.6, 0.7])
    assert two.warning == "fewer than 3 runs (2 and 3): the spread is hardly known"
    assert two.p == pytest.approx(stats.ttest_ind([0.3, 0.4], [0.5, 0.6, 0.7], equal_var=False).pvalue)
    one = welch([0.3], [0.5, 0.6, 0.7])
    assert (one.sd_a, one.t, one.df, one.p, one.ci95, one.effect) == (None,) * 6
    assert one.difference == pytest.approx(-0.3)
    assert "nothing to test" in one.warning
    with pytest.raises(ValueError, match="at least one run"):
        welch([], [0.5])


def test_runs_without_spread():
    same = welch([0.1 + 0.2] * 3, [0.3] * 3)
    assert (same.p, same.effect, same.t) == (1.0, 0.0, None)
    apart = welch([0.5] * 3, [0.3] * 3)
    assert (apart.p, apart.effect) == (None, None)
    assert "no spread" in apart.warning


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


# Published


def test_corpus_bleu_from_summed_counts(shared):
    """Three studies' counts from a released file: the corpus value, its resamples and swaps all come from sums."""
    golden = json.loads((shared / "golden/metrics/stats.json").read_text())["ctrg_two_runs"]
    table = np.array(golden["sufficient_stats_first3"])
    assert golden["sufficient_stats_columns"].startswith("clipped matches 1..4, possible 1..4, hyp len, ref len")

    def bleu_4(sums, n):
        return nlg.bleu(sums, 4, "none")

    def by_hand(rows):
        *counts, words, expected = [sum(column) for column in zip(*rows, strict=True)]
        product = math.prod(counts[n] / counts[4 + n] for n in range(4))
        return product**0.25 * math.exp(min(0, 1 - expected / words))

    worse = table.copy()
    worse[:, :4] //= 2
    found = paired_difference(Measured(table, bleu_4), Measured(worse, bleu_4))
    assert found.value_a == pytest.approx(by_hand(table.tolist()), rel=1e-12)
    assert found.p == 2 / 8  # all swapped or none
    every = [by_hand(rows) for rows in itertools.product(table.tolist(), repeat=3)]
    assert found.ci95_a[0] == pytest.approx(min(every))  # 1 resample in 27 takes one study three times
    assert found.ci95_a[1] == pytest.approx(max(every))


CTRG = "real/reg2rg_released/ctrg"


def test_the_two_released_runs_on_ctrg(shared):
    golden = json.loads((shared / "golden/metrics/stats.json").read_text())["ctrg_two_runs"]
    files = [shared / CTRG / name for name in (golden["A"], golden["B"].split(" ")[0])]
    if not all(file.is_file() for file in files):
        pytest.skip(f"needs Reg2RG's released {files[0].name} and {files[1].name} in {shared / CTRG}")
    from zoo.evaluate import KNOWN_COLUMNS
    from zoo.metrics.predictions import read_predictions
    from zoo.metrics.tokenise import strip_region_prefixes

    tables = {}
    for name, file in zip("AB", files, strict=True):
        rows = sorted(read_predictions(file, (None, None, None), KNOWN_COLUMNS)[1])
        texts = [[strip_region_prefixes(row[column]) for row in rows] for column in (1, 2)]
        tables[name] = nlg.counts(Pairs(*texts), tokenise_13a)
        assert nlg.bleu(tables[name], 4, "add_one").mean() == pytest.approx(golden[f"mean_bleu4_{name}"], abs=1e-9)
        assert nlg.bleu(tables[name].sum(0), 4, "add_one") == pytest.approx(golden[f"corpus_bleu4_{name}"], abs=1e-3)
    interval = bootstrap_ci(resample_sums(tables["A"]), lambda sums, n: nlg.bleu(sums, 4, "add_one"), len(tables["A"]))
    assert interval == pytest.approx(golden["bootstrap_percentile_95_A_seed0_9999"], abs=2e-3)
    means = [nlg.bleu(tables[name], 4, "add_one") for name in "AB"]
    assert stats.ttest_rel(*means).pvalue == pytest.approx(golden["paired_t_p"], rel=1e-6)
    assert stats.wilcoxon(*means).pvalue == pytest.approx(golden["wilcoxon_p"], rel=1e-6)
    p = paired_permutation(means[0][:, None], means[1][:, None], mean)
    assert p == pytest.approx(golden["paired_t_p"], abs=0.015)
