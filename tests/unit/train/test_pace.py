"""Tokens a second and the share of waiting, on a clock that only the test moves."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.train.pace import Pace


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def batches(clock, seconds, tokens):
    """Each batch takes `seconds` to come."""
    while True:
        clock.now += seconds
        yield SimpleNamespace(num_text_tokens=tokens)


def alone(values):
    return values


def test_worked_by_hand():
    clock = Clock()
    pace = Pace(clock)
    clock.now += 50  # before the first step nothing counts
    source = batches(clock, 0.5, 100)
    for _ in range(2):
        assert len(pace.take(source, 2)) == 2  # one second of waiting
        clock.now += 3
    # 400 tokens in 2 (1 + 3) seconds, of which 2 were spent waiting
    assert pace.close(alone) == {"tokens_per_s": 50.0, "wait_share": 0.25}


def test_what_is_paused_takes_no_time():
    clock = Clock()
    pace = Pace(clock)
    pace.take(batches(clock, 1, 60), 1)
    clock.now += 2
    with pace.paused():
        clock.now += 1000
    assert pace.close(alone) == {"tokens_per_s": 20.0, "wait_share": pytest.approx(1 / 3)}


def test_each_entry_is_of_the_time_since_the_last():
    clock = Clock()
    pace = Pace(clock)
    pace.take(batches(clock, 4, 10), 1)
    pace.close(alone)
    clock.now += 1  # between two entries, yet not paused
    pace.take(batches(clock, 1, 30), 1)
    clock.now += 1
    assert pace.close(alone) == {"tokens_per_s": 10.0, "wait_share": pytest.approx(1 / 3)}


def test_processes_add_their_tokens_and_share_their_time():
    # This one: 100 tokens in 4 s, 1 of waiting; the other: 60 tokens in 6 s, 2 of waiting.
    clock = Clock()
    pace = Pace(clock)
    pace.take(batches(clock, 1, 100), 1)
    clock.now += 3

    def with_the_other(values):
        return values + torch.tensor([1.0, 60.0, 2.0, 6.0], dtype=torch.float64)

    # 160 tokens in 5 s on average; 3 of 10 s
    assert pace.close(with_the_other) == {"tokens_per_s": 32.0, "wait_share": pytest.approx(0.3)}


def test_a_source_that_ends_gives_what_it_has():
    clock = Clock()
    pace = Pace(clock)
    only = iter([SimpleNamespace(num_text_tokens=7)])
    assert len(pace.take(only, 3)) == 1
