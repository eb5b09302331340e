"""Paired differences: worked by hand, with the standard error of a ratio over records."""

import numpy as np
import pytest

from pipeline.evaluate.scores import HeldOutScores, TokenScores, paired_difference


def _scores(
    nll: list[list[float]], masked: list[list[int]], maskable: list[int], fingerprint: str = "f"
) -> HeldOutScores:
    tokens = TokenScores(
        levels=(0.25, 0.5)[: len(nll[0])],
        nll_RL=np.array(nll),
        num_correct_RL=np.zeros(np.shape(nll), dtype=np.int64),
        num_masked_RL=np.array(masked),
        num_maskable_R=np.array(maskable),
    )
    ids = tuple(f"r{i}" for i in range(len(nll)))
    return HeldOutScores(fingerprint=fingerprint, record_ids=ids, content=tokens, target=tokens)


def test_worked_by_hand():
    # Records of 1 and 3 masked tokens, differences -1 and +2 nats: mean 1 / 4 = 0.25.
    # Residuals -1 - 0.25 = -1.25 and 2 - 0.75 = 1.25: error sqrt(2 / 1 * 2 * 1.5625) / 4 = 0.625.
    a = _scores([[1.0], [6.0]], [[1], [3]], [4, 12])
    b = _scores([[2.0], [4.0]], [[1], [3]], [4, 12])
    difference = paired_difference(a, b)
    np.testing.assert_allclose(difference.nll_L, [0.25])
    np.testing.assert_allclose(difference.nll_error_L, [0.625])
    # At t = 0.25 and over 4 + 12 maskable tokens: (-1 + 2) / 0.25 / 16 = 0.25; residuals
    # -4 - 1 = -5 and 8 - 3 = 5: error sqrt(2 * 50) / 16 = 0.625.
    assert difference.nll_bound == pytest.approx(0.25)
    assert difference.nll_bound_error == pytest.approx(0.625)


def test_the_difference_of_means_is_the_mean_difference():
    rng = np.random.default_rng(0)
    masked = rng.integers(1, 9, (20, 2)).tolist()
    a, b = (_scores(rng.random((20, 2)).tolist(), masked, [9] * 20) for _ in range(2))
    difference = paired_difference(a, b)
    np.testing.assert_allclose(difference.nll_L, a.content.nll_L - b.content.nll_L)
    assert difference.nll_bound == pytest.approx(a.content.nll_bound - b.content.nll_bound)


def test_what_is_hard_for_both_adds_no_error():
    # Any spread between records, yet each token differs by 0.1: the error is 0.
    masked = [[1, 2], [5, 5], [9, 1]]
    base = np.array([[3.0, 1.0], [80.0, 2.0], [0.5, 7.0]])
    a = _scores((base + 0.1 * np.array(masked)).tolist(), masked, [9, 9, 9])
    difference = paired_difference(a, _scores(base.tolist(), masked, [9, 9, 9]))
    np.testing.assert_allclose(difference.nll_L, 0.1)
    np.testing.assert_allclose(difference.nll_error_L, 0.0, atol=1e-12)


def test_the_standard_error_covers_the_truth_as_often_as_it_claims():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        masked = rng.integers(1, 20, (80, 1))
        noise = rng.normal(0, np.sqrt(masked)) + masked * rng.normal(0.3, 0.2, (80, 1))
        a = _scores(noise.tolist(), masked.tolist(), [20] * 80)
        b = _scores(np.zeros((80, 1)).tolist(), masked.tolist(), [20] * 80)
        difference = paired_difference(a, b)
        inside += abs(difference.nll_L[0] - 0.3) < 1.96 * difference.nll_error_L[0]
    assert 0.91 < inside / 400 < 0.98


def test_scores_on_other_masks_are_refused():
    a, b = (_scores([[1.0]], [[1]], [1], fingerprint) for fingerprint in "ab")
    with pytest.raises(ValueError, match="same held-out masks"):
        paired_difference(a, b)


def test_one_record_has_no_standard_error_and_no_token_no_mean():
    one = paired_difference(_scores([[1.0]], [[1]], [1]), _scores([[3.0]], [[1]], [1]))
    assert one.nll_L[0] == -2.0
    assert np.isnan(one.nll_error_L[0])
    nothing = _scores([[0.0], [0.0]], [[0], [0]], [1, 1])
    assert np.isnan(paired_difference(nothing, nothing).nll_L[0])
