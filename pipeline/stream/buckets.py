"""A shard's own order in an epoch: shuffled, with views of like length in one micro-batch.

Padding is what a micro-batch of unlike lengths costs. Sorting a whole shard would save a little
more of it, and would put most views of one example into one micro-batch.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

WINDOW = 16  # groups that are sorted together


def bucketed(
    lengths: Sequence[int], cuts: Sequence[int], *, seed: int, epoch: int, shard: int
) -> NDArray[np.intp]:
    """Every view of the shard once; of each window of groups, each holds neighbors in length.

    A group is what lies between two cuts. Which views make a window, and which of its groups get
    the short ones, is drawn anew each epoch.
    """
    assert (cuts[0], cuts[-1]) == (0, len(lengths)), "cuts span the shard"
    rng = np.random.default_rng([seed, epoch, shard + 1])  # [seed, epoch, 0] is [seed, epoch]
    shuffled = rng.permutation(len(lengths))
    length_of = np.asarray(lengths)
    groups = [slice(*pair) for pair in pairwise(cuts)]
    order = np.empty_like(shuffled)
    for first in range(0, len(groups), WINDOW):
        window = groups[first : first + WINDOW]
        views = shuffled[window[0].start : window[-1].stop]
        views = views[np.argsort(length_of[views], kind="stable")]
        for g in rng.permutation(len(window)).tolist():
            size = window[g].stop - window[g].start
            order[window[g]], views = views[:size], views[size:]
    return order
