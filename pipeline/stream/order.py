"""In which order views are read: shards shuffled, then views within a buffer of shards; endless.

The order is a function of the seed and of how many views each shard holds, so a resumed run finds
its place without reading what lies before it.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np


def view_order(
    views_per_shard: Sequence[int], *, seed: int, buffer_shards: int = 2, skip: int = 0
) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """Endless (buffer, shard, row): each epoch visits each view once; the first `skip` left out.

    `buffer` names the shards that must be in memory for this view, the same tuple for a whole run
    of views.
    """
    assert sum(views_per_shard) > 0, "there is a view to read"
    epoch = 0
    while True:
        rng = np.random.default_rng([seed, epoch])
        shards = _permutation(rng, len(views_per_shard))
        for start in range(0, len(shards), buffer_shards):
            buffer = tuple(shards[start : start + buffer_shards])
            places = [(shard, row) for shard in buffer for row in range(views_per_shard[shard])]
            order = _permutation(rng, len(places))
            for place in order[skip:] if skip < len(order) else ():
                yield (buffer, *places[place])
            skip = max(0, skip - len(order))
        epoch += 1


def _permutation(rng: np.random.Generator, count: int) -> list[int]:
    return cast("list[int]", rng.permutation(count).tolist())
