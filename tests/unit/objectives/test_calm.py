import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pipeline.objectives.calm import calm, calm_tidal, reverse_calm

EPS = 1e-7
HALFWAY = partial(calm_tidal, lambda_B=0.5, weight_B=1.0)
ALL = [reverse_calm, calm, HALFWAY]
VALUE_RTOL = 1e-5
GRADIENT_RTOL = {torch.float32: 1e-4, torch.bfloat16: 2**-7}
GRADIENT_ATOL = 1e-6
# float32 rounds 1 - 1e-7 to 1 - 1.19e-7, so log(1 - q) stops at -15.94 instead of -16.12
LARGEST_SLOPE = math.log((1 - EPS) / EPS)


def active(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


def gradient_in_logp(objective: Callable, student: float, teacher: float, temperature: float):
    """d loss / d lp_s of one chunk whose raw probabilities are given."""
    student_logp = torch.tensor([[student]]).log().requires_grad_()
    teacher_logp = torch.tensor([[teacher]]).log()
    objective(student_logp, teacher_logp, active(1, 1), temperature=temperature).total.backward()
    assert student_logp.grad is not None
    return student_logp.grad.item()


def bernoulli(logp: float, temperature: float) -> float:
    return min(max(math.exp(logp / temperature), EPS), 1 - EPS)


def cross_entropy(p: float, q: float) -> float:
    return -(p * math.log(q) + (1 - p) * math.log(1 - q))


def oracle(
    name: str, student_logp: float, teacher_logp: float, temperature: float, lam: float, w: float
) -> tuple[float, float]:
    """One chunk's value and d value / d lp_s, in Python floats, away from the clamp."""
    s, t = bernoulli(student_logp, temperature), bernoulli(teacher_logp, temperature)
    if name == "reverse_calm":
        return cross_entropy(s, t), s / temperature * math.log((1 - t) / t)
    target = t if name == "calm" else (1 - lam) * s + lam * t
    weight = 1.0 if name == "calm" else w
    return (
        weight * cross_entropy(target, s),
        weight * (s - target) / ((1 - s) * temperature),
    )


def test_reverse_calm_of_one_chunk_by_hand():
    # s = 1/2, t = 1/4: -(1/2 log 1/4 + 1/2 log 3/4)
    s, t = torch.tensor([[0.5]]), torch.tensor([[0.25]])
    term = reverse_calm(s.log(), t.log(), active(1, 1), temperature=1.0)
    assert term.total.item() == pytest.approx(-0.5 * (math.log(0.25) + math.log(0.75)))
    assert term.count.item() == 1


def test_calm_of_one_chunk_by_hand():
    # t = 1/4, s = 1/2: -(1/4 log 1/2 + 3/4 log 1/2) = log 2
    s, t = torch.tensor([[0.5]]), torch.tensor([[0.25]])
    term = calm(s.log(), t.log(), active(1, 1), temperature=1.0)
    assert term.total.item() == pytest.approx(math.log(2))


def test_calm_tidal_of_one_chunk_by_hand():
    # s = 1/5, t = 3/5, lambda = 1/2: target 2/5, times w = 3
    s, t = torch.tensor([[0.2]]), torch.tensor([[0.6]])
    term = calm_tidal(s.log(), t.log(), active(1, 1), temperature=1.0, lambda_B=0.5, weight_B=3.0)
    assert term.total.item() == pytest.approx(-3 * (0.4 * math.log(0.2) + 0.6 * math.log(0.8)))


def test_a_temperature_of_two_takes_the_square_root_of_a_probability():
    # s = 1/4 and t = 1/16 become 1/2 and 1/4
    s, t = torch.tensor([[0.25]]), torch.tensor([[1 / 16]])
    term = reverse_calm(s.log(), t.log(), active(1, 1), temperature=2)
    assert term.total.item() == pytest.approx(-0.5 * (math.log(0.25) + math.log(0.75)))


def test_gradient_in_the_student_probability_depends_on_the_teacher_alone():
    t = torch.tensor([[0.25, 0.25, 0.25]])
    s = torch.tensor([[0.1, 0.5, 0.9]], requires_grad=True)
    reverse_calm(s.log(), t.log(), active(1, 3), temperature=1.0).total.backward()
    assert_close(s.grad, ((1 - t) / t).log(), atol=1e-5, rtol=0)


def test_gradient_in_the_student_probability_is_bounded_by_the_teachers_clamp():
    t = torch.tensor([[1.0, 1 - 1e-9, 0.5, 1e-9, 0.0]])
    s = torch.full((1, 5), 0.3, requires_grad=True)
    reverse_calm(s.log(), t.log(), active(1, 5), temperature=1.0).total.backward()
    assert s.grad is not None
    assert s.grad.abs().max().item() <= LARGEST_SLOPE + 1e-4
    assert s.grad[0, 4].item() == pytest.approx(LARGEST_SLOPE, abs=1e-4)
    assert -LARGEST_SLOPE <= s.grad[0, 0].item() < -15.9


def test_a_chunk_the_student_clamps_gets_no_gradient_however_sure_the_teacher_is():
    # lp / T = -17 is below log 1e-7 = -16.1, and -15 above it
    for logp, is_clamped in [(-17.0, True), (-15.0, False), (-math.inf, True)]:
        student_logp = torch.tensor([[2 * logp]], requires_grad=True)
        teacher_logp = torch.tensor([[-1e-3]])
        reverse_calm(student_logp, teacher_logp, active(1, 1), temperature=2.0).total.backward()
        assert student_logp.grad is not None
        assert (student_logp.grad.item() == 0.0) is is_clamped


def test_the_gradient_in_the_log_likelihood_vanishes_with_the_students_mass():
    # s log((1 - t) / t) / T
    for s in (0.5, 1e-2, 1e-4):
        expected = s * math.log(0.1 / 0.9)
        assert gradient_in_logp(reverse_calm, s, 0.9, 1.0) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("s", [1e-3, 0.5, 0.99])
def test_an_undecided_teacher_gives_no_gradient(s: float):
    # lp / T = log 1/2
    assert gradient_in_logp(reverse_calm, s, 0.5, 1.0) == pytest.approx(0.0, abs=1e-6)
    assert gradient_in_logp(reverse_calm, s, 0.25, 2.0) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_in_raw_probability_the_threshold_is_one_half_to_the_power_of_the_temperature(
    temperature: float,
):
    threshold = 0.5**temperature
    assert gradient_in_logp(reverse_calm, 0.3, 1.01 * threshold, temperature) < 0  # loss falls as
    assert gradient_in_logp(reverse_calm, 0.3, 0.99 * threshold, temperature) > 0  # lp_s rises


def test_reverse_calm_is_linear_in_the_student_probability():
    values = [
        reverse_calm(
            torch.tensor([[s]]).log(), torch.tensor([[0.9]]).log(), active(1, 1), temperature=1.0
        ).total.item()
        for s in (0.2, 0.5, 0.8)
    ]
    assert values[1] == pytest.approx((values[0] + values[2]) / 2, rel=VALUE_RTOL)


def test_calm_is_least_where_the_student_equals_the_teacher():
    assert gradient_in_logp(calm, 0.3, 0.3, 2.0) == pytest.approx(0.0, abs=1e-6)
    assert gradient_in_logp(calm, 0.2, 0.3, 2.0) < 0
    assert gradient_in_logp(calm, 0.4, 0.3, 2.0) > 0


def test_calm_tidal_at_lambda_one_is_calm_in_value_and_gradient():
    whole = partial(calm_tidal, lambda_B=1.0, weight_B=1.0)
    for s, t in [(0.2, 0.6), (0.9, 1e-3)]:
        pair = torch.tensor([[s]]).log(), torch.tensor([[t]]).log(), active(1, 1)
        assert torch.equal(whole(*pair, temperature=2.0).total, calm(*pair, temperature=2.0).total)
        assert gradient_in_logp(whole, s, t, 2.0) == gradient_in_logp(calm, s, t, 2.0)


def test_calm_tidal_at_lambda_zero_gives_no_gradient():
    none = partial(calm_tidal, lambda_B=0.0, weight_B=1.0)
    for s in (0.01, 0.5, 0.9):
        assert gradient_in_logp(none, s, 0.7, 2.0) == pytest.approx(0.0, abs=1e-6)


def test_no_gradient_passes_through_the_target_of_calm_tidal_to_either_model():
    # with the target held constant: (s - target) / (1 - s) for T = 1
    student_logp = torch.tensor([[0.2]]).log().requires_grad_()
    teacher_logp = torch.tensor([[0.6]]).log().requires_grad_()
    HALFWAY(student_logp, teacher_logp, active(1, 1), temperature=1.0).total.backward()
    assert_close(student_logp.grad, torch.tensor([[(0.2 - 0.4) / 0.8]]))
    assert teacher_logp.grad is None or not teacher_logp.grad.any()


def test_calm_tidal_has_a_lambda_and_a_weight_for_each_row():
    generator = torch.Generator().manual_seed(0)
    student_logp, teacher_logp = -torch.rand(2, 3, 4, generator=generator)
    lambdas, weights = torch.tensor([0.0, 0.4, 1.0]), torch.tensor([0.2, 1.0, 3.0])
    whole = calm_tidal(
        student_logp,
        teacher_logp,
        active(3, 4),
        temperature=2.0,
        lambda_B=lambdas,
        weight_B=weights,
    )
    rows = [
        calm_tidal(
            student_logp[i : i + 1],
            teacher_logp[i : i + 1],
            active(1, 4),
            temperature=2.0,
            lambda_B=lambdas[i],
            weight_B=weights[i].item(),
        )
        for i in range(3)
    ]
    assert whole.count.item() == 12
    assert_close(whole.total, (rows[0] + rows[1] + rows[2]).total)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 13), (3, 507)])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("name", ["reverse_calm", "calm", "calm_tidal"])
def test_value_and_gradient_equal_the_oracle(
    name: str, temperature: float, shape: tuple[int, int], dtype: torch.dtype
):
    generator = torch.Generator().manual_seed(1)
    student_BC = (-0.05 - 6 * torch.rand(shape, generator=generator)).to(dtype).requires_grad_()
    teacher_BC = (-0.05 - 6 * torch.rand(shape, generator=generator)).to(dtype)
    is_active_BC = torch.rand(shape, generator=generator) < 0.7
    lambda_B, weight_B = torch.linspace(0.1, 0.9, shape[0]), torch.linspace(0.5, 2, shape[0])
    objective: Callable = {
        "reverse_calm": reverse_calm,
        "calm": calm,
        "calm_tidal": partial(calm_tidal, lambda_B=lambda_B, weight_B=weight_B),
    }[name]
    term = objective(student_BC, teacher_BC, is_active_BC, temperature=temperature)
    term.total.backward()

    total, gradient_BC = 0.0, torch.zeros(shape)
    for b, c in is_active_BC.nonzero().tolist():
        value, gradient_BC[b, c] = oracle(
            name,
            student_BC[b, c].item(),
            teacher_BC[b, c].item(),
            temperature,
            lambda_B[b].item(),
            weight_B[b].item(),
        )
        total += value
    assert (term.total.dtype, term.count.item()) == (torch.float32, is_active_BC.sum().item())
    assert term.total.item() == pytest.approx(total, rel=VALUE_RTOL)
    assert student_BC.grad is not None
    assert_close(
        student_BC.grad.float(), gradient_BC, rtol=GRADIENT_RTOL[dtype], atol=GRADIENT_ATOL
    )


@pytest.mark.parametrize("objective", [reverse_calm, calm])
def test_gradient_equals_finite_differences(objective: Callable):
    generator = torch.Generator().manual_seed(2)
    student_BC, teacher_BC = -5 * torch.rand(2, 3, 4, dtype=torch.float64, generator=generator)
    student_BC.requires_grad_()
    is_active_BC = torch.rand(3, 4, generator=generator) < 0.5
    assert torch.autograd.gradcheck(
        lambda lp: objective(lp, teacher_BC, is_active_BC, temperature=2.0).mean(), (student_BC,)
    )


@pytest.mark.parametrize("objective", ALL)
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_an_inactive_chunk_is_unseen_whatever_stands_in_it(objective: Callable, junk: float):
    clean = torch.tensor([[-1.0, -2.0]])
    is_active = torch.tensor([[True, False]])
    student = torch.tensor([[-1.0, junk]], requires_grad=True)
    term = objective(student, torch.tensor([[-0.5, junk]]), is_active, temperature=2.0)
    alone = objective(clean, torch.tensor([[-0.5, -3.0]]), is_active, temperature=2.0)
    term.mean().backward()
    assert_close((term.total, term.count), (alone.total, alone.count), atol=0, rtol=0)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad[0, 1].item() == 0.0


@pytest.mark.parametrize("objective", ALL)
@pytest.mark.parametrize("shape", [(1, 0), (0, 5), (0, 0)])
def test_no_chunks_are_a_differentiable_zero(objective: Callable, shape: tuple[int, int]):
    student = torch.zeros(shape, requires_grad=True)
    term = objective(student, torch.zeros(shape), active(*shape), temperature=2.0)
    term.mean().backward()
    assert (term.mean().item(), term.count.item()) == (0.0, 0)


@pytest.mark.parametrize("objective", ALL)
@pytest.mark.parametrize("student", [-math.inf, -1e4, -1.0, 0.0])
@pytest.mark.parametrize("teacher", [-math.inf, -1e4, -1.0, 0.0])
def test_the_clamp_bounds_value_and_gradient(objective: Callable, student: float, teacher: float):
    student_logp = torch.tensor([[student]], requires_grad=True)
    term = objective(student_logp, torch.tensor([[teacher]]), active(1, 1), temperature=2.0)
    term.total.backward()
    assert 0 <= term.total.item() <= LARGEST_SLOPE + 1e-4
    assert student_logp.grad is not None
    assert student_logp.grad.isfinite().all()


@pytest.mark.parametrize("objective", ALL)
def test_a_temperature_of_zero_is_refused(objective: Callable):
    with pytest.raises(ValueError, match="temperature"):
        objective(torch.zeros(1, 1), torch.zeros(1, 1), active(1, 1), temperature=0.0)
