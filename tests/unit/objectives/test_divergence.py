import math
from collections.abc import Callable

import pytest
import torch
from torch.testing import assert_close

from pipeline.objectives.divergence import forward_kl, reverse_kl

Rows = list[list[float]]
KLS = [forward_kl, reverse_kl]
VALUE_RTOL = 1e-5
GRADIENT_RTOL = {torch.float32: 1e-4, torch.bfloat16: 2**-7}
GRADIENT_ATOL = 2e-6


def log_softmax(row: list[float], temperature: float) -> list[float]:
    top = max(row)
    norm = math.log(math.fsum(math.exp((z - top) / temperature) for z in row))
    return [(z - top) / temperature - norm for z in row]


def oracle_forward(student: Rows, teacher: Rows, temperature: float) -> tuple[float, Rows]:
    """Total and gradient, T (p_s - p_t), in Python floats."""
    total, gradient = 0.0, []
    for z_s, z_t in zip(student, teacher, strict=True):
        s, t = log_softmax(z_s, temperature), log_softmax(z_t, temperature)
        for log_s, log_t in zip(s, t, strict=True):
            if log_t > -math.inf:
                total += temperature**2 * math.exp(log_t) * (log_t - log_s)
        gradient.append(
            [temperature * (math.exp(a) - math.exp(b)) for a, b in zip(s, t, strict=True)]
        )
    return total, gradient


def oracle_reverse(student: Rows, teacher: Rows, temperature: float) -> tuple[float, Rows]:
    """Total and gradient, T p_s (log p_s / p_t - KL), in Python floats."""
    total, gradient = 0.0, []
    for z_s, z_t in zip(student, teacher, strict=True):
        s, t = log_softmax(z_s, temperature), log_softmax(z_t, temperature)
        kl = math.fsum(math.exp(a) * (a - b) for a, b in zip(s, t, strict=True))
        total += temperature**2 * kl
        gradient.append(
            [temperature * math.exp(a) * (a - b - kl) for a, b in zip(s, t, strict=True)]
        )
    return total, gradient


def test_forward_kl_of_two_coins_by_hand():
    # KL((3/4, 1/4) || (1/2, 1/2)) = 3/4 log 3/2 + 1/4 log 1/2
    term = forward_kl(
        torch.tensor([[1.0, 1.0]]).log(), torch.tensor([[3.0, 1.0]]).log(), temperature=1.0
    )
    assert term.total.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert term.count.item() == 1


def test_reverse_kl_of_two_coins_by_hand():
    # KL((1/2, 1/2) || (3/4, 1/4)) = 1/2 log 2/3 + 1/2 log 2
    term = reverse_kl(
        torch.tensor([[1.0, 1.0]]).log(), torch.tensor([[3.0, 1.0]]).log(), temperature=1.0
    )
    assert term.total.item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2))


def test_a_temperature_of_two_softens_the_odds_and_multiplies_by_four():
    # odds of 9 to 1 become 3 to 1
    term = forward_kl(torch.zeros(1, 2), torch.tensor([[9.0, 1.0]]).log(), temperature=2)
    by_hand = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert term.total.item() == pytest.approx(by_hand, rel=VALUE_RTOL)


def test_forward_is_reverse_with_the_models_exchanged():
    generator = torch.Generator().manual_seed(0)
    a_MV, b_MV = torch.randn(2, 7, 5, generator=generator)
    forward, reverse = (
        forward_kl(a_MV, b_MV, temperature=2.0),
        reverse_kl(b_MV, a_MV, temperature=2.0),
    )
    assert_close(forward.total, reverse.total, atol=0, rtol=0)


def test_the_square_of_the_temperature_keeps_the_gradient_at_high_temperature():
    # T (p_s - p_t) tends to the centred logit gap over V, which no T scales away
    generator = torch.Generator().manual_seed(1)
    student_MV, teacher_MV = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator)
    student_MV.requires_grad_()
    forward_kl(student_MV, teacher_MV, temperature=1e4).total.backward()
    gap_MV = (student_MV - teacher_MV).detach()
    expected_MV = (gap_MV - gap_MV.mean(-1, keepdim=True)) / 5
    assert_close(student_MV.grad, expected_MV, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kl", KLS)
def test_equal_models_have_no_divergence_and_no_gradient(kl: Callable):
    logits_MV = torch.tensor([[2.0, -1.0, 0.5]], requires_grad=True)
    term = kl(logits_MV, logits_MV.detach() + 3, temperature=2.0)
    term.total.backward()
    assert_close(term.total, torch.tensor(0.0), atol=1e-6, rtol=0)
    assert_close(logits_MV.grad, torch.zeros(1, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 123), (123, 507)])
@pytest.mark.parametrize(
    ("kl", "oracle"), [(forward_kl, oracle_forward), (reverse_kl, oracle_reverse)]
)
def test_value_and_gradient_equal_the_oracle(
    kl: Callable, oracle: Callable, shape: tuple[int, int], dtype: torch.dtype
):
    generator = torch.Generator().manual_seed(2)
    student_MV = (3 * torch.randn(shape, generator=generator)).to(dtype).requires_grad_()
    teacher_MV = (3 * torch.randn(shape, generator=generator)).to(dtype)
    term = kl(student_MV, teacher_MV, temperature=2.0)
    term.total.backward()
    total, gradient = oracle(student_MV.tolist(), teacher_MV.tolist(), 2.0)
    assert (term.total.dtype, term.count.item()) == (torch.float32, shape[0])
    assert term.total.item() == pytest.approx(total, rel=VALUE_RTOL, abs=1e-6)
    assert student_MV.grad is not None
    assert_close(
        student_MV.grad.float(),
        torch.tensor(gradient),
        rtol=GRADIENT_RTOL[dtype],
        atol=GRADIENT_ATOL,
    )


@pytest.mark.parametrize("kl", KLS)
def test_gradient_equals_finite_differences(kl: Callable):
    generator = torch.Generator().manual_seed(3)
    student_MV, teacher_MV = torch.randn(2, 3, 7, dtype=torch.float64, generator=generator)
    student_MV.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: kl(z, teacher_MV, temperature=1.5).mean(), (student_MV,)
    )


@pytest.mark.parametrize("kl", KLS)
def test_no_positions_are_a_differentiable_zero(kl: Callable):
    student_MV = torch.zeros(0, 5, requires_grad=True)
    term = kl(student_MV, torch.zeros(0, 5), temperature=2.0)
    term.mean().backward()
    assert (term.mean().item(), term.count.item()) == (0.0, 0)


@pytest.mark.parametrize("kl", KLS)
def test_logits_of_ten_thousand_stay_finite(kl: Callable):
    # each model is sure of another token: the divergence is the logit gap, 2e4 (T = 1)
    student_MV = torch.tensor([[1e4, -1e4]], requires_grad=True)
    term = kl(student_MV, torch.tensor([[-1e4, 1e4]]), temperature=1.0)
    term.total.backward()
    assert term.total.item() == pytest.approx(2e4)
    assert student_MV.grad is not None
    assert student_MV.grad.isfinite().all()


def test_forward_kl_over_a_truncated_teacher_equals_the_oracle():
    generator = torch.Generator().manual_seed(4)
    student_MV, teacher_MV = torch.randn(2, 7, 13, generator=generator)
    teacher_MV[:, 5:] = -math.inf
    student_MV.requires_grad_()
    teacher_MV.requires_grad_()
    term = forward_kl(student_MV, teacher_MV, temperature=2.0)
    term.total.backward()
    total, gradient = oracle_forward(student_MV.tolist(), teacher_MV.tolist(), 2.0)
    assert term.total.item() == pytest.approx(total, rel=VALUE_RTOL)
    assert_close(student_MV.grad, torch.tensor(gradient), rtol=1e-4, atol=GRADIENT_ATOL)
    assert teacher_MV.grad is not None
    assert teacher_MV.grad.isfinite().all()


def test_forward_kl_to_a_teacher_of_one_token_is_its_negative_log_likelihood():
    student_MV = torch.tensor([[1.0, 2.0, 3.0]])
    teacher_MV = torch.tensor([[-math.inf, 0.0, -math.inf]])
    term = forward_kl(student_MV, teacher_MV, temperature=1.0)
    assert_close(term.total, -student_MV.log_softmax(-1)[0, 1])


def test_reverse_kl_to_a_truncated_teacher_is_infinite():
    term = reverse_kl(torch.zeros(1, 2), torch.tensor([[0.0, -math.inf]]), temperature=1.0)
    assert term.total.item() == math.inf


@pytest.mark.parametrize("kl", KLS)
def test_a_temperature_of_zero_is_refused(kl: Callable):
    with pytest.raises(ValueError, match="temperature"):
        kl(torch.zeros(1, 2), torch.zeros(1, 2), temperature=0.0)
