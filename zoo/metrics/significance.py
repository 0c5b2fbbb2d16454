"""Intervals and tests from tables of the studies' statistics: no texts, no models, only sums over studies.

A table is `(study, column)`. A metric's value is an `Aggregate` of the table's sums, so that a resample of studies, or
a swap of two systems' outputs, is a row of a matrix product. The unit of resampling is the study; where studies share
patients or examinations, intervals resample these whole, as the studies of one are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Aggregate = Callable[[np.ndarray, "int | np.ndarray"], np.ndarray]  # sums (…, column), number of studies → value (…)
Alternative = Literal["two-sided", "greater", "less"]

RESAMPLES = 9_999
TRIALS = 10_000
_CELLS = 500_000  # of one chunk of counts or masks, (draw, study): 4 MB, which stays in the processor's cache


def mean(sums: np.ndarray, n: int | np.ndarray) -> np.ndarray:
    """The aggregate of a metric that is the mean of the studies' own values: sums `(…, 1)` → `(…)`."""
    return sums[..., 0] / n


# Intervals


def resample_sums(table: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """A table's sums over bootstrap resamples of its studies.

    The resamples depend on the number of studies and the seed only: tables of the same studies share them.

    Args:
        table: `(study, column)`, finite.
        resamples: How many resamples, each of as many studies as there are, drawn with replacement.
        seed: Of the draws.

    Returns:
        `(resample, column)`, float64.
    """
    table = _float_table(table)
    n = len(table)
    random = np.random.default_rng(seed)
    sums = np.zeros((resamples, table.shape[1]))
    for rows in _chunks(resamples, n):
        height = rows.stop - rows.start
        drawn = random.integers(0, n, size=(height, n), dtype=np.int64)
        drawn += np.arange(0, height * n, n)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=height * n).reshape(height, n)
        sums[rows] = counts.astype(np.float64) @ table
    return sums


def resample(
    table: np.ndarray, clusters: Sequence[Hashable] | np.ndarray | None = None, resamples: int = RESAMPLES
) -> tuple[np.ndarray, int | np.ndarray] | None:
    """What `bootstrap_ci` needs of a table whose studies may belong together.

    Args:
        table: `(study, column)`, finite.
        clusters: What each study is a part of, `(study,)`; whole clusters are drawn, as many as there are, so that
            resamples differ in their number of studies. `None`: each study is drawn by itself.
        resamples: How many resamples.

    Returns:
        Sums `(resample, column)` and the number of studies, of all or of each resample `(resample,)`; `None` where
        there is nothing to draw from: fewer than two studies or clusters.
    """
    table = _float_table(table)
    if clusters is None:
        return (resample_sums(table, resamples), len(table)) if len(table) > 1 else None
    places: dict[Hashable, int] = {}
    numbers = [places.setdefault(cluster, len(places)) for cluster in clusters]
    if len(places) < 2:
        return None
    units = np.zeros((len(places), table.shape[1] + 1))
    np.add.at(units, numbers, np.column_stack([table, np.ones(len(table))]))
    sums = resample_sums(units, resamples)
    return sums[:, :-1], sums[:, -1]


def bootstrap_ci(
    sums: np.ndarray, aggregate: Aggregate, n: int | np.ndarray, level: float = 0.95
) -> tuple[float, float] | None:
    """The percentile bootstrap interval of a metric.

    Args:
        sums: Of the metric's table, `(resample, column)`, from `resample` or `resample_sums`.
        aggregate: The metric.
        n: The number of studies, or of those in each resample, `(resample,)`.
        level: The interval's coverage.

    Returns:
        (low, high); `None` where there are fewer than two studies.
    """
    return _interval(aggregate(sums, n), level) if np.max(n) >= 2 else None


def _interval(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _float_table(table: np.ndarray) -> np.ndarray:
    table = np.asarray(table, dtype=np.float64)
    if table.ndim != 2 or not len(table):
        raise ValueError(f"a table is (study, column) with at least one study, not of shape {table.shape}")
    return table


def _chunks(total: int, width: int) -> Iterator[slice]:
    """Consecutive slices of `total` rows whose matrices of that width stay small."""
    height = max(1, _CELLS // max(1, width))
    return (slice(start, min(start + height, total)) for start in range(0, total, height))


# Two systems on the same studies


@dataclass(frozen=True, eq=False)
class Measured:
    """A metric of a system, study by study.

    Attributes:
        table: `(study, column)`.
        aggregate: Its sums → the metric's value.
        values: The studies' own values, `(study,)`, where they have any; the effect size comes from them.
    """

    table: np.ndarray
    aggregate: Aggregate
    values: np.ndarray | None = None


@dataclass(frozen=True)
class Difference:
    """A metric of two systems A and B on the same studies.

    Attributes:
        value_a: A's value.
        value_b: B's value.
        ci95_a: The interval of A's value; `None` where there are fewer than two studies.
        ci95_b: The interval of B's.
        difference: A's value − B's.
        ci95: Its interval, from resamples that take the same studies of both.
        p: Two-sided, of the paired permutation test.
        effect: Cohen's d_z, the mean of the studies' differences over their standard deviation (ddof 1); `None` where
            studies have no values of their own, or all differ by the same amount.
    """

    value_a: float
    value_b: float
    ci95_a: tuple[float, float] | None
    ci95_b: tuple[float, float] | None
    difference: float
    ci95: tuple[float, float] | None
    p: float
    effect: float | None


def paired_difference(a: Measured, b: Measured, **settings: int) -> Difference:
    """`paired_differences` of one metric."""
    return paired_differences({"": a}, {"": b}, **settings)[""]


def paired_differences(
    a: Mapping[str, Measured],
    b: Mapping[str, Measured],
    resamples: int = RESAMPLES,
    trials: int = TRIALS,
    seed: int = 0,
) -> dict[str, Difference]:
    """Compares two systems on the same studies, in all their metrics with the same resamples and the same swaps.

    Args:
        a: Metric → system A's; the studies are in the same order in all tables.
        b: The same metrics of system B.
        resamples: Of the intervals.
        trials: Of the permutation test.
        seed: Of both.

    Returns:
        Metric → difference, in the order of `a`.

    Raises:
        ValueError: The metrics or the shapes of the tables differ.
    """
    if list(a) != list(b):
        raise ValueError(f"the metrics differ: {list(a)} and {list(b)}")
    if not a:
        return {}
    table_a, table_b, places = _side_by_side(a, b)
    n = len(table_a)
    resampled_a, resampled_b = resample_sums(table_a, resamples, seed), resample_sums(table_b, resamples, seed)
    swapped_a, swapped_b = _swapped_sums(table_a, table_b, trials, seed)
    exact = 2**n <= trials
    result = {}
    for key, place in places.items():
        aggregate = a[key].aggregate
        value_a, value_b = (float(aggregate(table[:, place].sum(0), n)) for table in (table_a, table_b))
        draws_a, draws_b = aggregate(resampled_a[:, place], n), aggregate(resampled_b[:, place], n)
        swaps = aggregate(swapped_a[:, place], n) - aggregate(swapped_b[:, place], n)
        result[key] = Difference(
            value_a,
            value_b,
            _interval(draws_a, 0.95) if n >= 2 else None,
            _interval(draws_b, 0.95) if n >= 2 else None,
            value_a - value_b,
            _interval(draws_a - draws_b, 0.95) if n >= 2 else None,
            _p_value(swaps, value_a, value_b, exact),
            _d_z(a[key].values, b[key].values),
        )
    return result


def paired_permutation(
    a: np.ndarray, b: np.ndarray, aggregate: Aggregate, trials: int = TRIALS, seed: int = 0
) -> float:
    """Two-sided paired permutation test (approximate randomisation): each study's two outputs are swapped, or not.

    Args:
        a: System A's table, `(study, column)`.
        b: System B's table of the same studies.
        aggregate: The metric.
        trials: How many random swaps; where there are no more than that, all 2^study swaps are taken instead.
        seed: Of the swaps.

    Returns:
        The share of swaps with a difference at least as large as the observed one. Random swaps count the observed
        difference itself in, (k + 1) / (trials + 1), so that p is never 0.

    Raises:
        ValueError: The tables' shapes differ.
    """
    a, b = _same_shape(a, b)
    n = len(a)
    swapped_a, swapped_b = _swapped_sums(a, b, trials, seed)
    value_a, value_b = (float(aggregate(table.sum(0), n)) for table in (a, b))
    return _p_value(aggregate(swapped_a, n) - aggregate(swapped_b, n), value_a, value_b, exact=2**n <= trials)


def _same_shape(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = _float_table(a), _float_table(b)
    if a.shape != b.shape:
        raise ValueError(f"tables of the same studies have the same shape, not {a.shape} and {b.shape}")
    return a, b


def _side_by_side(
    a: Mapping[str, Measured], b: Mapping[str, Measured]
) -> tuple[np.ndarray, np.ndarray, dict[str, slice]]:
    """Both systems' tables of all metrics in one, and each metric's columns; metrics may share them."""
    known: dict[bytes, slice] = {}
    places: dict[str, slice] = {}
    blocks: list[tuple[np.ndarray, np.ndarray]] = []
    width = 0
    for key in a:
        pair = _same_shape(a[key].table, b[key].table)
        content = pair[0].tobytes() + pair[1].tobytes()
        if content not in known:
            known[content] = slice(width, width + pair[0].shape[1])
            width = known[content].stop
            blocks.append(pair)
        places[key] = known[content]
    return np.hstack([block[0] for block in blocks]), np.hstack([block[1] for block in blocks]), places


def _swapped_sums(a: np.ndarray, b: np.ndarray, trials: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums of both tables after swaps, `(trial, column)` each; all swaps where there are no more than `trials`."""
    n = len(a)
    exact = 2**n <= trials
    trials = 2**n if exact else trials
    random = np.random.default_rng(seed)
    gain, total_a, total_b = b - a, a.sum(0), b.sum(0)
    moved = np.empty((trials, a.shape[1]))
    for rows in _chunks(trials, n):
        if exact:
            swap = (np.arange(rows.start, rows.stop)[:, None] >> np.arange(n) & 1).astype(np.uint8)
        else:
            height = rows.stop - rows.start
            swap = np.unpackbits(random.integers(0, 256, size=(height, -(-n // 8)), dtype=np.uint8), axis=1, count=n)
        moved[rows] = swap.astype(np.float64) @ gain
    return total_a + moved, total_b - moved


def _p_value(differences: np.ndarray, value_a: float, value_b: float, exact: bool) -> float:
    # Sums that are equal on paper may differ in their last bits.
    differences = np.abs(differences)
    tolerance = 1e-10 * max(abs(value_a), abs(value_b), differences.max())
    extreme = int((differences >= abs(value_a - value_b) - tolerance).sum())
    return extreme / len(differences) if exact else (extreme + 1) / (len(differences) + 1)


def _d_z(a: np.ndarray | None, b: np.ndarray | None) -> float | None:
    if a is None or b is None:
        return None
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    if not differences.any():
        return 0.0
    if len(differences) < 2 or np.ptp(differences) == 0:
        return None
    return float(differences.mean() / differences.std(ddof=1))


# Several runs of each system


@dataclass(frozen=True)
class Welch:
    """Welch's test over the runs (seeds) of two systems.

    Attributes:
        mean_a: Of A's runs.
        mean_b: Of B's.
        sd_a: Standard deviation over A's runs, ddof 1; `None` of a single run.
        sd_b: Of B's.
        n_a: The number of A's runs.
        n_b: Of B's.
        t: The statistic, positive where A's mean is the larger one; `None` where there is no spread to test against.
        df: Welch-Satterthwaite's degrees of freedom.
        p: The p-value.
        ci95: Two-sided interval of the difference of means, from Student's t.
        effect: Hedges' g: the difference of means over the pooled standard deviation, corrected for few runs.
        warning: What to keep in mind about it; empty where there is nothing.
    """

    mean_a: float
    mean_b: float
    sd_a: float | None
    sd_b: float | None
    n_a: int
    n_b: int
    t: float | None
    df: float | None
    p: float | None
    ci95: tuple[float, float] | None
    effect: float | None
    warning: str

    @property
    def difference(self) -> float:
        """A's mean − B's."""
        return self.mean_a - self.mean_b


def welch(a: Sequence[float], b: Sequence[float], alternative: Alternative = "two-sided") -> Welch:
    """Welch's test of the values of several runs (seeds) of two systems.

    Args:
        a: A value for each of A's runs.
        b: For each of B's.
        alternative: What A's mean is, against B's.

    Raises:
        ValueError: A system has no run.
    """
    if not len(a) or not len(b):
        raise ValueError("Welch's test needs at least one run of either system")
    (mean_a, std_a, n_a), (mean_b, std_b, n_b) = ((float(np.mean(x)), float(np.std(x)), len(x)) for x in (a, b))
    return welch_from_stats(mean_a, std_a, n_a, mean_b, std_b, n_b, alternative)


def welch_from_stats(
    mean_a: float, std_a: float, n_a: int, mean_b: float, std_b: float, n_b: int, alternative: Alternative = "two-sided"
) -> Welch:
    """Welch's test from printed figures, mean ± std over runs.

    Args:
        mean_a: Mean over A's runs.
        std_a: Standard deviation over A's runs as numpy computes it and papers print it, ddof 0.
        n_a: The number of A's runs.
        mean_b: Of B's runs.
        std_b: Of B's runs, ddof 0.
        n_b: The number of B's runs.
        alternative: What A's mean is, against B's.
    """
    from scipy.stats import t as student

    warning = "" if min(n_a, n_b) >= 3 else f"fewer than 3 runs ({n_a} and {n_b}): the spread is hardly known"
    if min(n_a, n_b) < 2:
        warning = f"a single run has no spread ({n_a} and {n_b} runs): nothing to test"
    sd_a, sd_b = (std * math.sqrt(n / (n - 1)) if n > 1 else None for std, n in ((std_a, n_a), (std_b, n_b)))
    difference = mean_a - mean_b
    # Runs that agree to the last bits have no spread: what is left of it is rounding.
    rounding = 1e-12 * max(abs(mean_a), abs(mean_b))
    if sd_a is None or sd_b is None or max(sd_a, sd_b) <= rounding:
        warning = warning or "the runs do not differ among themselves: there is no spread to test against"
        same = sd_a is not None and sd_b is not None and abs(difference) <= rounding
        p, effect = (1.0, 0.0) if same else (None, None)
        return Welch(mean_a, mean_b, sd_a, sd_b, n_a, n_b, None, None, p, None, effect, warning)
    share_a, share_b = sd_a**2 / n_a, sd_b**2 / n_b
    error = math.sqrt(share_a + share_b)
    t = difference / error
    df = (share_a + share_b) ** 2 / (share_a**2 / (n_a - 1) + share_b**2 / (n_b - 1))
    tails = {"two-sided": 2 * student.sf(abs(t), df), "greater": student.sf(t, df), "less": student.cdf(t, df)}
    reach = float(student.ppf(0.975, df)) * error
    freedom = n_a + n_b - 2
    pooled = math.sqrt(((n_a - 1) * sd_a**2 + (n_b - 1) * sd_b**2) / freedom)
    effect = difference / pooled * (1 - 3 / (4 * freedom - 1))  # Hedges 1981, the usual approximation
    ci95 = (difference - reach, difference + reach)
    return Welch(mean_a, mean_b, sd_a, sd_b, n_a, n_b, t, df, float(tails[alternative]), ci95, effect, warning)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for testing all of them at once (Holm 1979), in the order given."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
