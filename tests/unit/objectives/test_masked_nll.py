import math

import pytest
import torch
from torch.testing import assert_close

from pipeline.objectives.likelihood import gold_logp
from pipeline.objectives.masked_nll import masked_nll, masked_nll_from_logp

VALUE_RTOL = 1e-5
GRADIENT_RTOL = {torch.float32: 1e-4, torch.bfloat16: 2**-7}
GRADIENT_ATOL = 1e-5


def oracle(
    logits: list[list[float]], ids: list[int], times: list[float]
) -> tuple[float, list[list[float]]]:
    """The total and its gradient, w (softmax(z) - onehot(x)), in Python floats."""
    total, gradient = 0.0, []
    for row, x, time in zip(logits, ids, times, strict=True):
        weight = 1 / (time + 1e-6)
        top = max(row)
        norm = math.fsum(math.exp(z - top) for z in row)
        total -= weight * (row[x] - top - math.log(norm))
        gradient.append([weight * (math.exp(z - top) / norm - (v == x)) for v, z in enumerate(row)])
    return total, gradient


def test_two_tokens_by_hand():
    # p = 1/4 at t = 1/2 and p = 3/4 at t = 1: 2 log 4 + log 4/3, up to the 1e-6; 8 maskable
    logits_NV = torch.tensor([[3.0, 1.0], [3.0, 1.0]]).log()
    term = masked_nll(logits_NV, torch.tensor([1, 0]), torch.tensor([0.5, 1.0]), 8)
    expected = 2 * math.log(4) + math.log(4 / 3)
    assert term.count.item() == 8
    assert term.total.item() == pytest.approx(expected, rel=VALUE_RTOL)
    assert term.mean().item() == pytest.approx(expected / 8, rel=VALUE_RTOL)


def test_in_expectation_over_masks_the_mean_is_the_plain_nll_of_a_token():
    # at time t a token is masked with probability t and weighs 1 / t, so every t gives the same
    logits_NV = torch.tensor([[3.0, 1.0]]).log()
    for time in (0.01, 0.5, 1.0):
        term = masked_nll(logits_NV, torch.tensor([0]), torch.tensor([time]), 1)
        assert time * term.mean().item() == pytest.approx(math.log(4 / 3), rel=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 123), (123, 507)])
def test_value_and_gradient_equal_the_oracle(shape: tuple[int, int], dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    logits_NV = (3 * torch.randn(shape, generator=generator)).to(dtype).requires_grad_()
    ids_N = torch.randint(shape[1], shape[:1], generator=generator)
    time_N = 1e-3 + (1 - 1e-3) * torch.rand(shape[0], generator=generator)
    term = masked_nll(logits_NV, ids_N, time_N, 1000)
    term.total.backward()
    total, gradient = oracle(logits_NV.tolist(), ids_N.tolist(), time_N.tolist())
    assert term.total.dtype == torch.float32
    assert term.total.item() == pytest.approx(total, rel=VALUE_RTOL, abs=1e-6)
    assert logits_NV.grad is not None
    assert_close(
        logits_NV.grad.float(),
        torch.tensor(gradient),
        rtol=GRADIENT_RTOL[dtype],
        atol=GRADIENT_ATOL,
    )


def test_gradient_equals_finite_differences():
    generator = torch.Generator().manual_seed(1)
    logits_NV = torch.randn(5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    ids_N, time_N = torch.tensor([0, 1, 2, 0, 1]), torch.linspace(0.1, 1, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: masked_nll(z, ids_N, time_N, 9).mean(), (logits_NV,))


def test_log_likelihoods_at_hand_give_the_same_term():
    generator = torch.Generator().manual_seed(2)
    logits_NV, ids_N = torch.randn(7, 5, generator=generator), torch.arange(7) % 5
    time_N = torch.rand(7, generator=generator)
    direct = masked_nll(logits_NV, ids_N, time_N, 11)
    shared = masked_nll_from_logp(gold_logp(logits_NV, ids_N), time_N, torch.tensor(11))
    assert_close((shared.total, shared.count), (direct.total, direct.count), atol=0, rtol=0)


def test_nothing_masked_is_a_zero_over_the_maskable_tokens():
    logits_NV = torch.zeros(0, 3, requires_grad=True)
    term = masked_nll(logits_NV, torch.zeros(0, dtype=torch.int64), torch.zeros(0), 6)
    term.mean().backward()
    assert (term.mean().item(), term.count.item()) == (0.0, 6)


def test_nothing_maskable_is_a_zero():
    term = masked_nll(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.zeros(0), 0)
    assert term.mean().item() == 0.0


def test_extreme_logits_give_the_logit_gap():
    # -log p is 2e4 nats in float32, at t = 1
    logits_NV = torch.tensor([[1e4, -1e4]], requires_grad=True)
    term = masked_nll(logits_NV, torch.tensor([1]), torch.tensor([1.0]), 1)
    term.total.backward()
    assert term.total.item() == pytest.approx(2e4, rel=VALUE_RTOL)
    assert_close(logits_NV.grad, torch.tensor([[1.0, -1.0]]), atol=0, rtol=VALUE_RTOL)
