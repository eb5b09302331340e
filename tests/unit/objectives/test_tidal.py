import math

import pytest
import torch
from torch.testing import assert_close

from pipeline.objectives.divergence import forward_kl
from pipeline.objectives.tidal import midrange_weight, tidal_kl, tidal_lambda

Rows = list[list[float]]
VALUE_RTOL = 1e-5
VALUE_ATOL = 1e-6
GRADIENT_RTOL = {torch.float32: 1e-4, torch.bfloat16: 2**-7}
GRADIENT_ATOL = 2e-6


def log_softmax(row: list[float]) -> list[float]:
    norm = max(row) + math.log(math.fsum(math.exp(z - max(row)) for z in row))
    return [z - norm for z in row]


def oracle(
    student: Rows, teacher: Rows, temperature: float, lambdas: list[float], weights: list[float]
) -> tuple[float, Rows]:
    """Total and gradient, T w (p_s - r), in Python floats."""
    total, gradient = 0.0, []
    for z_s, z_t, lam, weight in zip(student, teacher, lambdas, weights, strict=True):
        log_s = log_softmax([a / temperature for a in z_s])
        mixed = [
            ((1 - lam) * a + (lam * b if lam else 0.0)) / temperature
            for a, b in zip(z_s, z_t, strict=True)
        ]
        log_r = log_softmax(mixed)
        pairs = list(zip(log_r, log_s, strict=True))
        total += (
            weight
            * temperature**2
            * math.fsum(math.exp(r) * (r - s) for r, s in pairs if r > -math.inf)
        )
        gradient.append([temperature * weight * (math.exp(s) - math.exp(r)) for r, s in pairs])
    return total, gradient


def random_logits(num_rows: int, num_tokens: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(num_rows + num_tokens)
    return (3 * torch.randn(2, num_rows, num_tokens, generator=generator)).to(dtype)


# lambda


def test_lambda_grows_from_a_tenth_to_nine_tenths_on_clean_text():
    assert tidal_lambda(0.0, 0.0) == pytest.approx(0.1)
    assert tidal_lambda(0.5, 0.0) == pytest.approx(0.5)
    assert tidal_lambda(1.0, 0.0) == pytest.approx(0.9)


def test_lambda_a_quarter_of_the_way_by_hand():
    # cosine: (1 - cos(pi/4)) / 2 = 0.146447, so 0.1 + 0.8 * 0.146447 = 0.217157; linear: 0.3
    assert tidal_lambda(0.25, 0.0) == pytest.approx(0.217157, abs=1e-6)
    assert tidal_lambda(0.25, 0.0, growth="linear") == pytest.approx(0.3)


def test_lambda_falls_with_noise_as_one_minus_t():
    assert tidal_lambda(1.0, 0.25) == pytest.approx(0.9 * 0.75)
    assert tidal_lambda(0.3, 1.0) == 0.0


def test_the_training_axis_alone_ignores_noise():
    assert tidal_lambda(0.5, 0.9, axes="training") == pytest.approx(0.5)


def test_the_timestep_axis_alone_ignores_progress():
    for progress in (0.0, 0.5, 1.0):
        assert tidal_lambda(progress, 0.25, axes="timestep") == pytest.approx(0.9 * 0.75)


def test_init_and_max_are_the_endpoints():
    assert tidal_lambda(0, 0, init=0.2, max=0.6) == pytest.approx(0.2)
    assert tidal_lambda(1, 0, init=0.2, max=0.6) == pytest.approx(0.6)


@pytest.mark.parametrize("axes", ["both", "training", "timestep"])
@pytest.mark.parametrize("growth", ["cosine", "linear"])
def test_lambda_of_tensors_is_the_tensor_of_lambdas(growth: str, axes: str):
    times, progresses = [0.001, 0.3, 0.999], [0.0, 0.4, 1.0]
    options = {"growth": growth, "axes": axes}
    by_time = [tidal_lambda(0.4, t, **options) for t in times]
    by_progress = [tidal_lambda(p, 0.3, **options) for p in progresses]
    assert all(type(value) is float for value in by_time + by_progress)
    assert_close(tidal_lambda(0.4, torch.tensor(times), **options), torch.tensor(by_time))
    assert_close(tidal_lambda(torch.tensor(progresses), 0.3, **options), torch.tensor(by_progress))
    both = tidal_lambda(torch.tensor(0.4), torch.tensor(times), **options)
    assert_close(both, torch.tensor(by_time))


def test_a_growth_or_axis_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="growth: expected 'cosine' or 'linear', got 'sine'"):
        tidal_lambda(0.5, 0.5, growth="sine")
    with pytest.raises(ValueError, match="axes: expected 'both', 'training' or 'timestep', got ''"):
        tidal_lambda(0.5, 0.5, axes="")


# the timestep weight


def test_midrange_weight_by_hand():
    # one width off the center: exp(-1/2); at t = 0, exp(-(0.5/0.15)^2 / 2) = exp(-5.5556)
    assert midrange_weight(0.5) == 1.0
    assert midrange_weight(0.65) == pytest.approx(math.exp(-0.5))
    assert midrange_weight(0.35) == pytest.approx(math.exp(-0.5))
    assert midrange_weight(0.0) == pytest.approx(math.exp(-50 / 9))
    assert midrange_weight(0.9, center=0.7, width=0.2) == pytest.approx(math.exp(-0.5))


def test_midrange_weight_of_a_tensor_is_the_tensor_of_weights():
    times = [0.001, 0.3, 0.5, 0.999]
    weights = [midrange_weight(t) for t in times]
    assert all(type(weight) is float for weight in weights)
    assert_close(midrange_weight(torch.tensor(times)), torch.tensor(weights))


def test_a_width_of_zero_is_refused():
    with pytest.raises(ValueError, match="width: expected a positive number, got 0"):
        midrange_weight(0.5, width=0.0)


# the loss


def test_tidal_kl_halfway_between_two_coins_by_hand():
    # logits (0, 0) and (log 9, 0) meet at (log 3, 0): r = (3/4, 1/4), against (1/2, 1/2)
    term = tidal_kl(
        torch.zeros(1, 2),
        torch.tensor([[9.0, 1.0]]).log(),
        temperature=1.0,
        lambda_M=0.5,
        weight_M=2.0,
    )
    by_hand = 2 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert term.total.item() == pytest.approx(by_hand, rel=VALUE_RTOL)


def test_at_lambda_zero_the_target_is_the_student_and_nothing_is_learnt():
    student_MV, teacher_MV = random_logits(7, 123)
    student_MV.requires_grad_()
    term = tidal_kl(student_MV, teacher_MV, temperature=2.0, lambda_M=0.0, weight_M=1.0)
    term.total.backward()
    assert term.total.item() == 0.0
    assert_close(student_MV.grad, torch.zeros(7, 123), atol=1e-7, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_at_lambda_one_it_is_exactly_forward_kl(temperature: float):
    student_MV, teacher_MV = random_logits(7, 123)
    a_MV, b_MV = student_MV.clone().requires_grad_(), student_MV.clone().requires_grad_()
    tidal = tidal_kl(a_MV, teacher_MV, temperature=temperature, lambda_M=1.0, weight_M=1.0)
    forward = forward_kl(b_MV, teacher_MV, temperature=temperature)
    tidal.total.backward()
    forward.total.backward()
    assert torch.equal(tidal.total, forward.total)
    assert torch.equal(tidal.count, forward.count)
    assert a_MV.grad is not None
    assert b_MV.grad is not None
    assert torch.equal(a_MV.grad, b_MV.grad)


def test_no_gradient_passes_through_the_target_to_either_model():
    # with r held constant the gradient is T w (p_s - r): that of KL to the constant r itself
    student_MV, teacher_MV = random_logits(7, 13)
    student_MV.requires_grad_()
    teacher_MV.requires_grad_()
    tidal_kl(student_MV, teacher_MV, temperature=2.0, lambda_M=0.3, weight_M=1.0).total.backward()
    p_MV = (student_MV.detach() / 2).softmax(-1)
    r_MV = ((0.7 * student_MV.detach() + 0.3 * teacher_MV.detach()) / 2).softmax(-1)
    assert_close(student_MV.grad, 2 * (p_MV - r_MV), rtol=1e-4, atol=GRADIENT_ATOL)
    assert teacher_MV.grad is None


def test_the_mean_is_over_positions_and_not_over_weights():
    student_MV, teacher_MV = random_logits(4, 5)
    kwargs = {"temperature": 2.0, "lambda_M": 0.5}
    plain = tidal_kl(student_MV, teacher_MV, weight_M=1.0, **kwargs)
    tenth = tidal_kl(student_MV, teacher_MV, weight_M=torch.full((4,), 0.1), **kwargs)
    assert tenth.count.item() == 4
    assert_close(tenth.mean(), 0.1 * plain.mean())


def test_each_row_has_its_own_lambda_and_weight():
    student_MV, teacher_MV = random_logits(3, 5)
    lambdas, weights = [0.0, 0.4, 1.0], [0.2, 1.0, 3.0]
    whole = tidal_kl(
        student_MV,
        teacher_MV,
        temperature=2.0,
        lambda_M=torch.tensor(lambdas),
        weight_M=torch.tensor(weights),
    )
    parts = [
        tidal_kl(
            student_MV[i : i + 1],
            teacher_MV[i : i + 1],
            temperature=2.0,
            lambda_M=lambdas[i],
            weight_M=torch.tensor(weights[i]),
        )
        for i in range(3)
    ]
    assert_close(whole.total, (parts[0] + parts[1] + parts[2]).total)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 123), (123, 507)])
def test_value_and_gradient_equal_the_oracle(shape: tuple[int, int], dtype: torch.dtype):
    student_MV, teacher_MV = random_logits(*shape, dtype)
    student_MV.requires_grad_()
    lambda_M, weight_M = torch.linspace(0, 1, shape[0]), torch.linspace(0.1, 2, shape[0])
    term = tidal_kl(student_MV, teacher_MV, temperature=2.0, lambda_M=lambda_M, weight_M=weight_M)
    term.total.backward()
    total, gradient = oracle(
        student_MV.tolist(), teacher_MV.tolist(), 2.0, lambda_M.tolist(), weight_M.tolist()
    )
    assert (term.total.dtype, term.count.item()) == (torch.float32, shape[0])
    assert term.total.item() == pytest.approx(total, rel=VALUE_RTOL, abs=VALUE_ATOL)
    assert student_MV.grad is not None
    assert_close(
        student_MV.grad.float(),
        torch.tensor(gradient),
        rtol=GRADIENT_RTOL[dtype],
        atol=GRADIENT_ATOL,
    )


def test_float64_inputs_stay_float64_whatever_lambda_is():
    student_MV, teacher_MV = random_logits(3, 5, torch.float64)
    for lambda_M in (0.5, torch.tensor(0.5), torch.full((3,), 0.5)):
        term = tidal_kl(student_MV, teacher_MV, temperature=2, lambda_M=lambda_M, weight_M=1)
        assert term.total.dtype == torch.float64


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_a_truncated_teacher_gives_the_oracles_value_and_gradient(lam: float):
    student_MV, teacher_MV = random_logits(7, 13)
    teacher_MV[:, 5:] = -math.inf
    student_MV.requires_grad_()
    term = tidal_kl(student_MV, teacher_MV, temperature=2.0, lambda_M=lam, weight_M=1.0)
    term.total.backward()
    total, gradient = oracle(student_MV.tolist(), teacher_MV.tolist(), 2.0, [lam] * 7, [1.0] * 7)
    assert term.total.item() == pytest.approx(total, rel=VALUE_RTOL, abs=VALUE_ATOL)
    assert_close(student_MV.grad, torch.tensor(gradient), rtol=1e-4, atol=GRADIENT_ATOL)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_a_token_that_both_models_exclude_is_as_if_it_were_not_there(lam: float):
    student_MV, teacher_MV = random_logits(7, 13)
    excluded_M1 = torch.full((7, 1), -math.inf)
    wide_MV = torch.cat([student_MV, excluded_M1], -1).requires_grad_()
    wide_teacher_MV = torch.cat([teacher_MV, excluded_M1], -1)
    kwargs = {"temperature": 2.0, "lambda_M": lam, "weight_M": 1.0}
    narrow = tidal_kl(student_MV.requires_grad_(), teacher_MV, **kwargs)
    wide = tidal_kl(wide_MV, wide_teacher_MV, **kwargs)
    (narrow.total + wide.total).backward()
    assert_close(wide.total, narrow.total)
    assert student_MV.grad is not None
    assert wide_MV.grad is not None
    assert_close(wide_MV.grad[:, :-1], student_MV.grad)
    assert not wide_MV.grad[:, -1].any()


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_logits_of_ten_thousand_stay_finite(lam: float):
    student_MV = torch.tensor([[1e4, -1e4]], requires_grad=True)
    teacher_MV = torch.tensor([[-1e4, 1e4]])
    term = tidal_kl(student_MV, teacher_MV, temperature=1.0, lambda_M=lam, weight_M=1.0)
    term.total.backward()
    assert term.total.isfinite()
    assert student_MV.grad is not None
    assert student_MV.grad.isfinite().all()


@pytest.mark.parametrize("per_row", [0.5, torch.zeros(0)])
def test_no_positions_are_a_differentiable_zero(per_row: float | torch.Tensor):
    student_MV = torch.zeros(0, 5, requires_grad=True)
    term = tidal_kl(
        student_MV, torch.zeros(0, 5), temperature=2.0, lambda_M=per_row, weight_M=per_row
    )
    term.mean().backward()
    assert (term.mean().item(), term.count.item()) == (0.0, 0)
