"""Who sees whom in block diffusion: an oracle, a picture, padding, and the form attention needs.

Axes: B example, Q query, K key.
"""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pipeline.diffusion.block_mask import (
    as_attention_mask,
    block_diffusion_mask,
    block_sight,
    full_sight,
    hide_padding,
    position_in_example,
)
from pipeline.diffusion.flex import mask_rule, padded_length


def _oracle(num_tokens: int, block_size: int, *, clean_first: bool) -> Tensor:
    """Method, section 1, key by key."""
    visible = torch.zeros(2 * num_tokens, 2 * num_tokens, dtype=torch.bool)
    halves = ("clean", "noised") if clean_first else ("noised", "clean")
    positions = list(itertools.product(halves, range(num_tokens)))
    for q, (query_half, query) in enumerate(positions):
        for k, (key_half, key) in enumerate(positions):
            query_block, key_block = query // block_size, key // block_size
            if query_half == "noised" and key_half == "noised":
                visible[q, k] = query_block == key_block
            elif query_half == "noised":
                visible[q, k] = key_block < query_block
            elif key_half == "clean":
                visible[q, k] = key_block <= query_block
    return visible


@pytest.mark.parametrize("clean_first", [False, True], ids=["noised_first", "clean_first"])
@pytest.mark.parametrize("block_size", range(1, 6))
@pytest.mark.parametrize("num_tokens", range(1, 10))
def test_the_mask_is_that_of_the_oracle(num_tokens: int, block_size: int, clean_first: bool):
    visible = block_diffusion_mask(num_tokens, block_size, clean_first=clean_first)
    assert visible.dtype == torch.bool
    assert torch.equal(visible, _oracle(num_tokens, block_size, clean_first=clean_first))


def test_two_tokens_in_blocks_of_one_give_this_picture():
    # rows and columns x_t[0] x_t[1] | x_0[0] x_0[1]
    picture = [
        [1, 0, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 0],
        [0, 0, 1, 1],
    ]
    assert block_diffusion_mask(2, 1).int().tolist() == picture


def test_one_block_shows_a_half_to_itself_and_nothing_else():
    picture = [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 1],
        [0, 0, 1, 1],
    ]
    assert block_diffusion_mask(2, 2).int().tolist() == picture
    assert block_diffusion_mask(2, 5).int().tolist() == picture


@pytest.mark.parametrize("block_size", range(1, 6))
@pytest.mark.parametrize("num_tokens", range(1, 10))
def test_clean_first_is_a_permutation_of_noised_first(num_tokens: int, block_size: int):
    swapped = [*range(num_tokens, 2 * num_tokens), *range(num_tokens)]
    noised_first = block_diffusion_mask(num_tokens, block_size)
    clean_first = block_diffusion_mask(num_tokens, block_size, clean_first=True)
    assert torch.equal(clean_first, noised_first[swapped][:, swapped])


@pytest.mark.parametrize(("num_tokens", "block_size"), [(0, 1), (1, 0), (-1, 2)])
def test_no_token_and_no_block_are_refused(num_tokens: int, block_size: int):
    with pytest.raises(ValueError, match=f"got {num_tokens}, {block_size}"):
        block_diffusion_mask(num_tokens, block_size)


@st.composite
def _padded(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Block-diffusion or full attention over a batch whose rows end at any length."""
    num_tokens = draw(st.integers(1, 8))
    lengths = draw(st.lists(st.integers(0, num_tokens), min_size=1, max_size=4))
    is_real = torch.arange(num_tokens) < torch.tensor(lengths)[:, None]
    if draw(st.booleans()):
        return torch.ones(num_tokens, num_tokens, dtype=torch.bool), is_real
    visible = block_diffusion_mask(
        num_tokens, draw(st.integers(1, 4)), clean_first=draw(st.booleans())
    )
    return visible, is_real.repeat(1, 2)


@settings(max_examples=200, deadline=None)
@given(_padded())
def test_real_queries_see_what_they_saw_but_no_padding(case: tuple[Tensor, Tensor]):
    visible_QK, is_real_BK = case
    for hidden_QK, is_real_K in zip(hide_padding(*case)[:, 0], is_real_BK, strict=True):
        assert torch.equal(hidden_QK[is_real_K][:, is_real_K], visible_QK[is_real_K][:, is_real_K])
        assert not hidden_QK[is_real_K][:, ~is_real_K].any()


@settings(max_examples=200, deadline=None)
@given(_padded())
def test_no_row_of_a_padded_mask_is_empty(case: tuple[Tensor, Tensor]):
    hidden_B1QK = hide_padding(*case)
    assert hidden_B1QK.any(-1).all()
    assert hidden_B1QK.shape == (len(case[1]), 1, *case[0].shape)


def test_a_padded_query_never_makes_attention_nan():
    visible = block_diffusion_mask(4, 2)
    is_real_BK = torch.tensor([[True, True, False, False], [False] * 4]).repeat(1, 2)
    mask = hide_padding(visible, is_real_BK)
    query = torch.randn(2, 1, 8, 4, generator=torch.Generator().manual_seed(0))
    out = torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=mask)
    assert out.isfinite().all()


def test_sdpa_gets_the_booleans_themselves():
    visible = block_diffusion_mask(3, 2)[None, None]
    assert as_attention_mask(visible, implementation="sdpa", dtype=torch.float32) is visible


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_eager_gets_numbers_to_add_and_never_booleans(dtype: torch.dtype):
    visible = block_diffusion_mask(3, 2)[None, None]
    mask = as_attention_mask(visible, implementation="eager", dtype=dtype)
    assert mask.dtype == dtype
    assert mask[visible].eq(0).all()
    assert mask[~visible].eq(torch.finfo(dtype).min).all()
    probability = torch.zeros_like(mask).add(mask).softmax(-1)
    assert probability[~visible].eq(0).all()
    assert_close(probability.float().sum(-1), torch.ones(1, 1, 6), atol=1e-2, rtol=0)


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention", ""])
def test_another_attention_is_refused_by_name(implementation: str):
    visible = block_diffusion_mask(3, 2)[None, None]
    with pytest.raises(ValueError, match=f"got '{implementation}'"):
        as_attention_mask(visible, implementation=implementation, dtype=torch.float32)


@pytest.mark.parametrize("clean_first", [False, True], ids=["noised_first", "clean_first"])
@pytest.mark.parametrize("block_size", range(1, 6))
@pytest.mark.parametrize("num_tokens", range(1, 10))
def test_one_example_a_row_sees_the_plain_mask(num_tokens: int, block_size: int, clean_first: bool):
    sight = block_sight(torch.zeros(2, num_tokens).long(), block_size, clean_first=clean_first)
    want = block_diffusion_mask(num_tokens, block_size, clean_first=clean_first)
    assert torch.equal(sight.dense(), want.expand(2, 1, -1, -1))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=4), st.integers(1, 4), st.booleans())
def test_real_queries_of_padded_rows_see_the_mask_and_padded_ones_themselves(
    lengths: list[int], block_size: int, clean_first: bool
):
    is_real_BK = torch.arange(8) < torch.tensor(lengths)[:, None]
    is_real_of_both_BK = is_real_BK.repeat(1, 2)
    visible = block_diffusion_mask(is_real_BK.shape[1], block_size, clean_first=clean_first)
    everyone = torch.ones(2 * [is_real_BK.shape[1]], dtype=torch.bool)
    sight = block_sight(torch.where(is_real_BK, 0, -1), block_size, clean_first=clean_first)
    for got, want, is_real in (
        (sight.dense(), hide_padding(visible, is_real_of_both_BK), is_real_of_both_BK),
        (full_sight(is_real_BK).dense(), hide_padding(everyone, is_real_BK), is_real_BK),
    ):
        assert torch.equal(got[:, 0][is_real], want[:, 0][is_real])
        itself = torch.eye(got.shape[-1], dtype=torch.bool).expand_as(got)
        assert torch.equal(got[:, 0][~is_real], itself[:, 0][~is_real])


@st.composite
def _packed(draw: st.DrawFn) -> Tensor:
    """Rows of up to four examples of any length one after the other, padding anywhere between."""
    rows = draw(st.integers(1, 3))
    pieces = [
        draw(st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=4))
        for _ in range(rows)
    ]
    length = max(sum(size for size, _ in row) for row in pieces)
    example_BS = torch.full((rows, length), -1)
    for b, row in enumerate(pieces):
        start = 0
        for e, (size, is_padding) in enumerate(row):
            example_BS[b, start : start + size] = -1 if is_padding else 10 * b + e
            start += size
    return example_BS


@settings(max_examples=100, deadline=None)
@given(_packed(), st.integers(1, 4), st.booleans())
def test_packed_examples_see_what_each_would_see_alone(
    example_BS: Tensor, block_size: int, clean_first: bool
):
    dense_BQK = block_sight(example_BS, block_size, clean_first=clean_first).dense()[:, 0]
    for example_S, dense_QK in zip(example_BS, dense_BQK, strict=True):
        seen_QK = torch.zeros_like(dense_QK)
        for example in example_S.unique().tolist():
            (at,) = (example_S.repeat(2) == example).nonzero(as_tuple=True)
            if example >= 0:
                alone = block_diffusion_mask(len(at) // 2, block_size, clean_first=clean_first)
            else:
                alone = torch.eye(len(at), dtype=torch.bool)
            seen_QK[at[:, None], at] = alone
        assert torch.equal(dense_QK, seen_QK)


def test_positions_start_again_at_each_example():
    example_BS = torch.tensor([[4, 4, 4, 5, 5, -1, -1], [6, 6, 6, 6, 6, 6, 7]])
    want = [[0, 1, 2, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5, 0]]
    assert position_in_example(example_BS).tolist() == want


@settings(max_examples=100, deadline=None)
@given(_packed(), st.integers(1, 4), st.integers(0, 9))
def test_places_added_to_a_row_see_and_are_seen_by_themselves_alone(
    example_BS: Tensor, block_size: int, added: int
):
    sight = block_sight(example_BS, block_size)
    length = 2 * example_BS.shape[1]
    dense = sight.extended(length + added).dense()
    assert torch.equal(dense[..., :length, :length], sight.dense())
    rest = dense.clone()
    rest[..., :length, :length] = False
    alone = torch.eye(length + added, dtype=torch.bool)
    alone[:length, :length] = False
    assert torch.equal(rest, alone.expand_as(rest))


@settings(max_examples=100, deadline=None)
@given(_packed(), st.integers(1, 4))
def test_the_rule_of_flex_attention_is_the_dense_mask(example_BS: Tensor, block_size: int):
    sight = block_sight(example_BS, block_size)
    want = sight.dense()[:, 0]
    b, q, k = torch.meshgrid(*(torch.arange(n) for n in want.shape), indexing="ij")
    assert torch.equal(mask_rule(sight)(b, torch.zeros_like(b), q, k), want)


def test_a_rule_of_one_row_serves_every_row():
    sight = block_sight(torch.zeros(1, 6).long(), 2)
    q, k = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    for row in (0, 7):
        seen = mask_rule(sight)(torch.full_like(q, row), torch.zeros_like(q), q, k)
        assert torch.equal(seen, sight.dense()[0, 0])


def test_few_padded_lengths_hold_every_length():
    lengths = {padded_length(n) for n in range(1, 8193)}
    assert len(lengths) == 12
    for num_places in range(1, 8193):
        padded = padded_length(num_places)
        assert padded % 128 == 0
        assert num_places <= padded < max(1.5 * num_places, num_places + 128)
