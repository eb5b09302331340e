"""From calibration rows to a basis: moments, axes, the static bias, and the search for a step.

Axes: N calibration position, M position, H hidden size, R sketch dimension, V vocabulary.
"""

import math

import numpy as np
import pytest
import torch
from hidden_states import TEMPERATURE, make_world
from torch.testing import assert_close

from pipeline.targets.calibrate import Moments, encode_rows, find_axes, fitted
from pipeline.targets.search import SearchRows, coded_bytes, find_step, reach, search_basis
from pipeline.targets.sketch import SketchEncoder, shrink
from storage_schemas.sketch_coder import decode_sketch, encode_sketch

FLOAT64 = {"atol": 1e-10, "rtol": 1e-10}  # sums of a thousand float64 numbers of size 10
FLOAT32 = {"atol": 2e-5, "rtol": 2e-5}  # a float32 result of a float64 computation
HALF_STEP = 2**-11  # relative rounding of float16
# The last fit takes more rows than the trials did, and comes out a little otherwise.
LAST_FIT = 0.01
CLOSE_BELOW = 0.98  # `find_step` stops between this share of what is asked for, and all of it


@pytest.fixture(scope="module")
def world():
    return make_world()


@pytest.fixture(scope="module")
def search_rows(world):
    generator = torch.Generator().manual_seed(5)
    num_rows = len(world.held_out_MH)
    return SearchRows(
        hidden_MH=world.held_out_MH,
        weaker_MH=0.7 * world.held_out_MH.roll(1, 0),
        gold_id_M=torch.randint(len(world.head_VH), (num_rows,), generator=generator),
    )


def moments_of(world, sizes):
    moments = Moments(world.head_VH, temperature=TEMPERATURE)
    for block_NH in world.calibration_NH.split(sizes):
        moments.add(block_NH, world.logits_of(block_NH))
    return moments


# Moments


def test_moments_of_two_rows_worked_by_hand():
    # h = 1 and 3: mean 2, variance 1 and a ridge of a millionth. W = (0, log 9)': at T = 2 the
    # second token has odds 3 and 27, so its mean share is (3/4 + 27/28) / 2 = 6/7.
    moments = Moments(torch.tensor([[0.0], [math.log(9)]]), temperature=2.0)
    hidden_NH = torch.tensor([[1.0], [3.0]])
    moments.add(hidden_NH, hidden_NH @ moments.head_VH.T)
    assert moments.count == 2
    assert moments.mean_H.tolist() == [2.0]
    assert moments.covariance_HH.item() == pytest.approx(1 + 1e-6, rel=1e-12)
    assert_close(moments.share_V, torch.tensor([1 / 7, 6 / 7], dtype=torch.float64), **FLOAT32)


def test_moments_in_blocks_are_those_of_all_rows_at_once(world):
    whole = moments_of(world, [len(world.calibration_NH)])
    parts = moments_of(world, [1, 499, 1000])
    assert parts.count == whole.count == len(world.calibration_NH)
    assert_close(parts.mean_H, whole.mean_H, **FLOAT64)
    assert_close(parts.covariance_HH, whole.covariance_HH, **FLOAT64)
    assert_close(parts.share_V, whole.share_V, **FLOAT32)  # softmax runs in float32
    hidden = world.calibration_NH.double()
    want_HH = torch.cov(hidden.T, correction=0)
    ridge_HH = 1e-6 * want_HH.diagonal().mean() * torch.eye(len(want_HH), dtype=torch.float64)
    assert_close(whole.covariance_HH, want_HH + ridge_HH, **FLOAT64)
    assert whole.share_V.sum().item() == pytest.approx(1, rel=1e-6)


def test_moments_of_half_width_states_are_summed_in_float64(world):
    half_NH = world.calibration_NH.to(torch.bfloat16)
    moments = Moments(world.head_VH, temperature=TEMPERATURE)
    moments.add(half_NH, world.logits_of(half_NH))
    assert_close(moments.mean_H, half_NH.double().mean(0), **FLOAT64)


# Axes


def test_coefficients_are_uncorrelated_and_have_the_scales_that_are_named(world):
    axes = world.axes
    encode_HR, scale_R = axes.encode_HH.double(), axes.scale_H.double()
    assert (scale_R.diff() <= 0).all()
    covariance_HH = moments_of(world, 500).covariance_HH  # of the rows, and the ridge
    got_RR = encode_HR.T @ covariance_HH @ encode_HR
    # relative to the scales of the pair: the smallest are a thousandth of the largest
    eye_RR = torch.eye(len(scale_R), dtype=torch.float64)
    assert_close(got_RR / scale_R.outer(scale_R), eye_RR, **FLOAT32)


def test_coefficients_decode_to_the_centered_logits(world):
    axes = world.axes
    share_V = moments_of(world, 500).share_V.float()
    hidden_MH = world.held_out_MH - axes.mean_H
    centered_MV = world.logits_of(hidden_MH)
    centered_MV = centered_MV - (centered_MV @ share_V)[:, None]
    coefficient_MR = hidden_MH @ axes.encode_HH
    rebuilt_MV = coefficient_MR @ axes.decode_HV.float()
    bound_MV = HALF_STEP * coefficient_MR.abs() @ axes.decode_HV.float().abs()
    assert ((rebuilt_MV - centered_MV).abs() <= bound_MV + 1e-4).all()
    assert axes.decode_HV.dtype == torch.float16


def test_equal_errors_do_equal_harm_to_likely_logits(world):
    """D diag(w) D' is the identity: a unit of any coefficient is a nat of w-weighted rms logit."""
    share_V = moments_of(world, 500).share_V
    decode_RV = world.axes.decode_HV.double()
    metric_RR = decode_RV * share_V @ decode_RV.T
    assert_close(metric_RR, torch.eye(len(metric_RR), dtype=torch.float64), atol=2e-3, rtol=0)


def test_the_base_is_the_centered_mean_logit(world):
    share_V = moments_of(world, 500).share_V
    mean_V = world.logits_of(world.calibration_NH).double().mean(0)
    want_V = mean_V - share_V @ mean_V
    assert_close(world.axes.base_V.double(), want_V, **FLOAT32)


def test_a_heads_bias_is_part_of_the_mean_logit_and_of_nothing_else(world):
    bias_V = torch.randn(len(world.head_VH), generator=torch.Generator().manual_seed(6))
    moments = moments_of(world, 500)
    plain, biased = find_axes(moments, None), find_axes(moments, bias_V)
    assert torch.equal(plain.decode_HV, biased.decode_HV)
    assert torch.equal(plain.encode_HH, biased.encode_HH)
    moved_V = (biased.base_V - plain.base_V).double()
    assert_close(moved_V, bias_V.double() - moments.share_V @ bias_V.double(), **FLOAT32)


def test_a_dead_direction_of_the_hidden_states_does_no_harm(world):
    hidden_NH = torch.cat([world.calibration_NH, torch.zeros(len(world.calibration_NH), 1)], 1)
    head_VH = torch.cat([world.head_VH, torch.ones(len(world.head_VH), 1)], 1)
    moments = Moments(head_VH, temperature=TEMPERATURE)
    moments.add(hidden_NH, hidden_NH @ head_VH.T)
    axes = find_axes(moments, None)
    for tensor in (axes.encode_HH, axes.decode_HV, axes.scale_H, axes.base_V):
        assert tensor.isfinite().all()


def test_a_basis_keeps_what_its_step_can_tell_from_zero_but_two_thirds_in_any_case(world):
    size = world.head_VH.shape[1]
    assert world.axes.cut(1e-6, None).rank == size
    assert world.axes.cut(1e6, None).rank == round(2 / 3 * size)
    step = 5 * float(world.axes.scale_H[26])  # 0.2 of it is the 27th scale
    assert world.axes.cut(step, None).rank in (26, 27)


@pytest.mark.parametrize(("rank", "want"), [(0, 0), (1, 1), (7, 7), (32, 32), (99, 32)])
def test_a_rank_that_is_named_is_kept_as_far_as_there_is_one(world, rank, want):
    basis = world.axes.cut(0.1, rank)
    assert basis.rank == want
    assert basis.encode_HR.shape == (32, want)
    assert (basis.step, basis.temperature, basis.coder) == (0.1, TEMPERATURE, None)
    np.testing.assert_array_equal(basis.decode_RV, world.axes.decode_HV[:want].numpy())
    np.testing.assert_array_equal(basis.scale_R, world.axes.scale_H[:want].numpy())
    assert not basis.bias_V.any()


# What is fitted to the rows


def test_the_static_bias_is_the_variance_that_rounding_adds_to_each_logit(world):
    basis = world.axes.cut(0.2, None)
    got = fitted(basis, world.calibration_NH, world.logits_of)
    coefficient_NR = (world.calibration_NH - world.axes.mean_H) @ torch.from_numpy(basis.encode_HR)
    coefficient_NR = coefficient_NR / 0.2
    threshold_R = SketchEncoder.of(basis, torch.device("cpu")).threshold_R
    error_NR = (coefficient_NR - shrink(coefficient_NR, threshold_R).round()).double()
    want_V = np.zeros(basis.vocab_size)
    for r in range(basis.rank):
        variance = float((error_NR[:, r] ** 2).mean()) * 0.2**2
        want_V += variance * basis.decode_RV[r].astype(np.float64) ** 2
    np.testing.assert_allclose(got.bias_V, want_V, rtol=1e-4)
    for name in ("mean_H", "encode_HR", "decode_RV", "base_V", "scale_R"):
        np.testing.assert_array_equal(getattr(got, name), getattr(basis, name))


def test_the_coder_is_fitted_to_the_rows_own_integers(world):
    basis = fitted(world.axes.cut(0.2, None), world.calibration_NH, world.logits_of)
    encoder = SketchEncoder.of(basis, torch.device("cpu"))
    sketch_MR = encode_rows(encoder, world.held_out_MH, world.logits_of)
    coded = encode_sketch(sketch_MR.numpy(), basis.coder)
    np.testing.assert_array_equal(decode_sketch(coded, len(sketch_MR), basis.coder), sketch_MR)
    assert coded_bytes(basis, sketch_MR) == len(coded) / len(sketch_MR)
    # below the bits that the columns' own frequencies would take, and a header
    assert len(coded) / len(sketch_MR) < 2 * basis.rank


def test_fewer_rows_are_taken_from_all_over(world):
    seen = []

    def logits_of(hidden_MH):
        seen.append(hidden_MH)
        return world.logits_of(hidden_MH)

    fitted(world.axes.cut(0.2, None), world.calibration_NH, logits_of, num_rows=100)
    assert torch.equal(torch.cat(seen), world.calibration_NH[::15][:100])


# The search


MONOTONE = {
    "power": (lambda step: 1.5 * step**0.9, True),
    "saturating": (lambda step: step / (0.4 + step), True),
    "with_a_floor": (lambda step: 0.02 + step**1.3, True),
    "logarithm": (lambda step: max(1.0, 66 * math.log(0.5 / step)), False),
    "root": (lambda step: 9 * step**-0.5, False),
    "entropy": (lambda step: 256 * math.log2(1 + 0.2 / step) / 8, False),
}


@pytest.mark.parametrize(
    ("name", "amount"),
    [
        ("power", 0.15),
        ("power", 0.001),
        ("power", 5.0),
        ("saturating", 0.15),
        ("saturating", 0.9),
        ("with_a_floor", 0.03),
        ("logarithm", 100.0),
        ("logarithm", 300.0),
        ("root", 100.0),
        ("root", 5.0),
        ("entropy", 12.5),
    ],
)
def test_a_step_is_found_just_below_what_is_asked_for(name, amount):
    amount_at, rises = MONOTONE[name]
    trials: list[float] = []

    def counted(step):
        trials.append(step)
        return amount_at(step)

    step = find_step(counted, amount, rises=rises)
    assert len(trials) <= 8
    assert CLOSE_BELOW * amount <= amount_at(step) <= amount


def test_a_step_that_is_right_at_once_takes_one_trial():
    trials: list[float] = []
    assert find_step(lambda step: trials.append(step) or 0.149, 0.15, rises=True) == trials[0]
    assert len(trials) == 1


def test_noise_on_what_is_measured_costs_no_trial_twice():
    generator = np.random.default_rng(0)
    for _ in range(50):
        trials: dict[float, float] = {}

        def noisy(step, trials=trials):
            assert step not in trials
            trials[step] = 1.5 * step**0.9 * (1 + 0.02 * generator.standard_normal())
            return trials[step]

        step = find_step(noisy, 0.15, rises=True)
        assert len(trials) <= 8
        assert trials[step] <= 0.15


def test_what_no_step_reaches_ends_at_the_end_of_the_steps():
    # a gradient error that never falls to what is asked for: the smallest step there is
    assert find_step(lambda step: 0.5 + step, 0.1, rises=True) == pytest.approx(1e-4)
    # bytes that never do: the largest
    assert find_step(lambda step: 40 + 1 / step, 20.0, rises=False) == pytest.approx(10)


def test_what_every_step_is_below_ends_at_the_step_that_is_nearest():
    assert find_step(lambda step: 0.5 * step / (1 + step), 0.9, rises=True) == pytest.approx(10)


def test_a_jump_over_what_is_asked_for_ends_below_it():
    step = find_step(lambda step: 0.1 if step < 0.3 else 0.5, 0.2, rises=True)
    assert step < 0.3


def searched(world, search_rows, asks, amount, *, rank=None):
    return search_basis(
        world.axes,
        world.calibration_NH,
        search_rows,
        world.logits_of,
        asks=asks,
        amount=amount,
        rank=rank,
        temperatures=(1.0, 2.0),
    )


def test_a_step_that_is_asked_for_is_the_step(world, search_rows):
    basis, reached = searched(world, search_rows, "step", 0.123, rank=20)
    assert (basis.step, basis.rank) == (0.123, 20)
    assert basis.coder is not None
    assert basis.bias_V.any()
    assert reached == reach(basis, search_rows, world.logits_of, (1.0, 2.0))
    assert reached.kl.keys() == {1.0, 2.0}


@pytest.mark.parametrize("amount", [8.0, 16.0, 24.0])
def test_bytes_that_are_asked_for_are_met_from_below(world, search_rows, amount):
    _, reached = searched(world, search_rows, "bytes", amount)
    assert (CLOSE_BELOW - LAST_FIT) * amount <= reached.num_bytes <= (1 + LAST_FIT) * amount


@pytest.mark.parametrize("amount", [0.05, 0.15, 0.4])
def test_a_gradient_error_that_is_asked_for_is_met_from_below(world, search_rows, amount):
    _, reached = searched(world, search_rows, "grad_error", amount)
    assert (CLOSE_BELOW - LAST_FIT) * amount <= reached.grad_error <= (1 + LAST_FIT) * amount


def test_more_bytes_buy_a_smaller_error_at_every_temperature(world, search_rows):
    reached = [searched(world, search_rows, "step", step)[1] for step in (0.3, 0.15, 0.07)]
    for name in ("num_bytes", "grad_error"):
        values = [getattr(one, name) for one in reached]
        assert values == sorted(values, reverse=name == "grad_error")
    for temperature in (1.0, 2.0):
        values = [one.kl[temperature] for one in reached]
        assert values == sorted(values, reverse=True)
