"""Intervals: Student's t over seeds, and the bootstrap over groups of records that are alike.

A difference between runs is worth what it is worth over seeds; one between models on one text, what
it is worth over texts. Both are asked for, each by its own function.

Axes: N repeated measurement (a seed), G group (the records of one file), D bootstrap draw.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = Sequence[float] | NDArray[np.float64]

_DRAWS_A_BLOCK = 2**22  # weights of groups that exist at one time


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over `num` things and its interval; low and high are NaN where one thing tells none.

    p_value: two-sided, of a mean of zero; NaN likewise, and where no test was made.
    """

    mean: float
    low: float
    high: float
    num: int
    p_value: float = math.nan

    @property
    def half_width(self) -> float:
        """What stands behind a plus-minus sign; of an uneven interval, the mean of both sides."""
        return (self.high - self.low) / 2

    @property
    def is_known(self) -> bool:
        """Whether there is an interval at all."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero; never, where there is none."""
        return self.low > 0 or self.high < 0


def mean_interval(values: Values, *, confidence: float = 0.95) -> Interval:
    """The mean of independent measurements, and Student's t interval: mean +- t s / sqrt(N).

    For s the sample standard deviation and t the quantile at N - 1 degrees of freedom. Measurements
    that are all equal have an interval of no width, and a p-value of 0, or of 1 where they are 0.
    """
    x_N = np.asarray(values, dtype=np.float64)
    assert x_N.ndim == 1, "measurements are a list"
    assert len(x_N) > 0, "a mean is over one or more"
    mean, num = float(x_N.mean()), len(x_N)
    if num == 1:
        return Interval(mean=mean, low=math.nan, high=math.nan, num=1)
    error = float(x_N.std(ddof=1)) / math.sqrt(num)
    half = t_quantile(num - 1, confidence=confidence) * error
    p_value = 1 - _share_within(abs(mean) / error, num - 1) if error > 0 else float(mean == 0)
    return Interval(mean=mean, low=mean - half, high=mean + half, num=num, p_value=p_value)


def paired_interval(values: Values, others: Values, *, confidence: float = 0.95) -> Interval:
    """`values` minus `others`, pair by pair (the same seed, say): what both share cancels."""
    x_N, y_N = np.asarray(values, dtype=np.float64), np.asarray(others, dtype=np.float64)
    assert x_N.shape == y_N.shape, "pairs are of equal number"
    return mean_interval(x_N - y_N, confidence=confidence)


def bootstrap_interval(
    sum_G: Values,
    count_G: Values,
    *,
    seed: int = 0,
    num_draws: int = 10_000,
    confidence: float = 0.95,
) -> Interval:
    """A ratio of sums, sum_G / count_G over all groups, and its percentile bootstrap interval.

    Groups are drawn with replacement, each with its sum and its count: records of one group (the
    functions of one file) may be as alike as they like. For a difference of two models on the same
    tokens, sum_G is the difference of their sums. The same seed, the same interval.
    """
    s_G, n_G = np.asarray(sum_G, dtype=np.float64), np.asarray(count_G, dtype=np.float64)
    assert s_G.shape == n_G.shape, "a sum and a count for each group"
    assert n_G.sum() > 0, "a ratio is over one item or more"
    assert (n_G >= 0).all(), "counts are not negative"
    ratio, num = float(s_G.sum() / n_G.sum()), len(s_G)
    if num == 1:
        return Interval(mean=ratio, low=math.nan, high=math.nan, num=1)
    rng = np.random.default_rng(seed)
    rows = max(1, _DRAWS_A_BLOCK // num)
    ratios: list[NDArray[np.float64]] = []
    for start in range(0, num_draws, rows):
        size = min(rows, num_draws - start)
        times_DG = rng.multinomial(num, np.full(num, 1 / num), size=size)
        drawn_D = times_DG @ n_G
        is_there_D = drawn_D > 0  # a draw of empty groups alone says nothing
        ratios.append((times_DG @ s_G)[is_there_D] / drawn_D[is_there_D])
    outside = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(ratios), [outside, 1 - outside])
    return Interval(mean=ratio, low=float(low), high=float(high), num=num)


def t_quantile(freedom: int, *, confidence: float = 0.95) -> float:
    """t such that Student's t at `freedom` degrees lies within [-t, t] with that probability."""
    assert freedom >= 1, "one degree of freedom or more"
    assert 0 < confidence < 1, "a probability"
    low, high = 0.0, 1.0
    while _share_within(high, freedom) < confidence:
        low, high = high, 2 * high
    for _ in range(100):  # halved until floats tell no more
        middle = (low + high) / 2
        if _share_within(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _share_within(t: float, freedom: int) -> float:
    """Probability of [-t, t]: a finite sum at whole degrees (Abramowitz and Stegun, 26.7.3-4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = freedom % 2 == 1
    term, total = (cosine, 0.0) if is_odd else (1.0, 0.0)
    for n in range(1 if is_odd else 0, freedom - 1, 2):
        total += term
        term *= cosine**2 * (n + 1) / (n + 2)
    return (2 / math.pi) * (angle + sine * total) if is_odd else sine * total
