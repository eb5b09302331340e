"""Diffusion times: the formula, the range, the spread over views, the uniform margin."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.diffusion import schedule
from pipeline.diffusion.rng import uniforms_for
from pipeline.diffusion.schedule import diffusion_time

EPS = 1e-3
GOLDEN = 0.6180339887


def _times(record_id: str, num_views: int) -> list[float]:
    return [diffusion_time(5, record_id, view, eps=EPS) for view in range(num_views)]


def test_a_time_worked_by_hand(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schedule, "uniforms_for", lambda *_: np.array([0.5]))
    # 0.5, then 1.1180339887 and 1.7360679774 without their whole part
    assert diffusion_time(0, "r", 0, eps=0.0) == 0.5
    assert diffusion_time(0, "r", 1, eps=0.0) == pytest.approx(0.1180339887, abs=1e-15)
    assert diffusion_time(0, "r", 2, eps=0.0) == pytest.approx(0.7360679774, abs=1e-15)
    assert diffusion_time(0, "r", 0, eps=0.2) == pytest.approx(0.6, abs=1e-15)


@settings(deadline=None)
@given(st.integers(0, 99), st.text("ab", max_size=3), st.integers(0, 1000))
def test_the_time_of_a_view_is_the_formula(seed: int, record_id: str, view: int):
    start = uniforms_for(seed, record_id, 0, "time", 1)[0]
    expected = EPS + (1 - EPS) * math.modf(start + GOLDEN * view)[0]
    assert diffusion_time(seed, record_id, view, eps=EPS) == expected


@settings(deadline=None)
@given(st.floats(0, 1, exclude_min=True, exclude_max=True), st.floats(0, 1, exclude_max=True))
@example(0.5, math.nextafter(1, 0))  # eps + (1 - eps) u rounds to 1
@example(EPS, 0.0)
def test_a_time_is_at_least_eps_and_below_one(eps: float, start: float):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "uniforms_for", lambda *_: np.array([start]))
        assert eps <= diffusion_time(0, "r", 0, eps=eps) < 1


@pytest.mark.parametrize("record_id", ["a", "b", "c"])
@pytest.mark.parametrize("num_views", [1, 2, 3, 4, 7, 12, 64, 100])
def test_the_times_of_a_record_leave_no_wide_gap(record_id: str, num_views: int):
    # on the circle; n times the widest gap of golden-ratio points tends to at most 1 + 2/sqrt(5)
    times = np.sort(_times(record_id, num_views))
    gaps = np.diff(times, append=times[0] + (1 - EPS))
    assert gaps.max() <= (1 - EPS) * 1.9 / num_views


def test_more_views_extend_the_times_of_a_record_without_changing_the_first():
    for record_id in ("a", "b"):
        assert _times(record_id, 16)[:4] == _times(record_id, 4)


@pytest.mark.parametrize("view", range(4))
def test_the_time_of_each_view_is_uniform_by_itself(view: int):
    # Kolmogorov-Smirnov: sqrt(n) D stays below 1.95 in 999 of 1,000 samples
    num_records = 4000
    times = np.sort([diffusion_time(0, f"r{i}", view, eps=EPS) for i in range(num_records)])
    uniform = (times - EPS) / (1 - EPS)
    rank = np.arange(num_records)
    distance = max((uniform - rank / num_records).max(), ((rank + 1) / num_records - uniform).max())
    assert np.sqrt(num_records) * distance < 1.95


def test_records_have_times_of_their_own():
    assert len({diffusion_time(0, f"r{i}", 0, eps=EPS) for i in range(1000)}) == 1000


def test_independent_times_are_draws_of_each_view_alone():
    times = np.array([diffusion_time(0, "r", v, eps=EPS, times="independent") for v in range(4000)])
    uniform = (times - EPS) / (1 - EPS)
    rank = np.arange(len(times))
    uniform_sorted = np.sort(uniform)
    assert np.sqrt(len(times)) * np.abs(uniform_sorted - (rank + 0.5) / len(times)).max() < 1.95
    steps = np.diff(uniform) % 1  # stratified ones all step by the golden ratio
    assert steps.std() > 0.2
    assert abs(np.corrcoef(uniform[:-1], uniform[1:])[0, 1]) < 4 / np.sqrt(len(times))
