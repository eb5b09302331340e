"""The head's loss block by block is the loss over all logits: value and every gradient.

Axes: N masked position, H hidden size, V vocabulary.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from pipeline.objectives import gold_logp
from pipeline.train.head_loss import head_loss, rows_per_block
from pipeline.train.tensors import Block, cut_blocks
from storage_schemas.errors import RecipeError

N, H, V = 23, 7, 31
EXACT = {"atol": 1e-12, "rtol": 1e-12}  # float64 sums in another order
HALF = 1e-2  # of the whole: bfloat16 keeps 8 bits, and both ways round at other places


def _blocks(size: int, count: int = N) -> tuple[Block, ...]:
    nothing = torch.full((count,), -1, dtype=torch.int32).numpy()
    return cut_blocks(nothing, nothing[:0], size)


def _parts(dtype=torch.float64, *, bias=False):
    torch.manual_seed(0)
    head = nn.Linear(H, V, bias=bias, dtype=dtype)
    hidden_NH = torch.randn(N, H, dtype=dtype, requires_grad=True)
    return head, hidden_NH, torch.randint(V, (N,))


def _loss(ids_N):
    """Some loss in which every row has a weight of its own."""

    def loss_of(logits_RV, block):
        weight_R = torch.arange(N, dtype=logits_RV.dtype)[block.positions] + 1
        logp_R = gold_logp(logits_RV, ids_N[block.positions])
        return -(weight_R * logp_R).sum() + 0.1 * logits_RV.square().sum()

    return loss_of


def _plain(head, hidden_NH, ids_N):
    whole = Block(slice(0, N), slice(0, 0), slice(0, 0))
    return _loss(ids_N)(head(hidden_NH), whole)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [1, 2, 5, 23, 100])
def test_value_and_gradients_are_the_plain_ones(size, bias):
    head, hidden_NH, ids_N = _parts(bias=bias)
    inputs = [hidden_NH, *head.parameters()]
    want = _plain(head, hidden_NH, ids_N)
    want_grads = torch.autograd.grad(3 * want, inputs)
    got = head_loss(head, hidden_NH, _blocks(size), _loss(ids_N))
    assert_close(got, want, **EXACT)
    for grad, wanted in zip(torch.autograd.grad(3 * got, inputs), want_grads, strict=True):
        assert_close(grad, wanted, **EXACT)


def test_logits_of_no_two_blocks_are_there_at_once():
    head, hidden_NH, ids_N = _parts()
    seen = []

    def loss_of(logits_RV, block):
        seen.append(len(logits_RV))
        return _loss(ids_N)(logits_RV, block)

    head_loss(head, hidden_NH, _blocks(5), loss_of).backward()
    assert sum(seen) == N  # each row once, and none again in backward
    assert max(seen) == 5


def test_a_frozen_head_gets_no_gradient_and_the_student_all_of_it():
    head, hidden_NH, ids_N = _parts()
    _plain(head, hidden_NH, ids_N).backward()
    want = hidden_NH.grad.clone()
    hidden_NH.grad = None
    head.weight.grad = None
    head.requires_grad_(False)
    head_loss(head, hidden_NH, _blocks(4), _loss(ids_N)).backward()
    assert head.weight.grad is None
    assert_close(hidden_NH.grad, want, **EXACT)


def test_the_heads_gradient_adds_to_what_is_there():
    """As tied embeddings and accumulation need it."""
    head, hidden_NH, ids_N = _parts()
    for _ in range(2):
        head_loss(head, hidden_NH, _blocks(4), _loss(ids_N)).backward()
    twice = head.weight.grad.clone()
    head.weight.grad = None
    head_loss(head, hidden_NH, _blocks(4), _loss(ids_N)).backward()
    assert_close(twice, 2 * head.weight.grad, **EXACT)


def test_without_gradients_it_is_the_value_alone():
    head, hidden_NH, ids_N = _parts()
    with torch.no_grad():
        got = head_loss(head, hidden_NH, _blocks(4), _loss(ids_N))
        assert_close(got, _plain(head, hidden_NH, ids_N), **EXACT)
    assert not got.requires_grad


def test_without_a_masked_position_it_is_a_differentiable_zero():
    head, hidden_NH, ids_N = _parts()
    loss = head_loss(head, hidden_NH[:0], _blocks(4, 0), _loss(ids_N))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(head.weight.grad, torch.zeros_like(head.weight))


def test_under_autocast_it_is_the_plain_computation_under_autocast():
    head, hidden_NH, ids_N = _parts(torch.float32)
    grads = []
    for compute in (
        lambda: _plain(head, hidden_NH, ids_N),
        lambda: head_loss(head, hidden_NH, _blocks(5), _loss(ids_N)),
    ):
        hidden_NH.grad = head.weight.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            loss = compute()
        loss.backward()
        assert head.weight.grad.dtype == hidden_NH.grad.dtype == torch.float32
        grads.append((loss.detach(), hidden_NH.grad, head.weight.grad))
    for plain, ours in zip(*grads, strict=True):
        assert (ours - plain).norm() <= HALF * plain.norm()


def test_a_second_backward_is_refused():
    head, hidden_NH, ids_N = _parts()
    loss = head_loss(head, hidden_NH, _blocks(4), _loss(ids_N))
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="runs once"):
        loss.backward()


def test_a_head_that_is_more_than_a_linear_layer_is_refused():
    head, hidden_NH, ids_N = _parts()
    with pytest.raises(RecipeError, match="one linear layer, got Sequential"):
        head_loss(nn.Sequential(head), hidden_NH, _blocks(4), _loss(ids_N))


@pytest.mark.parametrize(("device", "mib"), [("cpu", 36), ("cuda", 256)])
def test_a_block_of_a_real_vocabulary_is_some_megabytes(device, mib):
    rows = rows_per_block(151_936, torch.device(device))
    assert mib / 2 < rows * 151_936 * 4 / 2**20 <= mib
    assert rows_per_block(10**9, torch.device(device)) == 16


@given(
    lengths=st.lists(st.tuples(st.booleans(), st.integers(1, 5)), max_size=12),
    size=st.integers(1, 9),
    data=st.data(),
)
def test_blocks_cover_every_position_chunk_and_token_once_and_cut_no_chunk(lengths, size, data):
    chunk_N, chunk = [], 0
    for is_chunk, length in lengths:
        chunk_N += [chunk if is_chunk else -1] * length
        chunk += is_chunk
    taken = sorted(data.draw(st.sets(st.integers(0, max(0, len(chunk_N) - 1)))) if chunk_N else [])
    blocks = cut_blocks(_int32(chunk_N), _int32(taken), size)
    for kind, total in (("positions", len(chunk_N)), ("chunks", chunk), ("tokens", len(taken))):
        slices = [getattr(block, kind) for block in blocks]
        assert [i for one in slices for i in range(one.start, one.stop)] == list(range(total))
    longest = max([length for is_chunk, length in lengths if is_chunk], default=1)
    for block in blocks:
        n, c, m = block.positions, block.chunks, block.tokens
        assert n.stop - n.start <= max(size, longest)
        assert {x for x in chunk_N[n] if x >= 0} == set(range(c.start, c.stop))
        assert all(n.start <= position < n.stop for position in taken[m])


def _int32(values):
    return torch.tensor(values, dtype=torch.int32).numpy()
