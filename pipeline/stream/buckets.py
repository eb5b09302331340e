"""A shard's own order in an epoch: shuffled, if asked with views of like length in one micro-batch.

Padding is what a micro-batch of unlike lengths costs. But the loss is a mean over a step's own
tokens, so in a step of short views each token weighs more. Views of one example are all of one
length: so that they do not end up in one micro-batch, a shard's views come in rounds with one view
of each example, and only a part of a round is sorted at a time.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import numpy as np
from numpy.typing import NDArray

WINDOW = 16  # most groups that are sorted together


def shuffled(num_views: int, *, seed: int, epoch: int, shard: int) -> NDArray[np.intp]:
    """Every view of the shard once."""
    return _generator(seed, epoch, shard).permutation(num_views)


def bucketed(
    lengths: Sequence[int],
    examples: Sequence[int],
    cuts: Sequence[int],
    *,
    seed: int,
    epoch: int,
    shard: int,
) -> NDArray[np.intp]:
    """Every view of the shard once; of each window of groups, each holds neighbors in length.

    lengths, examples: of each view, how long it is and which example it is a view of.

    A group is what lies between two cuts. Which views make a window, and which of its groups get
    the short ones, is drawn anew each epoch.
    """
    assert (cuts[0], cuts[-1]) == (0, len(lengths)), "cuts span the shard"
    rng = _generator(seed, epoch, shard)
    mixed = rng.permutation(len(lengths))
    mixed = mixed[np.argsort(_rounds(np.asarray(examples)[mixed]), kind="stable")]
    length_of = np.asarray(lengths)
    order = np.empty_like(mixed)
    groups = list(pairwise(cuts))
    largest = max(stop - start for start, stop in groups)
    per_window = max(1, min(WINDOW, len(set(examples)) // largest))  # no more than a round
    for first in range(0, len(groups), per_window):
        window = groups[first : first + per_window]
        views = mixed[window[0][0] : window[-1][1]]
        views = views[np.argsort(length_of[views], kind="stable")]
        for g in cast("list[int]", rng.permutation(len(window)).tolist()):
            start, stop = window[g]
            order[start:stop], views = views[: stop - start], views[stop - start :]
    return order


def _generator(seed: int, epoch: int, shard: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch, shard + 1])  # [seed, epoch, 0] is [seed, epoch]


def _rounds(example_V: NDArray[np.int_]) -> NDArray[np.intp]:
    """How many earlier views of the same example there are."""
    order_V = np.argsort(example_V, kind="stable")
    sorted_V = example_V[order_V]
    round_V = np.empty_like(order_V)
    round_V[order_V] = np.arange(len(order_V)) - np.searchsorted(sorted_V, sorted_V)
    return round_V
