"""Intervals: worked by hand, against a printed table, and as often right as they claim."""

import math

import numpy as np
import pytest

from pipeline.evaluate.statistics import (
    bootstrap_interval,
    mean_interval,
    paired_interval,
    t_quantile,
)

_TABLE = {  # two-sided 95 %, as printed in any textbook
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    9: 2.262,
    10: 2.228,
    29: 2.045,
    30: 2.042,
    120: 1.980,
    1000: 1.962,
}


@pytest.mark.parametrize(("freedom", "printed"), _TABLE.items())
def test_t_quantiles_are_those_of_the_table(freedom: int, printed: float):
    assert t_quantile(freedom) == pytest.approx(printed, abs=5.1e-4)


def test_t_quantiles_at_other_levels():
    # One degree is Cauchy's: tan(pi * 0.99 / 2) = 63.657. Two: 0.9 sqrt(2 / (1 - 0.81)) = 2.920.
    assert t_quantile(1, confidence=0.99) == pytest.approx(math.tan(math.pi * 0.99 / 2))
    assert t_quantile(2, confidence=0.9) == pytest.approx(0.9 * math.sqrt(2 / 0.19))
    assert t_quantile(4, confidence=0.99) == pytest.approx(4.604, abs=5.1e-4)


def test_a_mean_worked_by_hand():
    # 1, 2, 3: mean 2, s = 1, error 1 / sqrt(3) = 0.57735, t at 2 degrees 4.30265: +-2.48414.
    interval = mean_interval([1.0, 2.0, 3.0])
    assert (interval.mean, interval.num) == (2.0, 3)
    assert interval.low == pytest.approx(2 - 2.48414, abs=1e-5)
    assert interval.high == pytest.approx(2 + 2.48414, abs=1e-5)
    assert interval.half_width == pytest.approx(2.48414, abs=1e-5)
    assert not interval.excludes_zero
    # t = 2 / 0.57735 = sqrt(12) at 2 degrees: p = 1 - t / sqrt(t^2 + 2) = 1 - sqrt(12 / 14).
    assert interval.p_value == pytest.approx(1 - math.sqrt(12 / 14))


def test_a_pair_cancels_what_both_share():
    # Differences 0.1, 0.2, 0.3 whatever the seeds do: mean 0.2, s = 0.1, +-4.30265 * 0.057735.
    shared = np.array([5.0, 500.0, -50.0])
    interval = paired_interval(shared + np.array([0.1, 0.2, 0.3]), shared)
    assert interval.mean == pytest.approx(0.2)
    assert interval.half_width == pytest.approx(0.248414, abs=1e-6)


def test_p_values_and_intervals_agree():
    rng = np.random.default_rng(0)
    for _ in range(200):
        interval = mean_interval(rng.normal(0.5, 1, rng.integers(2, 12)))
        assert interval.excludes_zero == (interval.p_value < 0.05)


def test_one_measurement_has_no_interval():
    interval = mean_interval([3.0])
    assert interval.mean == 3.0
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert not interval.is_known
    assert not interval.excludes_zero


def test_equal_measurements_have_an_interval_of_no_width():
    interval = mean_interval([0.25, 0.25])
    assert (interval.low, interval.high, interval.p_value) == (0.25, 0.25, 0.0)
    assert mean_interval([0.0, 0.0]).p_value == 1.0


def test_t_intervals_cover_the_truth_as_often_as_they_claim():
    rng = np.random.default_rng(1)
    intervals = [mean_interval(rng.normal(2.0, 3.0, 5)) for _ in range(2000)]
    inside = sum(one.low <= 2.0 <= one.high for one in intervals) / len(intervals)
    assert inside == pytest.approx(0.95, abs=0.015)  # three standard errors


def test_a_bootstrap_of_two_groups_worked_by_hand():
    # Of the four draws, (a, a) gives 2 / 1, (b, b) 9 / 3, the two others 11 / 4: a quarter of all
    # draws are at each end, so that the 2.5 % and 97.5 % points are the ends themselves.
    interval = bootstrap_interval([2.0, 9.0], [1.0, 3.0])
    assert interval.mean == pytest.approx(11 / 4)
    assert (interval.low, interval.high, interval.num) == (2.0, 3.0, 2)


def test_a_bootstrap_is_drawn_from_its_seed():
    rng = np.random.default_rng(2)
    sums, counts = rng.normal(0, 1, 40), rng.integers(1, 9, 40).astype(float)
    one, again = (bootstrap_interval(sums, counts, seed=3) for _ in range(2))
    assert one == again
    assert one != bootstrap_interval(sums, counts, seed=4)


def test_records_that_are_alike_count_as_one_group():
    # Ten copies of each record, in its own group or in one: in one, they tell no more than one.
    rng = np.random.default_rng(5)
    sums = rng.normal(0, 1, 30)
    alike = bootstrap_interval(10 * sums, np.full(30, 10.0))
    apart = bootstrap_interval(np.repeat(sums, 10), np.ones(300))
    assert alike.mean == pytest.approx(apart.mean)
    assert alike.half_width == pytest.approx(math.sqrt(10) * apart.half_width, rel=0.1)


def test_bootstrap_intervals_cover_the_truth_about_as_often_as_they_claim():
    rng = np.random.default_rng(6)
    inside = 0
    for seed in range(300):
        counts = rng.integers(1, 20, 60).astype(float)
        sums = counts * 0.7 + rng.normal(0, 1, 60) * counts
        interval = bootstrap_interval(sums, counts, seed=seed, num_draws=1000)
        inside += interval.low <= 0.7 <= interval.high
    assert 0.89 <= inside / 300 <= 0.98  # the percentile bootstrap is a little short


def test_groups_without_an_item_do_no_harm():
    interval = bootstrap_interval([1.0, 0.0, 2.0, 0.0], [2.0, 0.0, 2.0, 0.0])
    assert interval.mean == pytest.approx(0.75)
    assert 0.5 <= interval.low <= interval.high <= 1.0
