"""Several draws of masks: the Monte-Carlo error by hand, and masks that depend on their draw."""

import math

import numpy as np
import pytest

from pipeline.evaluate.draws import join_draws
from pipeline.evaluate.scores import HeldOutScores, TokenScores


def _scores(nll: list[list[float]]) -> HeldOutScores:
    tokens = TokenScores(
        levels=(0.5,),
        nll_RL=np.array(nll),
        num_correct_RL=np.array([[1], [0]]),
        num_masked_RL=np.array([[2], [2]]),
        num_maskable_R=np.array([4, 4]),
    )
    return HeldOutScores(fingerprint="", record_ids=("a", "b"), content=tokens, target=tokens)


def test_the_errors_are_worked_by_hand():
    # bounds: (2 + 4) / 0.5 / 8 = 1.5 and (4 + 6) / 0.5 / 8 = 2.5; deviation 0.7071 over sqrt(2)
    joined = join_draws([_scores([[2.0], [4.0]]), _scores([[4.0], [6.0]])], num_bytes=16)
    assert joined.nll_bound == pytest.approx(2.0)
    assert joined.monte_carlo_error == pytest.approx(0.5)
    # records add 6 and 10 nats of 4 tokens each: sqrt(2 ((6 - 8)^2 + (10 - 8)^2)) / 8
    assert joined.record_error == pytest.approx(0.5)
    assert joined.nats_per_byte == pytest.approx(2.0 * 8 / 16)
    assert joined.nll_L.tolist() == [pytest.approx(2.0)]  # 16 nats of 8 masked tokens
    assert joined.accuracy_L.tolist() == [pytest.approx(0.25)]


def test_one_draw_knows_nothing_of_its_luck():
    assert math.isnan(join_draws([_scores([[2.0], [4.0]])], num_bytes=1).monte_carlo_error)
