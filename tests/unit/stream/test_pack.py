"""Packing: views stay whole and apart, and never cost more than a row each."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stream.pack import Packing, pack

BLOCK = 8


def _share_saved(packing: Packing, lengths: list[int]) -> float:
    """The share of a batch's tokens, padding included, that packing spares."""
    return 1 - packing.num_rows * packing.row_length / (len(lengths) * max(lengths))


@st.composite
def _views(draw: st.DrawFn) -> tuple[list[int], int]:
    """Lengths of whole blocks, and a capacity of whole blocks that holds each of them."""
    blocks = draw(st.lists(st.integers(1, 16), min_size=1, max_size=12))
    capacity = draw(st.integers(max(blocks), 20))
    return [BLOCK * n for n in blocks], BLOCK * capacity


@settings(max_examples=200, deadline=None)
@given(_views())
def test_every_view_has_places_of_its_own_inside_the_rows(case: tuple[list[int], int]):
    lengths, capacity = case
    packing = pack(lengths, capacity)
    assert packing.row_length <= capacity
    taken_RS = np.zeros((packing.num_rows, packing.row_length), int)
    for row, start, length in zip(packing.row_E, packing.start_E, lengths, strict=True):
        assert start + length <= packing.row_length
        taken_RS[row, start : start + length] += 1
    assert taken_RS.max() == 1
    assert taken_RS.sum() == sum(lengths)


@settings(max_examples=200, deadline=None)
@given(_views())
def test_rows_are_filled_from_the_left_with_whole_blocks(case: tuple[list[int], int]):
    lengths, capacity = case
    packing = pack(lengths, capacity)
    assert (packing.start_E % BLOCK == 0).all()
    assert packing.row_length % BLOCK == 0
    end_R = np.zeros(packing.num_rows, int)
    for e in packing.order_E:
        assert packing.start_E[e] == end_R[packing.row_E[e]], "a gap before a view"
        end_R[packing.row_E[e]] += lengths[e]
    assert end_R.min() > 0
    assert end_R.max() == packing.row_length


@settings(max_examples=200, deadline=None)
@given(_views())
def test_packing_never_costs_more_than_a_row_for_each_view(case: tuple[list[int], int]):
    lengths, capacity = case
    packing = pack(lengths, capacity)
    saved = _share_saved(packing, lengths)
    assert 0 <= saved < 1
    size = packing.num_rows * packing.row_length
    assert size >= sum(lengths)
    assert saved == pytest.approx(1 - size / (len(lengths) * max(lengths)))


@settings(max_examples=100, deadline=None)
@given(_views())
def test_the_same_views_are_packed_the_same_way(case: tuple[list[int], int]):
    first, second = pack(*case), pack(*case)
    assert first.row_E.tolist() == second.row_E.tolist()
    assert first.start_E.tolist() == second.start_E.tolist()


@settings(max_examples=100, deadline=None)
@given(_views())
def test_more_room_never_costs_more(case: tuple[list[int], int]):
    lengths, capacity = case
    tight, wide = pack(lengths, capacity), pack(lengths, 2 * capacity)
    assert wide.num_rows * wide.row_length <= tight.num_rows * tight.row_length


def test_short_views_share_the_row_that_a_long_one_needs_anyway():
    # rows of 64: the long one, and 32 + 24 + 8 side by side
    packing = pack([24, 64, 8, 32], 64)
    assert (packing.num_rows, packing.row_length) == (2, 64)
    assert packing.row_E.tolist() == [1, 0, 1, 1]
    assert packing.start_E.tolist() == [32, 0, 56, 0]
    assert packing.order_E == [1, 3, 0, 2]
    assert _share_saved(packing, [24, 64, 8, 32]) == 0.5


def test_rows_no_longer_than_they_need_be_are_preferred_to_full_ones():
    # in rows of 64 the third view would leave half a row empty: 128 tokens for 96
    packing = pack([32, 32, 32], 64)
    assert (packing.num_rows, packing.row_length) == (3, 32)
    assert _share_saved(packing, [32, 32, 32]) == 0


@pytest.mark.parametrize(("lengths", "capacity"), [([], 8), ([16], 8), ([0, 8], 8)])
def test_what_cannot_be_packed_is_refused(lengths: list[int], capacity: int):
    with pytest.raises(AssertionError, match=r"no view|no tokens|do not fit"):
        pack(lengths, capacity)
