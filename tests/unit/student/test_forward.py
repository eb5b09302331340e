"""The student's forward pass against a plain one, and what a masked token may see.

Axes: B example, S position, N masked position, H hidden size.
"""

import pytest
import torch
from torch.testing import assert_close

from pipeline.student.forward import head, masked_hidden

BLOCK, MASK = 8, 4095
TOLERANCE = {"atol": 1e-4, "rtol": 1e-5}  # float32 states of size 10, SDPA against eager


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.model("student")


@pytest.fixture(scope="module")
def batch():
    """Three rows of 40, 24 and 8 real tokens, padded to 40."""
    generator = torch.Generator().manual_seed(0)
    ids_BS = torch.randint(2, 4000, (3, 40), generator=generator)
    is_real_BS = torch.arange(40) < torch.tensor([[40], [24], [8]])
    is_masked_BS = (torch.rand(3, 40, generator=generator) < 0.4) & is_real_BS
    return ids_BS.masked_fill(~is_real_BS, 0), is_masked_BS, is_real_BS


@torch.no_grad()
def _hidden(model, ids_BS, is_masked_BS, example_BS=None):
    return masked_hidden(
        model, ids_BS, is_masked_BS, mask_id=MASK, block_size=BLOCK, example_BS=example_BS
    )


def _one_each(is_real_BS):
    """Each row an example, padding -1."""
    return torch.where(is_real_BS, torch.arange(len(is_real_BS))[:, None], -1)


def _may_see(query: int, key: int, num_tokens: int) -> bool:
    """Block diffusion over [x_t, x_0], position by position (TIDE section 2)."""
    query_is_noised, key_is_noised = query < num_tokens, key < num_tokens
    query_block, key_block = query % num_tokens // BLOCK, key % num_tokens // BLOCK
    if query_is_noised:
        return key_block == query_block if key_is_noised else key_block < query_block
    return not key_is_noised and key_block <= query_block


@torch.no_grad()
def _plain_logits(model, ids_S, is_masked_S):
    """One row without padding, eager attention with an added mask, the head everywhere."""
    num_tokens = len(ids_S)
    places = range(2 * num_tokens)
    visible = torch.tensor([[_may_see(q, k, num_tokens) for k in places] for q in places])
    lowest = torch.finfo(torch.float32).min
    output = model(
        input_ids=torch.cat([ids_S.masked_fill(is_masked_S, MASK), ids_S])[None],
        attention_mask=torch.zeros(visible.shape).masked_fill(~visible, lowest)[None, None],
        position_ids=torch.arange(num_tokens).repeat(2)[None],
        use_cache=False,
    )
    return output.logits[0, :num_tokens][is_masked_S]


@pytest.mark.parametrize("is_told", [False, True], ids=["unsaid", "said"])
def test_masked_rows_are_those_of_a_plain_forward_pass(model, tiny, batch, is_told):
    ids_BS, is_masked_BS, is_real_BS = batch
    example_BS = _one_each(is_real_BS) if is_told else None
    got_NV = head(model)(_hidden(model, ids_BS, is_masked_BS, example_BS))
    eager = tiny.model("student", attention="eager")
    want = [
        _plain_logits(eager, ids_S[is_real_S], is_masked_S[is_real_S])
        for ids_S, is_masked_S, is_real_S in zip(*batch, strict=True)
    ]
    assert_close(got_NV, torch.cat(want), **TOLERANCE)


def test_eager_attention_and_sdpa_agree(model, tiny, batch):
    ids_BS, is_masked_BS, is_real_BS = batch
    eager = tiny.model("student", attention="eager")
    for example_BS in (None, _one_each(is_real_BS)):
        got, want = (_hidden(m, ids_BS, is_masked_BS, example_BS) for m in (eager, model))
        assert_close(got, want, **TOLERANCE)


def test_what_stands_in_padding_changes_nothing(model, batch):
    ids_BS, is_masked_BS, is_real_BS = batch
    other_BS = torch.where(is_real_BS, ids_BS, 77)
    for example_BS in (None, _one_each(is_real_BS)):
        want = _hidden(model, ids_BS, is_masked_BS, example_BS)
        assert torch.equal(_hidden(model, other_BS, is_masked_BS, example_BS), want)


def test_padding_after_whole_blocks_needs_no_mask(model, batch):
    ids_BS, is_masked_BS, is_real_BS = batch
    want = _hidden(model, ids_BS, is_masked_BS, _one_each(is_real_BS))
    assert torch.equal(_hidden(model, ids_BS, is_masked_BS), want)


@pytest.mark.parametrize("changed", [9, 13, 20])
def test_a_token_moves_masked_tokens_of_later_blocks_only_while_it_is_masked(model, changed):
    """Its own block sees the mask token in its place: the true text never leaks."""
    ids_BS = torch.randint(2, 4000, (1, 32), generator=torch.Generator().manual_seed(1))
    other_BS = ids_BS.clone()
    other_BS[0, changed] += 1
    is_masked_BS = torch.ones_like(ids_BS, dtype=torch.bool)
    is_masked_BS[:, 1::2] = False
    is_masked_BS[:, changed] = True
    before, after = (_hidden(model, x, is_masked_BS) for x in (ids_BS, other_BS))
    is_later_N = (torch.arange(32) // BLOCK > changed // BLOCK)[is_masked_BS[0]]
    moved_N = (after - before).abs().amax(-1)
    assert (moved_N[~is_later_N] < 1e-5).all()
    assert (moved_N[is_later_N] > 1e-4).all()


def test_nothing_masked_gives_no_row(model, batch):
    ids_BS, is_masked_BS, _ = batch
    hidden_NH = _hidden(model, ids_BS, torch.zeros_like(is_masked_BS))
    assert hidden_NH.shape == (0, 32)
