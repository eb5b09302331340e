"""How far rebuilt rows are from the true ones, in KL and in TIDAL's gradient.

Axes: M position, V vocabulary.
"""

import math

import pytest
import torch
from torch.testing import assert_close

from pipeline.objectives import tidal_kl
from pipeline.targets.measure import TEACHER_SHARE, GradientError, kl_at, tidal_gradient_error


def rows(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_a_divergence_worked_by_hand():
    # KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 log 2 + 1/2 log (2/3); at T = 2 of the doubled logits.
    true_MV = torch.tensor([[1.0, 1.0]]).log()
    rebuilt_MV = torch.tensor([[1.0, 3.0]]).log()
    want_M = torch.tensor([0.5 * math.log(2) + 0.5 * math.log(2 / 3)])
    assert_close(kl_at(true_MV, rebuilt_MV, 1.0), want_M)
    assert_close(kl_at(2 * true_MV, 2 * rebuilt_MV, 2.0), want_M)


def test_a_gradient_and_its_error_worked_by_hand():
    # s = (0, 0) and z = (log 9, 0), half of each at T = 1: r = softmax(log 3, 0) = (3/4, 1/4), so
    # g = (1/2, 1/2) - r = (-1/4, 1/4). z^ = (0, 0) gives r^ = (1/2, 1/2): all of g is lost.
    student_MV = torch.zeros(1, 2)
    true_MV = torch.tensor([[math.log(9), 0.0]])
    error = tidal_gradient_error(true_MV, torch.zeros(1, 2), student_MV, temperature=1.0, share=0.5)
    quarter_M = torch.tensor([math.sqrt(2) / 4])
    assert_close(error.gradient_M, quarter_M)
    assert_close(error.error_M, quarter_M)
    assert_close(error.relative(), torch.ones(1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_gradient_is_that_of_the_objective_itself(temperature):
    """g and g^ are T^-1 times the derivative of TIDAL in the student's logits, by autograd."""
    true_MV, rebuilt_MV, student_MV = (rows(seed, 6, 11) for seed in range(3))

    def gradient(teacher_MV):
        leaf_MV = student_MV.clone().requires_grad_()
        term = tidal_kl(
            leaf_MV, teacher_MV, temperature=temperature, lambda_M=TEACHER_SHARE, weight_M=1.0
        )
        (found_MV,) = torch.autograd.grad(term.total, leaf_MV)
        return found_MV / temperature

    error = tidal_gradient_error(true_MV, rebuilt_MV, student_MV, temperature=temperature)
    true_gradient_MV = gradient(true_MV)
    assert_close(error.gradient_M, true_gradient_MV.norm(dim=-1))
    assert_close(error.error_M, (gradient(rebuilt_MV) - true_gradient_MV).norm(dim=-1))


def test_equal_rows_have_no_error_and_a_constant_is_none():
    true_MV, student_MV = rows(0, 5, 9), rows(1, 5, 9)
    for rebuilt_MV in (true_MV, true_MV + 7):
        zero_M = torch.zeros(5, dtype=torch.float64)
        assert_close(kl_at(true_MV, rebuilt_MV, 2.0), zero_M, atol=1e-12, rtol=0)
        error = tidal_gradient_error(true_MV, rebuilt_MV, student_MV, temperature=2.0)
        assert_close(error.relative(), torch.zeros_like(error.relative()), atol=1e-12, rtol=0)


def test_the_divergence_is_that_of_a_float64_oracle_for_sharp_float32_rows():
    true_MV, rebuilt_MV = 8 * rows(2, 4, 50), 8 * rows(3, 4, 50)
    p_MV = true_MV.softmax(-1)
    want_M = (p_MV * (true_MV.log_softmax(-1) - rebuilt_MV.log_softmax(-1))).sum(-1)
    got_M = kl_at(true_MV.float(), rebuilt_MV.float(), 1.0)
    assert_close(got_M.double(), want_M, atol=0, rtol=1e-5)
    assert kl_at(true_MV.float()[:0], rebuilt_MV.float()[:0], 1.0).shape == (0,)


def test_the_ratio_leaves_out_rows_with_less_than_a_tenth_of_the_mean_gradient():
    # the mean is 1.01, a tenth of it 0.101: the second row is left out, the third is not
    gradient_M = torch.tensor([2.878, 0.05, 0.102])
    assert gradient_M.mean().item() == pytest.approx(1.01)
    error = GradientError(gradient_M, torch.tensor([1.439, 5.0, 0.051]))
    assert_close(error.relative(), torch.tensor([0.5, 0.5]))


def test_parts_are_joined_before_the_mean_is_taken():
    parts = [
        GradientError(torch.tensor([0.05]), torch.tensor([0.05])),
        GradientError(torch.tensor([2.0]), torch.tensor([1.0])),
    ]
    assert_close(GradientError.joined(parts).relative(), torch.tensor([0.5]))
