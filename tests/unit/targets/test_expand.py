"""Every kind of tail against the live teacher's own rows.

Axes: M position, V vocabulary, K kept logit, R sketch dimension.
"""

import math

import pytest
import torch
from hidden_states import TEMPERATURE, make_world
from torch.testing import assert_close

from pipeline.targets.expand import expand_even, expand_mean_logit, expand_sketch
from pipeline.targets.measure import kl_at
from pipeline.targets.sketch import SketchDecoder, SketchEncoder
from pipeline.targets.top_k import keep_top_k, logsumexp_at

# float32 sums of some hundred terms, at logits of size 10
EXACT = {"atol": 1e-5, "rtol": 1e-5}
TEMPERATURES = [1.0, 2.0, 5.0]


@pytest.fixture(scope="module")
def world():
    return make_world()


@pytest.fixture(scope="module")
def live_MV(world):
    return world.logits_of(world.held_out_MH)


def even(live_MV, base_V, k, temperature):
    ids_MK, logits_MK = keep_top_k(live_MV, k=k)
    logsumexp_M = logsumexp_at(live_MV, [temperature])[:, 0]
    return expand_even(
        ids_MK, logits_MK, logsumexp_M, vocab_size=live_MV.shape[1], temperature=temperature
    )


def mean_logit(live_MV, base_V, k, temperature):
    ids_MK, logits_MK = keep_top_k(live_MV, k=k)
    logsumexp_M = logsumexp_at(live_MV, [temperature])[:, 0]
    return expand_mean_logit(ids_MK, logits_MK, logsumexp_M, base_V, temperature=temperature)


TOP_K_TAILS = pytest.mark.parametrize("expand", [even, mean_logit])


@pytest.fixture(scope="module")
def base_V(world):
    return world.axes.base_V


@TOP_K_TAILS
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_with_the_whole_vocabulary_the_rows_are_the_live_teachers(
    expand, live_MV, base_V, temperature
):
    assert torch.equal(expand(live_MV, base_V, live_MV.shape[1], temperature), live_MV)


@TOP_K_TAILS
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [1, 8, 100, 599])
def test_kept_tokens_have_their_exact_probability_and_the_total_is_one(
    expand, live_MV, base_V, k, temperature
):
    got_MV = expand(live_MV, base_V, k, temperature)
    ids_MK, logits_MK = keep_top_k(live_MV, k=k)
    assert torch.equal(got_MV.gather(1, ids_MK), logits_MK)
    assert (got_MV <= logits_MK[:, :1]).all()
    # a tail that is shaped is cut at the smallest kept logit, and may then hold too little
    is_cut_M = (got_MV == logits_MK[:, -1:]).sum(-1) > 1
    if expand is even:
        is_cut_M = torch.zeros_like(is_cut_M)
    assert not is_cut_M.all()
    whole_M = logsumexp_at(live_MV, [temperature])[:, 0]
    total_M = logsumexp_at(got_MV, [temperature])[:, 0]
    assert_close(total_M[~is_cut_M], whole_M[~is_cut_M], **EXACT)
    assert (total_M <= whole_M + 1e-5).all()
    p_MV = (got_MV / temperature).softmax(-1).gather(1, ids_MK)
    want_MV = (live_MV / temperature).softmax(-1).gather(1, ids_MK)
    assert_close(p_MV[~is_cut_M], want_MV[~is_cut_M], **EXACT)


def test_a_tail_like_the_mean_logit_worked_by_hand():
    # p = (1/2, 1/4, 1/8, 1/8) over z = log (4, 2, 1, 1), logsumexp log 8. k = 1 keeps 1/2; half is
    # outside, shaped like m = log (9, 2, 1, 1): c = log 4 - log 4 = 0, so it is the row itself.
    z = torch.tensor([[4.0, 2.0, 1.0, 1.0]]).log()
    ids_MK, logits_MK = keep_top_k(z, k=1)
    base_V = torch.tensor([9.0, 2.0, 1.0, 1.0]).log()
    got = expand_mean_logit(ids_MK, logits_MK, torch.tensor([math.log(8)]), base_V, temperature=1.0)
    assert_close(got, z)
    # with m = log (9, 6, 1, 1) it would be log (3, 1/2, 1/2): within the bound of log 4
    got = expand_mean_logit(
        ids_MK,
        logits_MK,
        torch.tensor([math.log(8)]),
        torch.tensor([9.0, 6.0, 1.0, 1.0]).log(),
        temperature=1.0,
    )
    assert_close(got, torch.tensor([[4.0, 3.0, 0.5, 0.5]]).log())
    # 8 outside like (14, 1, 1) would be (7, 1/2, 1/2): 7 is more than the 4 that was kept
    got = expand_mean_logit(
        ids_MK,
        logits_MK,
        torch.tensor([math.log(12)]),
        torch.tensor([9.0, 14.0, 1.0, 1.0]).log(),
        temperature=1.0,
    )
    assert_close(got, torch.tensor([[4.0, 4.0, 0.5, 0.5]]).log())


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_mean_logit_that_is_the_same_everywhere_is_an_even_tail(live_MV, temperature):
    flat_V = torch.full((live_MV.shape[1],), -3.0)
    got_MV = mean_logit(live_MV, flat_V, 8, temperature)
    assert_close(got_MV, even(live_MV, flat_V, 8, temperature), **EXACT)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_mean_logit_is_known_up_to_a_constant(live_MV, base_V, temperature):
    moved_MV = mean_logit(live_MV, base_V + 11, 8, temperature)
    assert_close(moved_MV, mean_logit(live_MV, base_V, 8, temperature), **EXACT)


def test_a_tail_like_the_mean_logit_is_nearer_than_an_even_one_where_tokens_differ():
    # every row is the mean logit and a little of its own, as where some tokens are rare everywhere
    generator = torch.Generator().manual_seed(2)
    base_V = 3 * torch.randn(400, generator=generator)
    live_MV = base_V + 0.7 * torch.randn(20, 400, generator=generator)
    shaped, flat = (
        kl_at(live_MV, expand(live_MV, base_V, 8, 2.0), 2.0).mean() for expand in (mean_logit, even)
    )
    assert shaped < 0.5 * flat


def test_a_tail_without_mass_is_finite():
    ids, kept = torch.tensor([[0, 1]]), torch.tensor([[80.0, 0.0]])
    base_V = torch.randn(5, generator=torch.Generator().manual_seed(0))
    got = expand_mean_logit(ids, kept, torch.tensor([79.99]), base_V, temperature=1.0)
    assert got.isfinite().all()
    assert (got.softmax(-1)[0, 2:] < 1e-25).all()


def sketched(world, live_MV, gold_id_M, temperature, *, step=0.1, outside=0.0):
    basis = world.axes.cut(step, None)
    sketch_MR = SketchEncoder.of(basis, torch.device("cpu")).encode(world.held_out_MH, live_MV)
    known_M = gold_id_M.clamp_max(live_MV.shape[1] - 1)
    return expand_sketch(
        SketchDecoder.of(basis, torch.device("cpu")),
        sketch_MR,
        logsumexp_at(live_MV, [temperature])[:, 0],
        gold_id_M,
        live_MV.gather(1, known_M[:, None])[:, 0] + outside,
        temperature=temperature,
    )


@pytest.fixture(scope="module")
def gold_id_M(live_MV):
    generator = torch.Generator().manual_seed(4)
    return torch.randint(live_MV.shape[1], (len(live_MV),), generator=generator)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_sketch_has_the_exact_logsumexp_and_the_true_tokens_own_logit(
    world, live_MV, gold_id_M, temperature
):
    got_MV = sketched(world, live_MV, gold_id_M, temperature)
    row_M = torch.arange(len(gold_id_M))
    assert torch.equal(got_MV[row_M, gold_id_M], live_MV[row_M, gold_id_M])
    outside_M = torch.full_like(gold_id_M, live_MV.shape[1])
    untouched_MV = sketched(world, live_MV, outside_M, temperature)
    whole_M = logsumexp_at(live_MV, [temperature])[:, 0]
    assert_close(logsumexp_at(untouched_MV, [temperature])[:, 0], whole_M, **EXACT)
    # one logit is all that the true token changes
    untouched_MV[row_M, gold_id_M] = live_MV[row_M, gold_id_M]
    assert torch.equal(got_MV, untouched_MV)


def test_a_true_token_outside_the_kept_columns_is_left_alone(world, live_MV, gold_id_M):
    outside_M = gold_id_M + live_MV.shape[1]
    got_MV = sketched(world, live_MV, outside_M, 2.0, outside=1000.0)
    assert torch.equal(got_MV, sketched(world, live_MV, outside_M + 7, 2.0))
    mixed_M = torch.where(torch.arange(len(gold_id_M)) % 2 == 0, gold_id_M, outside_M)
    mixed_MV = sketched(world, live_MV, mixed_M, 2.0)
    assert torch.equal(mixed_MV[1::2], got_MV[1::2])
    assert torch.equal(mixed_MV[::2], sketched(world, live_MV, gold_id_M, 2.0)[::2])


def test_a_fine_sketch_is_the_live_row_and_nearer_than_a_top_k(world, live_MV, base_V, gold_id_M):
    fine_MV = sketched(world, live_MV, gold_id_M, TEMPERATURE, step=0.01)
    fine = kl_at(live_MV, fine_MV, TEMPERATURE).mean()
    assert fine < 1e-3
    for expand in (even, mean_logit):
        top_k_MV = expand(live_MV, base_V, 8, TEMPERATURE)
        assert fine < 0.01 * kl_at(live_MV, top_k_MV, TEMPERATURE).mean()


def test_expanding_leaves_the_decoder_and_the_inputs_alone(world, live_MV, gold_id_M):
    before_V = world.axes.base_V.clone()
    first_MV = sketched(world, live_MV, gold_id_M, 2.0)
    assert torch.equal(sketched(world, live_MV, gold_id_M, 2.0), first_MV)
    assert torch.equal(world.axes.base_V, before_V)


def test_no_row_expands_to_no_row(world, base_V):
    no_id_MK, no_logit_MK, none_M = torch.zeros(0, 2).long(), torch.zeros(0, 2), torch.zeros(0)
    got = expand_mean_logit(no_id_MK, no_logit_MK, none_M, base_V, temperature=2.0)
    assert got.shape == (0, len(base_V))
    basis = world.axes.cut(0.1, None)
    got = expand_sketch(
        SketchDecoder.of(basis, torch.device("cpu")),
        torch.zeros(0, basis.rank, dtype=torch.int16),
        none_M,
        none_M.long(),
        none_M,
        temperature=2.0,
    )
    assert got.shape == (0, len(base_V))
