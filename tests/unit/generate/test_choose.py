"""Which tokens of a step stay, worked by hand, and how many a step takes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.generate.choose import choose, tokens_per_step

CONFIDENCE = np.array([0.30, 0.95, 0.10, 0.60, 0.92])


@pytest.mark.parametrize(
    ("quota", "threshold", "taken"),
    [
        (1, None, [1]),
        (3, None, [1, 3, 4]),
        (9, None, [0, 1, 2, 3, 4]),  # more than there are
        (1, 0.9, [1, 4]),  # the second one for the threshold's sake
        (3, 0.9, [1, 3, 4]),  # the third one for the quota's
        (1, 0.99, [1]),  # none is that certain: the most certain one
        (1, 0.1, [0, 1, 2, 3, 4]),  # as certain as the threshold is enough
    ],
)
def test_the_most_certain_tokens_stay_and_all_that_reach_the_threshold(quota, threshold, taken):
    is_taken = choose(CONFIDENCE, CONFIDENCE, quota=quota, threshold=threshold)
    assert np.flatnonzero(is_taken).tolist() == taken


@pytest.mark.parametrize(
    ("threshold", "taken"), [(None, [0, 2]), (0.9, [0, 1, 2, 4])], ids=["quota", "threshold"]
)
def test_random_numbers_fill_the_quota_where_they_are_the_score(threshold, taken):
    score = np.array([0.8, 0.1, 0.9, 0.3, 0.2])  # positions 2 and 0, whatever their confidence
    is_taken = choose(score, CONFIDENCE, quota=2, threshold=threshold)
    assert np.flatnonzero(is_taken).tolist() == taken


def test_of_equally_certain_tokens_the_earlier_ones_stay():
    even = np.full(40, 0.5)
    assert np.flatnonzero(choose(even, even, quota=3, threshold=None)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("num_masked", "steps", "shares"),
    [
        (32, 32, (1,) * 32),
        (32, 8, (4,) * 8),
        (32, 5, (7, 7, 6, 6, 6)),
        (32, 1, (32,)),
        (10, 8, (4, 3, 3)),  # 10 * 8 / 32 = 2.5 steps' worth
        (1, 1, (1,)),
        (0, 8, ()),
    ],
)
def test_a_block_is_spread_evenly_over_its_steps(num_masked, steps, shares):
    assert tokens_per_step(num_masked, block_size=32, steps_per_block=steps) == shares


@given(st.integers(0, 64), st.integers(1, 64), st.data())
def test_every_token_has_a_step_and_every_step_a_token(num_masked, steps, data):
    block_size = data.draw(st.integers(max(num_masked, steps), 96))
    shares = tokens_per_step(num_masked, block_size=block_size, steps_per_block=steps)
    assert sum(shares) == num_masked
    assert len(shares) <= steps
    assert all(share >= 1 for share in shares)
    assert max(shares, default=0) <= -(-block_size // steps)  # never faster than a whole block
