"""A figure of a setting, with the interval that its runs allow: over seeds, or over records."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.evaluate.statistics import Interval, mean_interval

Over = Literal["seeds", "records", "nothing"]
_NORMAL = 1.959964  # of a standard error: 95 % of a normal distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate(Interval):
    """A figure with its 95 % interval, and what that interval is taken over.

    Over records there is one seed: such an interval does not cover the noise of training.
    """

    over: Over


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean over runs; with one run there is no interval."""
    interval = mean_interval(values)
    return of_interval(interval, "seeds" if interval.num > 1 else "nothing")


def over_records(mean: float, error: float, num_records: int) -> Estimate:
    """One run's figure with its standard error over records, as an interval of 95 %."""
    half = _NORMAL * error
    over: Over = "nothing" if math.isnan(error) else "records"
    return Estimate(mean=mean, low=mean - half, high=mean + half, num=num_records, over=over)


def without_interval(mean: float) -> Estimate:
    """A figure of which no interval is known."""
    return Estimate(mean=mean, low=math.nan, high=math.nan, num=1, over="nothing")


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """The same in another unit."""
    assert factor > 0, "a unit keeps what is low and what is high"
    return Estimate(
        mean=estimate.mean * factor,
        low=estimate.low * factor,
        high=estimate.high * factor,
        num=estimate.num,
        p_value=estimate.p_value,
        over=estimate.over,
    )


def of_interval(interval: Interval, over: Over) -> Estimate:
    """The interval, and what it is over."""
    return Estimate(
        mean=interval.mean,
        low=interval.low,
        high=interval.high,
        num=interval.num,
        p_value=interval.p_value,
        over=over,
    )
