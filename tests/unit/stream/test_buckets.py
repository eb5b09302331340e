"""A shard's own order: every view once, and like lengths together."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.stream.buckets import WINDOW, bucketed
from pipeline.stream.order import ViewOrder


def _padded(lengths, order, cuts):
    """Cells of the batches between cuts, padded to their longest."""
    rows = [lengths[order[start:stop]] for start, stop in pairwise(cuts)]
    return sum(len(row) * row.max() for row in rows)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=90), st.data())
def test_every_view_is_there_once_whatever_the_cuts(lengths, data):
    inner = data.draw(st.sets(st.integers(1, len(lengths)), max_size=30))
    cuts = sorted({0, len(lengths), *inner})
    examples = data.draw(st.lists(st.integers(0, 9), min_size=len(lengths), max_size=len(lengths)))
    order = bucketed(lengths, examples, cuts, seed=0, epoch=1, shard=2)
    assert sorted(order.tolist()) == list(range(len(lengths)))


@given(st.lists(st.integers(1, 40), min_size=2, max_size=90), st.integers(1, 9))
def test_groups_of_a_window_do_not_overlap_in_length(lengths, size):
    cuts = [*range(0, len(lengths), size), len(lengths)]
    order = bucketed(lengths, range(len(lengths)), cuts, seed=0, epoch=0, shard=0)
    spans = [
        (min(lengths[i] for i in order[start:stop]), max(lengths[i] for i in order[start:stop]))
        for start, stop in pairwise(cuts)
    ]
    per_window = min(WINDOW, max(1, len(lengths) // size))
    for first in range(0, len(spans), per_window):
        rising = sorted(spans[first : first + per_window])
        assert all(low[1] <= high[0] for low, high in pairwise(rising))


@pytest.mark.parametrize("num_examples", [16, 128])
def test_views_of_one_example_are_in_batches_of_their_own(num_examples):
    examples = np.repeat(np.arange(num_examples), 4)
    lengths = 32 * (1 + examples % 8)
    cuts = range(0, 4 * num_examples + 1, 8)
    order = bucketed(lengths.tolist(), examples.tolist(), cuts, seed=0, epoch=0, shard=0)
    for start, stop in pairwise(cuts):
        assert len(set(examples[order[start:stop]])) == 8


def test_epochs_shards_and_seeds_have_orders_of_their_own():
    def order(seed=0, epoch=0, shard=0):
        cuts = range(0, 65, 8)
        return tuple(
            bucketed([1] * 64, range(64), cuts, seed=seed, epoch=epoch, shard=shard).tolist()
        )

    assert order() == order()
    assert len({order(), order(seed=1), order(epoch=1), order(shard=1)}) == 4


def test_short_and_long_groups_come_in_no_order():
    lengths = np.arange(256) % 64
    order = bucketed(lengths.tolist(), range(256), range(0, 257, 8), seed=0, epoch=0, shard=0)
    means = lengths[order].reshape(-1, 8).mean(1)
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.5


@pytest.mark.parametrize("num_shards", [5, 12])
def test_the_streams_own_cuts_leave_little_padding(num_shards):
    """Lengths of prompts and answers as they are: about log-normal, cut at 512, whole blocks."""
    rng = np.random.default_rng(0)
    drawn = np.exp(rng.normal(5.3, 0.6, (num_shards, 256))).clip(32, 512)
    lengths = (np.ceil(drawn / 32) * 32).astype(int)
    order = ViewOrder([256] * num_shards, seed=0, batch_size=8, num_lanes=4)
    padded = shuffled = 0
    for shard in range(num_shards):
        cuts = order.cuts(0, shard)
        own = bucketed(lengths[shard].tolist(), range(256), cuts, seed=0, epoch=0, shard=shard)
        padded += _padded(lengths[shard], own, cuts)
        shuffled += _padded(lengths[shard], rng.permutation(256), cuts)
    waste, waste_before = padded / lengths.sum() - 1, shuffled / lengths.sum() - 1
    assert waste < waste_before / 4
