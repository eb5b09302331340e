"""The order in which views are read."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.stream.order import view_order

counts = st.lists(st.integers(0, 6), min_size=1, max_size=7).filter(sum)


def _take(views_per_shard, number, **options):
    return list(islice(view_order(views_per_shard, **options), number))


@given(counts, st.integers(0, 5), st.integers(1, 4))
def test_each_epoch_visits_each_view_once(views_per_shard, seed, buffer_shards):
    total = sum(views_per_shard)
    drawn = _take(views_per_shard, 3 * total, seed=seed, buffer_shards=buffer_shards)
    every = [(shard, row) for shard, count in enumerate(views_per_shard) for row in range(count)]
    for start in range(0, 3 * total, total):
        assert sorted((s, r) for _, s, r in drawn[start : start + total]) == every


@given(counts, st.integers(0, 5), st.integers(1, 4), st.integers(0, 60))
def test_to_skip_is_to_drop(views_per_shard, seed, buffer_shards, skip):
    options = {"seed": seed, "buffer_shards": buffer_shards}
    dropped = _take(views_per_shard, skip + 10, **options)[skip:]
    assert _take(views_per_shard, 10, skip=skip, **options) == dropped


@given(counts, st.integers(0, 5), st.integers(1, 4))
def test_a_view_lies_in_its_buffer_and_a_buffer_is_never_returned_to_in_an_epoch(
    views_per_shard, seed, buffer_shards
):
    total = sum(views_per_shard)
    drawn = _take(views_per_shard, total, seed=seed, buffer_shards=buffer_shards)
    seen: list[tuple[int, ...]] = []
    for buffer, shard, _ in drawn:
        assert shard in buffer
        assert len(buffer) <= buffer_shards
        if not seen or seen[-1] != buffer:
            seen.append(buffer)
    assert len(seen) == len(set(seen))


def test_the_seed_alone_decides_the_order():
    first, again, other = (_take([5, 3, 9], 17, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_epochs_differ():
    drawn = _take([5, 3, 9], 34, seed=1)
    assert drawn[:17] != drawn[17:]


def test_views_of_the_shards_in_a_buffer_are_mixed():
    drawn = _take([50, 50], 100, seed=0)
    assert 20 < sum(shard for _, shard, _ in drawn[:50]) < 30


def test_a_cache_without_views_is_a_mistake_of_the_caller():
    with pytest.raises(AssertionError, match="a view to read"):
        next(view_order([0, 0], seed=0))
