"""Top-k targets and the dense rows that they stand for.

Axes: M position, V vocabulary, K kept logit, J temperature.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from pipeline.targets.expand import expand_even
from pipeline.targets.top_k import keep_top_k, logsumexp_at

# Steps of float32 at the size of z / T that one row of probabilities may be off by.
STEPS = 4


def _tolerance(logits_MV, temperature):
    size = max(1.0, (logits_MV / temperature).abs().max().item())
    return {"atol": STEPS * torch.finfo(torch.float32).eps * size, "rtol": 0}


def _expanded(logits_MV, *, k, temperature):
    ids_MK, kept_MK = keep_top_k(logits_MV, k=k)
    logsumexp_M = logsumexp_at(logits_MV, [temperature])[:, 0]
    vocab_size = logits_MV.shape[1]
    return expand_even(ids_MK, kept_MK, logsumexp_M, vocab_size=vocab_size, temperature=temperature)


def _random_logits(seed, num_rows, vocab_size, scale):
    return scale * torch.randn(
        num_rows, vocab_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float32
    )


logits = st.builds(
    _random_logits,
    st.integers(0, 2**31),
    st.integers(1, 5),
    st.integers(3, 40),
    st.sampled_from([0.01, 1.0, 8.0, 30.0]),
)


def test_worked_by_hand():
    # softmax = (1/2, 1/4, 1/8, 1/8) with logsumexp = log 8 over z = log (4, 2, 1, 1).
    # k = 2 keeps 1/2 and 1/4; the missing 1/4 over two tokens is 1/8 each: z = log 1 = 0.
    z = torch.tensor([[1.0, 4.0, 1.0, 2.0]]).log()
    ids_MK, kept_MK = keep_top_k(z, k=2)
    assert ids_MK.tolist() == [[1, 3]]
    assert_close(kept_MK, torch.tensor([[math.log(4), math.log(2)]]))
    assert_close(logsumexp_at(z, [1.0]), torch.tensor([[math.log(8)]]))
    assert_close(_expanded(z, k=2, temperature=1.0), z, atol=1e-6, rtol=0)


def test_logsumexp_at_a_temperature_worked_by_hand():
    # z / 2 = log (2, 1, 1): logsumexp = log 4
    z = 2 * torch.tensor([[2.0, 1.0, 1.0]]).log()
    assert_close(logsumexp_at(z, [2.0, 1.0]), torch.tensor([[math.log(4), math.log(6)]]))


@given(logits, st.sampled_from([0.5, 1.0, 2.0, 5.0]))
def test_keeping_the_whole_vocabulary_gives_the_logits_bit_for_bit(logits_MV, temperature):
    got_MV = _expanded(logits_MV, k=logits_MV.shape[1], temperature=temperature)
    assert torch.equal(got_MV, logits_MV)
    # more than there are is all that there are
    assert torch.equal(_expanded(logits_MV, k=99, temperature=temperature), logits_MV)


@given(logits, st.data(), st.sampled_from([0.5, 1.0, 2.0, 5.0]))
def test_kept_tokens_keep_their_exact_probability_and_nothing_is_lost(logits_MV, data, temperature):
    k = data.draw(st.integers(1, logits_MV.shape[1] - 1))
    got_MV = _expanded(logits_MV, k=k, temperature=temperature)
    ids_MK, kept_MK = keep_top_k(logits_MV, k=k)
    assert torch.equal(got_MV.gather(1, ids_MK), kept_MK)
    tolerance = _tolerance(logits_MV, temperature)
    want_MV = (logits_MV.double() / temperature).softmax(-1)
    got_p_MV = (got_MV.double() / temperature).softmax(-1)
    assert_close(got_p_MV.gather(1, ids_MK), want_MV.gather(1, ids_MK), **tolerance)
    # what is left out is at most V - K times the smallest kept: the bound on the tail never cuts
    logsumexp_M1 = logsumexp_at(logits_MV.double(), [temperature])
    mass_M = (got_MV.double() / temperature - logsumexp_M1).exp().sum(-1)
    assert_close(mass_M, torch.ones_like(mass_M), **tolerance)


@given(logits, st.data(), st.sampled_from([0.5, 1.0, 2.0, 5.0]))
def test_the_tail_is_flat_finite_and_never_above_what_was_kept(logits_MV, data, temperature):
    k = data.draw(st.integers(1, logits_MV.shape[1] - 1))
    got_MV = _expanded(logits_MV, k=k, temperature=temperature)
    assert got_MV.isfinite().all()
    ids_MK, kept_MK = keep_top_k(logits_MV, k=k)
    is_kept_MV = torch.zeros_like(got_MV, dtype=torch.bool).scatter(1, ids_MK, True)
    for row, kept, tail in zip(got_MV, kept_MK, ~is_kept_MV, strict=True):
        assert (row[tail] == row[tail][0]).all()
        assert row[tail][0] <= kept[-1]


def test_a_tail_of_one_token_is_that_token():
    logits_MV = _random_logits(3, 6, 11, 2.0)
    assert_close(_expanded(logits_MV, k=10, temperature=2.0), logits_MV, atol=1e-4, rtol=0)


def test_a_rounded_up_logsumexp_is_clamped_to_the_smallest_kept_logit():
    # a tail that would need more than (V - K) times the smallest kept: stored in float16, say
    ids, kept = torch.tensor([[2, 0]]), torch.tensor([[1.0, 0.0]])
    got = expand_even(ids, kept, torch.tensor([9.0]), vocab_size=4, temperature=1.0)
    assert_close(got, torch.tensor([[0.0, 0.0, 1.0, 0.0]]))


def test_where_rounding_leaves_no_tail_the_rest_is_finite_and_without_mass():
    # all the mass is inside; the logsumexp is even a little below what is inside
    ids, kept = torch.tensor([[0, 1]]), torch.tensor([[80.0, 0.0]])
    got = expand_even(ids, kept, torch.tensor([79.99]), vocab_size=5, temperature=1.0)
    assert got.isfinite().all()
    assert (got.softmax(-1)[0, 2:] < 1e-25).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_logits_of_either_dtype_expand_in_float32(dtype):
    # float16 is how they are stored; reading turns them into float32 before they get here
    logits_MV = _random_logits(5, 4, 9, 3.0)
    stored_MK = keep_top_k(logits_MV, k=3)[1].to(dtype).float()
    got_MV = expand_even(
        keep_top_k(logits_MV, k=3)[0],
        stored_MK,
        logsumexp_at(logits_MV, [2.0])[:, 0],
        vocab_size=9,
        temperature=2.0,
    )
    assert got_MV.dtype == torch.float32
    want_MV = (logits_MV / 2).softmax(-1)
    ids_MK = keep_top_k(logits_MV, k=3)[0]
    tolerance = 2e-3 if dtype == torch.float16 else 1e-6  # half a step of float16 at 8 is 2e-3
    assert_close(
        (got_MV / 2).softmax(-1).gather(1, ids_MK),
        want_MV.gather(1, ids_MK),
        atol=tolerance,
        rtol=0,
    )


def test_expanded_rows_carry_no_gradient_and_leave_their_inputs_alone():
    ids, kept = torch.tensor([[2, 0]]), torch.tensor([[1.0, 0.5]])
    before = kept.clone()
    got = expand_even(ids, kept, torch.tensor([2.0]), vocab_size=4, temperature=1.0)
    assert not got.requires_grad
    got += 1  # a view of the inputs would carry this back
    assert torch.equal(kept, before)


def test_no_row_expands_to_no_row():
    got = expand_even(
        torch.zeros(0, 2, dtype=torch.long),
        torch.zeros(0, 2),
        torch.zeros(0),
        vocab_size=7,
        temperature=1.0,
    )
    assert got.shape == (0, 7)
