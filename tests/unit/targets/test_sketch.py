"""Shaped rounding, and the rows that come back from its integers.

Axes: M position, K likely token, R sketch dimension, H hidden size, V vocabulary.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hidden_states import TEMPERATURE, make_world
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from pipeline.targets import sketch
from pipeline.targets.calibrate import fitted
from pipeline.targets.measure import kl_at, tidal_gradient_error
from pipeline.targets.sketch import (
    SketchDecoder,
    SketchEncoder,
    bit_slopes,
    round_shaped,
    shrink,
)

HALF_STEP = 2**-11  # relative rounding of float16, in which the decoding matrix is kept
# Other batches take other kernels, and a coefficient within float32 of the middle between two
# integers may fall either way; all that are rounded after it then differ too.
TIED_ROWS = 0.03


@pytest.fixture(scope="module")
def world():
    return make_world()


# The rounding


def plain_cholesky(target_MR, seen_MKR, threshold_R):
    """The rounding as it is defined, row by row and number by number, with the whole of H."""
    whole_MR = torch.zeros_like(target_MR)
    for x, seen, whole in zip(target_MR, seen_MKR, whole_MR, strict=True):
        rank = len(x)
        upper = torch.linalg.cholesky(torch.eye(rank, dtype=x.dtype) + seen.T @ seen, upper=True)
        for i in reversed(range(rank)):
            carried = sum(upper[i, j] * (x[j] - whole[j]) for j in range(i + 1, rank))
            best = float(x[i] + carried / upper[i, i])
            nearer = max(abs(best) - float(threshold_R[i] / upper[i, i] ** 2), 0.0)
            whole[i] = math.copysign(round(nearer), best)
    return whole_MR


def random_rows(num_rows, num_seen, rank, *, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    scale_R = torch.linspace(4, 0.1, rank, dtype=torch.float64).to(dtype)
    seen_MKR = normal(num_rows, num_seen, rank) / max(1, num_seen) ** 0.5
    return (
        normal(num_rows, rank) * scale_R,
        seen_MKR,
        0.2 * torch.rand(rank, generator=generator, dtype=torch.float64).to(dtype),
    )


def quadratic(target_MR, seen_MKR, whole_MR):
    """(x - q)' (I + S'S) (x - q) of each row."""
    error_MR = target_MR - whole_MR
    felt_MK = (seen_MKR @ error_MR[..., None])[..., 0]
    return (error_MR**2).sum(-1) + (felt_MK**2).sum(-1)


def test_rounding_two_coefficients_worked_by_hand():
    # S = (1, 1): H = (2 1; 1 2), U11 = sqrt 2, U12 = 1 / sqrt 2. x = (0.4, 0.4): the second rounds
    # to 0 and leaves an error of 0.4; half of it (U12 / U11) goes to the first: 0.6, which rounds
    # to 1. The cost falls from 0.96, of (0, 0), to 2 * 0.36 + 2 * 0.16 - 2 * 0.24 = 0.56.
    x, s = torch.tensor([[0.4, 0.4]]), torch.ones(1, 1, 2)
    assert round_shaped(x, s, torch.zeros(2)).tolist() == [[1.0, 0.0]]
    assert_close(quadratic(x, s, torch.tensor([[0.0, 0.0]])), torch.tensor([0.96]))
    assert_close(quadratic(x, s, torch.tensor([[1.0, 0.0]])), torch.tensor([0.56]))
    # A threshold of 0.4 moves the first towards zero by 0.4 / U11^2 = 0.2, to 0.4: that is 0. With
    # 2 * 0.4 |q| the objective of (1, 0) would be 0.56 + 0.8, and that of (0, 0) still is 0.96.
    assert round_shaped(x, s, torch.full((2,), 0.4)).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("num_rows", "num_seen", "rank"),
    [
        (3, 5, 64),
        (3, 5, 65),
        (2, 7, 130),
        (1, 4, 63),
        (4, 3, 1),
        (2, 0, 70),
        (2, 90, 20),
        (1, 1, 2),
        (2, 128, 129),
    ],
)
def test_blocks_give_the_integers_of_one_cholesky_factor(num_rows, num_seen, rank):
    target_MR, seen_MKR, threshold_R = random_rows(num_rows, num_seen, rank, seed=rank)
    got_MR = round_shaped(target_MR, seen_MKR, threshold_R)
    assert got_MR.dtype == torch.float64
    assert torch.equal(got_MR, plain_cholesky(target_MR, seen_MKR, threshold_R))


def test_in_float32_nearly_all_rows_are_those_of_float64():
    target_MR, seen_MKR, threshold_R = random_rows(60, 9, 100, dtype=torch.float32)
    got_MR = round_shaped(target_MR, seen_MKR, threshold_R)
    want_MR = plain_cholesky(target_MR.double(), seen_MKR.double(), threshold_R.double())
    assert (got_MR != want_MR).any(-1).float().mean() <= TIED_ROWS


def test_where_nothing_is_seen_each_coefficient_is_rounded_by_itself():
    target_MR, _, threshold_R = random_rows(5, 0, 80)
    nothing = torch.zeros(5, 3, 80, dtype=torch.float64)
    want_MR = shrink(target_MR, threshold_R).round()
    assert torch.equal(round_shaped(target_MR, nothing, threshold_R), want_MR)


def test_no_row_is_rounded_to_no_row():
    assert round_shaped(torch.zeros(0, 5), torch.zeros(0, 2, 5), torch.zeros(5)).shape == (0, 5)


def test_the_error_is_within_that_of_a_nearest_plane():
    # |U (x - q)|^2 with |(U (x - q))_i| <= U_ii / 2: at most a quarter of the sum of U_ii^2
    target_MR, seen_MKR, _ = random_rows(40, 12, 90, seed=3)
    whole_MR = round_shaped(target_MR, seen_MKR, torch.zeros(90, dtype=torch.float64))
    hessian_MRR = torch.eye(90, dtype=torch.float64) + seen_MKR.mT @ seen_MKR
    upper_MRR = torch.linalg.cholesky(hessian_MRR, upper=True)
    bound_M = (upper_MRR.diagonal(dim1=-2, dim2=-1) ** 2).sum(-1) / 4
    assert (quadratic(target_MR, seen_MKR, whole_MR) <= bound_M).all()


def test_shaping_lowers_the_error_that_is_seen_in_every_row():
    target_MR, seen_MKR, _ = random_rows(40, 12, 90, seed=4)
    seen_MKR *= 5
    shaped_MR = round_shaped(target_MR, seen_MKR, torch.zeros(90, dtype=torch.float64))
    plain_M = quadratic(target_MR, seen_MKR, target_MR.round())
    assert (quadratic(target_MR, seen_MKR, shaped_MR) < plain_M).all()


def test_a_threshold_trades_error_for_smaller_integers():
    target_MR, seen_MKR, threshold_R = random_rows(200, 12, 90, seed=5)
    threshold_R += 0.1
    with_it_MR = round_shaped(target_MR, seen_MKR, threshold_R)
    without_MR = round_shaped(target_MR, seen_MKR, torch.zeros_like(threshold_R))

    def objective(whole_MR):
        size_M = (2 * threshold_R * whole_MR.abs()).sum(-1)
        return (quadratic(target_MR, seen_MKR, whole_MR) + size_M).mean()

    assert objective(with_it_MR) < objective(without_MR)
    assert with_it_MR.abs().sum() < without_MR.abs().sum()


@given(st.floats(-20, 20), st.floats(0, 3))
def test_shrinking_then_rounding_minimizes_error_and_size(number, threshold):
    def objective(q):
        return (number - q) ** 2 + 2 * threshold * abs(q)

    x, t = (torch.tensor(value, dtype=torch.float64) for value in (number, threshold))
    got = objective(int(shrink(x, t).round()))
    assert got <= min(objective(q) for q in range(-25, 26)) + 1e-9


@pytest.mark.parametrize("rms", [0.02, 0.1, 0.5, 1.0, 3.0, 40.0])
def test_a_slope_is_that_of_the_geometric_distribution_with_this_mean_square(rms):
    # P(q) = (1 - rho) / (1 + rho) rho^|q|: one step further from zero costs -log2 rho bits
    rho = 2.0 ** -float(bit_slopes(torch.tensor([rms]))[0])
    q = np.arange(-4000, 4001)
    p = (1 - rho) / (1 + rho) * rho ** np.abs(q)
    assert p.sum() == pytest.approx(1, rel=1e-6)
    assert (p * q.astype(float) ** 2).sum() == pytest.approx(rms**2 + 1e-4, rel=1e-4)


def test_slopes_fall_with_size_and_are_finite_at_zero():
    slopes = bit_slopes(torch.tensor([0.0, 0.1, 1.0, 10.0, 1e4]))
    assert slopes.isfinite().all()
    assert (slopes.diff() < 0).all()
    assert (slopes > 0).all()


# Rows in, rows out


def centered(logits_MV):
    return logits_MV - logits_MV.mean(-1, keepdim=True)


def test_a_fine_sketch_of_full_rank_gives_the_logits_up_to_a_constant_a_row(world):
    step, rank = 1e-3, world.head_VH.shape[1]
    basis = world.axes.cut(step, rank)
    device = torch.device("cpu")
    logits_MV = world.logits_of(world.held_out_MH)
    sketch_MR = SketchEncoder.of(basis, device).encode(world.held_out_MH, logits_MV)
    rebuilt_MV = SketchDecoder.of(basis, device).rows(sketch_MR)
    # each term q s D is off by float16's rounding of D, and by the step
    size_RV = torch.from_numpy(basis.decode_RV).float().abs()
    error_MV = HALF_STEP * (sketch_MR.float().abs() * step) @ size_RV + step * size_RV.sum(0)
    difference_MV = centered(rebuilt_MV) - centered(logits_MV)
    assert (difference_MV.abs() <= 2 * error_MV.amax(-1, keepdim=True)).all()
    assert difference_MV.abs().mean() < 0.01


@pytest.mark.parametrize("step", [0.3, 0.15, 0.07])
def test_shaped_rounding_is_nearer_than_plain_rounding_at_the_same_step(world, step):
    basis = world.axes.cut(step, None)
    device = torch.device("cpu")
    true_MV = world.logits_of(world.held_out_MH)
    generator = torch.Generator().manual_seed(1)
    student_MV = 0.6 * true_MV + torch.randn(true_MV.shape, generator=generator)
    encoder = SketchEncoder.of(basis, device)
    plain_MR = encoder.coefficients(world.held_out_MH).round()
    plain_MV = SketchDecoder.of(basis, device).rows(plain_MR.to(torch.int16))
    basis = fitted(basis, world.calibration_NH, world.logits_of)
    shaped_MR = SketchEncoder.of(basis, device).encode(world.held_out_MH, true_MV)
    shaped_MV = SketchDecoder.of(basis, device).rows(shaped_MR)

    def error(rebuilt_MV):
        parts = tidal_gradient_error(true_MV, rebuilt_MV, student_MV, temperature=TEMPERATURE)
        return parts.relative().mean()

    assert error(shaped_MV) < error(plain_MV)
    shaped_kl, plain_kl = (kl_at(true_MV, z, TEMPERATURE).mean() for z in (shaped_MV, plain_MV))
    assert shaped_kl < plain_kl


def test_a_smaller_step_is_nearer(world):
    device = torch.device("cpu")
    true_MV = world.logits_of(world.held_out_MH)
    kl = []
    for step in (0.4, 0.2, 0.1, 0.05, 0.02):
        basis = world.axes.cut(step, None)
        sketch_MR = SketchEncoder.of(basis, device).encode(world.held_out_MH, true_MV)
        rows_MV = SketchDecoder.of(basis, device).rows(sketch_MR)
        kl.append(kl_at(true_MV, rows_MV, TEMPERATURE).mean().item())
    assert kl == sorted(kl, reverse=True)
    assert kl[-1] < 0.01 * kl[0]


def encode(world, hidden_MH, *, step=0.1):
    encoder = SketchEncoder.of(world.axes.cut(step, None), torch.device("cpu"))
    return encoder.encode(hidden_MH, world.logits_of(hidden_MH))


def test_equal_rows_give_equal_integers(world):
    row_1H = world.held_out_MH[:1]
    beside_MH = torch.cat([row_1H, world.held_out_MH[1:9], row_1H, row_1H])
    sketch_MR = encode(world, beside_MH)
    assert torch.equal(sketch_MR[0], sketch_MR[-1])
    assert torch.equal(sketch_MR[0], sketch_MR[-2])
    assert torch.equal(encode(world, beside_MH), sketch_MR)


def test_the_batch_leaves_the_integers_alone_but_for_ties_of_float32(world, monkeypatch):
    together_MR = encode(world, world.held_out_MH)
    alone_MR = torch.cat([encode(world, row[None]) for row in world.held_out_MH])
    assert (together_MR != alone_MR).any(-1).float().mean() <= TIED_ROWS
    monkeypatch.setattr(sketch, "_GATHERED", 5 * 128 * together_MR.shape[1])  # five rows at once
    fives_MR = encode(world, world.held_out_MH)
    assert (together_MR != fives_MR).any(-1).float().mean() <= TIED_ROWS


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_hidden_states_of_half_width_are_encoded_as_they_are(world, dtype):
    half_MH = world.held_out_MH.to(dtype)
    assert torch.equal(encode(world, half_MH), encode(world, half_MH.float()))


def test_no_row_gives_no_integers(world):
    sketch_MR = encode(world, world.held_out_MH[:0])
    assert sketch_MR.dtype == torch.int16
    assert sketch_MR.shape == (0, world.axes.cut(0.1, None).rank)


def test_integers_beyond_int16_stop_at_its_end(world):
    sketch_MR = encode(world, 1e6 * world.held_out_MH, step=1e-3)
    assert sketch_MR.min() == -32767
    assert sketch_MR.max() == 32767


def test_a_vocabulary_smaller_than_the_likely_tokens_is_seen_in_full():
    small = make_world(hidden=6, vocab=9, calibration=200, held_out=11)
    assert encode(small, small.held_out_MH).shape == (11, small.axes.cut(0.1, None).rank)


def test_the_static_bias_is_taken_out_worked_by_hand(world):
    # z^ = m - bias / (4 T) + s q D with m = 3, bias = 8, T = 2, s = 0.5, q = (2, -1), D = (1, 4)'
    basis = replace(
        world.axes.cut(0.5, 2),
        decode_RV=np.array([[1], [4]], np.float16),
        base_V=np.array([3], np.float32),
        bias_V=np.array([8], np.float32),
    )
    decoder = SketchDecoder.of(basis, torch.device("cpu"))
    got = decoder.rows(torch.tensor([[2, -1]], dtype=torch.int16))
    assert_close(got, torch.tensor([[3 - 1 + 0.5 * (2 - 4)]]))
