import math

import pytest
import torch
from torch.testing import assert_close

from pipeline.objectives.likelihood import chunk_logp, gold_logp

FLOAT32_TOLERANCE = {"atol": 2e-6, "rtol": 2e-6}


def oracle_gold_logp(logits: list[list[float]], ids: list[int]) -> list[float]:
    """z[x] - log sum exp z, one row at a time, in Python floats."""
    return [
        row[x] - max(row) - math.log(math.fsum(math.exp(z - max(row)) for z in row))
        for row, x in zip(logits, ids, strict=True)
    ]


def test_gold_logp_of_a_coin_with_three_to_one_odds():
    # p = (3, 1) / 4: log 0.75 and log 0.25
    logits_NV = torch.tensor([[3.0, 1.0], [3.0, 1.0]]).log()
    expected_N = torch.tensor([0.75, 0.25]).log()
    assert_close(gold_logp(logits_NV, torch.tensor([0, 1])), expected_N, **FLOAT32_TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 123), (123, 507)])
def test_gold_logp_equals_the_oracle(shape: tuple[int, int], dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    logits_NV = (8 * torch.randn(shape, generator=generator)).to(dtype)
    ids_N = torch.randint(shape[1], shape[:1], generator=generator)
    logp_N = gold_logp(logits_NV, ids_N)
    expected_N = torch.tensor(oracle_gold_logp(logits_NV.tolist(), ids_N.tolist()))
    assert logp_N.dtype == torch.float32
    assert_close(logp_N, expected_N, **FLOAT32_TOLERANCE)


def test_gold_logp_has_the_gradient_of_its_definition():
    generator = torch.Generator().manual_seed(1)
    logits_NV = torch.randn(7, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    ids_N = torch.randint(5, (7,), generator=generator)
    assert gold_logp(logits_NV, ids_N).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda z: gold_logp(z, ids_N), (logits_NV,))


def test_gold_logp_keeps_its_digits_under_a_large_common_offset():
    # 1e4 + (1, 0) is exact in float32, so the answer is that of (1, 0)
    offset_N = gold_logp(torch.tensor([[10001.0, 10000.0]]), torch.tensor([0]))
    assert_close(
        offset_N, gold_logp(torch.tensor([[1.0, 0.0]]), torch.tensor([0])), **FLOAT32_TOLERANCE
    )


def test_gold_logp_of_extreme_logits_and_excluded_tokens_is_finite():
    logits_NV = torch.tensor([[1e4, -1e4, -math.inf]], requires_grad=True)
    logp_N = gold_logp(logits_NV, torch.tensor([1]))
    logp_N.sum().backward()
    assert logp_N.item() == -2e4
    assert_close(logits_NV.grad, torch.tensor([[-1.0, 1.0, 0.0]]))


def test_gold_logp_of_no_tokens_is_empty():
    assert gold_logp(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_a_chunk_has_the_sum_of_its_tokens():
    # chunk 0: -1 - 2 = -3; chunk 1: no token, 0; chunk 2: -4; the token of chunk -1 is unseen
    logp_N = torch.tensor([-1.0, -4.0, -8.0, -2.0])
    chunk_N = torch.tensor([0, 2, -1, 0])
    assert_close(chunk_logp(logp_N, chunk_N, 3), torch.tensor([-3.0, 0.0, -4.0]))


@pytest.mark.parametrize("num_tokens", [1, 7, 123, 507])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunk_logp_equals_a_loop_in_float64(num_tokens: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(num_tokens)
    logp_N = (-torch.rand(num_tokens, generator=generator)).to(dtype)
    chunk_N = torch.randint(-1, 11, (num_tokens,), generator=generator)
    expected = [0.0] * 11
    for logp, chunk in zip(logp_N.tolist(), chunk_N.tolist(), strict=True):
        if chunk >= 0:
            expected[chunk] += logp
    # some 50 terms below 1 each
    assert_close(chunk_logp(logp_N, chunk_N, 11), torch.tensor(expected), atol=1e-5, rtol=0)


def test_each_token_of_a_chunk_receives_the_chunks_gradient():
    logp_N = torch.tensor([-1.0, math.nan, -2.0], requires_grad=True)
    chunk_C = chunk_logp(logp_N, torch.tensor([1, -1, 1]), 2)
    chunk_C.backward(torch.tensor([3.0, 5.0]))
    assert_close(chunk_C, torch.tensor([0.0, -3.0]))
    assert_close(logp_N.grad, torch.tensor([5.0, 0.0, 5.0]))


def test_chunk_sums_run_in_float32():
    # in bfloat16, 256 + 1 stays 256
    logp_N = torch.tensor([-256.0, -1.0], dtype=torch.bfloat16)
    assert_close(chunk_logp(logp_N, torch.tensor([0, 0]), 1), torch.tensor([-257.0]))


def test_no_chunks_and_no_tokens_are_empty_and_differentiable():
    logp_N = torch.tensor([-1.0], requires_grad=True)
    chunk_logp(logp_N, torch.tensor([-1]), 0).sum().backward()
    assert_close(logp_N.grad, torch.zeros(1))
    none_N = torch.zeros(0, dtype=torch.int64)
    assert_close(chunk_logp(torch.zeros(0), none_N, 2), torch.zeros(2))


@pytest.mark.parametrize("chunk", [-2, 3])
def test_a_chunk_that_does_not_exist_is_refused(chunk: int):
    with pytest.raises((IndexError, RuntimeError)):
        chunk_logp(torch.zeros(1), torch.tensor([chunk]), 3)
