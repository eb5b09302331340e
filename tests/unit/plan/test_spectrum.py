"""The estimate of a sketch's bytes: what it must be, wherever it is an extrapolation."""

import math

import pytest

from pipeline.plan.spectrum import SMOL, Anchor, estimate_sketch


def test_the_estimate_goes_through_its_anchor():
    for anchor in (SMOL, Anchor(hidden_size=64, step=0.2, num_bytes=9.0, grad_error=0.3)):
        for asks, amount in (("step", anchor.step), ("grad_error", anchor.grad_error)):
            estimate = estimate_sketch(
                anchor.hidden_size, asks=asks, amount=amount, rank=None, anchor=anchor
            )
            assert estimate.num_bytes == pytest.approx(anchor.num_bytes, rel=1e-6)


def test_half_the_step_costs_a_bit_a_dimension_in_the_end():
    # far below every coefficient, a rounded Gaussian has 1 bit more at half the step
    fine = [estimate_sketch(80, asks="step", amount=s, rank=None).num_bytes for s in (2e-5, 1e-5)]
    assert fine[1] - fine[0] == pytest.approx(80 / 8, rel=1e-3)


def test_bytes_fall_with_the_step_and_grow_with_the_teacher():
    steps = [0.01, 0.05, 0.1, 0.3, 1.0, 30.0]
    sizes = [estimate_sketch(512, asks="step", amount=s, rank=None).num_bytes for s in steps]
    assert sizes == sorted(sizes, reverse=True)
    assert 0 <= sizes[-1] < 1
    wide = [
        estimate_sketch(d, asks="step", amount=0.1, rank=None).num_bytes for d in (256, 1024, 4096)
    ]
    assert wide == sorted(wide)
    growth = math.log(wide[2] / wide[1]) / math.log(4)
    assert 0.7 < growth < 1


def test_bytes_that_are_asked_for_are_what_it_costs():
    assert estimate_sketch(576, asks="bytes", amount=60.0, rank=None).num_bytes == 60.0


def test_the_dimensions_are_those_that_the_calibration_would_keep():
    assert estimate_sketch(576, asks="step", amount=0.05, rank=None).rank == 576
    assert estimate_sketch(576, asks="step", amount=50.0, rank=None).rank == 384  # two thirds
    assert estimate_sketch(576, asks="step", amount=0.05, rank=100).rank == 100
    assert estimate_sketch(576, asks="step", amount=0.05, rank=9999).rank == 576
