"""In which order views are read: micro-batches in turn from lanes of shuffled shards; endless.

Micro-batch m holds the views at places [m b, (m + 1) b) of the stream, epoch e those at
[e V, (e + 1) V). An epoch lays its shuffled shards end to end and cuts that line into L lanes; lane
l is as long as what the epoch has of the micro-batches with m mod L = l, and they alone read it.
So readers of different lanes share no shard but those at the cuts. Neighboring lanes run in
opposite directions: the shard at their cut is first in both or last in both, and one reader of
both reads it once.

All of it follows from how many views each shard holds, the seed, b and L. A resumed run finds its
place without reading what lies before it, and no number of processes changes the order.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, count
from math import gcd
from typing import cast

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """Views [start, stop) of a shard, in the order that the shard's own views have this epoch."""

    epoch: int
    shard: int
    start: int
    stop: int

    @property
    def key(self) -> "Key":
        """Which shard in which epoch."""
        return self.epoch, self.shard


Key = tuple[int, int]  # epoch, shard
_NOWHERE = (0, Take(epoch=0, shard=0, start=0, stop=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One micro-batch of a reader, with what it needs for the first and for the last time."""

    takes: tuple[Take, ...]
    opens: tuple[Key, ...]
    closes: tuple[Key, ...]


class ViewOrder:
    """The views of every micro-batch; each epoch visits each view once."""

    def __init__(
        self, views_per_shard: Sequence[int], *, seed: int, batch_size: int, num_lanes: int
    ) -> None:
        """No more lanes than there are shards with a view in them."""
        self._views_per_shard = views_per_shard
        self._num_views = sum(views_per_shard)
        assert self._num_views > 0, "there is a view to read"
        self.seed = seed
        self._batch_size = batch_size
        self.num_lanes = min(num_lanes, sum(1 for views in views_per_shard if views))
        self._epochs: dict[int, tuple[_Lane, ...]] = {}

    def micro_batch(self, number: int) -> tuple[Take, ...]:
        """What it is made of, all from lane number mod L; of several epochs where one ends."""
        lane, size = number % self.num_lanes, self._batch_size
        place, end = number * size, (number + 1) * size
        takes: list[Take] = []
        while place < end:
            epoch = place // self._num_views
            stop = min(end, (epoch + 1) * self._num_views)
            start = self._before(place, lane) - self._before(epoch * self._num_views, lane)
            takes += self._lanes(epoch)[lane].takes(start, start + stop - place)
            place = stop
        return tuple(takes)

    def cuts(self, epoch: int, shard: int) -> tuple[int, ...]:
        """Where takes begin and end in the shard's own order: 0, ..., its number of views.

        The views between two cuts stay together in one micro-batch.
        """
        found = {0, self._views_per_shard[shard]}
        for number, lane in enumerate(self._lanes(epoch)):
            if shard in lane.places:
                place, piece = lane.places[shard]
                before = self._before(epoch * self._num_views, number) + place
                first = piece.start + -before % self._batch_size
                found.update((piece.start, *range(first, piece.stop, self._batch_size)))
        return tuple(sorted(found))

    def is_used_up(self, key: Key, number: int, lanes: Sequence[int]) -> bool:
        """Whether these lanes need nothing more of a shard in an epoch after this micro-batch."""
        epoch, shard = key
        first, end = epoch * self._num_views, (number + 1) * self._batch_size
        if end >= first + self._num_views:
            return True
        for lane in lanes:
            place, piece = self._lanes(epoch)[lane].places.get(shard, _NOWHERE)
            past = self._before(end, lane) - self._before(first, lane)
            if past < place + piece.stop - piece.start:
                return False
        return True

    def _before(self, place: int, lane: int) -> int:
        """How many of the stream's places before this one belong to the lane's micro-batches."""
        rounds, rest = divmod(place, self._batch_size * self.num_lanes)
        here = min(max(rest - lane * self._batch_size, 0), self._batch_size)
        return rounds * self._batch_size + here

    def _lanes(self, epoch: int) -> tuple["_Lane", ...]:
        if epoch not in self._epochs:
            for old in [old for old in self._epochs if old < epoch - 1]:
                del self._epochs[old]
            self._epochs[epoch] = tuple(self._cut(epoch))
        return self._epochs[epoch]

    def _cut(self, epoch: int) -> Iterator["_Lane"]:
        """Shuffles the shards, lays them end to end and cuts."""
        views, first = self._views_per_shard, epoch * self._num_views
        rng = np.random.default_rng([self.seed, epoch])
        shuffled = cast("list[int]", rng.permutation(len(views)).tolist())
        shards = [shard for shard in shuffled if views[shard]]
        edges = list(accumulate((views[shard] for shard in shards), initial=0))
        stop = 0
        for lane in range(self.num_lanes):
            start = stop
            stop += self._before(first + self._num_views, lane) - self._before(first, lane)
            pieces = [
                Take(
                    epoch=epoch,
                    shard=shards[i],
                    start=max(start - edges[i], 0),
                    stop=min(stop, edges[i + 1]) - edges[i],
                )
                for i in range(bisect_right(edges, start) - 1, bisect_left(edges, stop))
            ]
            pieces = [piece for piece in pieces if piece.start < piece.stop]
            yield _Lane(pieces[::-1] if lane % 2 else pieces)


class _Lane:
    """The pieces of shards that a lane's micro-batches read in one epoch, in their order.

    places: shard -> where its piece begins in the lane, and the piece.
    """

    def __init__(self, pieces: Sequence[Take]) -> None:
        self._pieces = pieces
        self._edges = list(accumulate((p.stop - p.start for p in pieces), initial=0))
        self.places = {
            piece.shard: (place, piece) for place, piece in zip(self._edges, pieces, strict=False)
        }

    def takes(self, start: int, stop: int) -> Iterator[Take]:
        """The lane's views [start, stop)."""
        i = bisect_right(self._edges, start) - 1
        while start < stop:
            end = min(stop, self._edges[i + 1])
            offset = self._pieces[i].start - self._edges[i]
            yield replace(self._pieces[i], start=start + offset, stop=end + offset)
            start, i = end, i + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """One of those who share the micro-batches: a worker of a process.

    Process r of W has the numbers with m mod W = r, and its workers take them in turn. So each
    has lanes of its own where the number of lanes is a multiple of that of all workers.
    """

    rank: int
    world_size: int
    worker: int = 0
    num_workers: int = 1

    def numbers(self, skip: int) -> Iterator[int]:
        """Its micro-batches among those from number `skip` on, endless."""
        first = skip + (self.rank - skip) % self.world_size
        return count(first + self.world_size * self.worker, self.world_size * self.num_workers)

    def num_lanes(self, order: ViewOrder) -> int:
        """How many lanes it reads from, and so how many shards at a time."""
        return order.num_lanes // self._between(order)

    def steps(self, order: ViewOrder, skip: int) -> Iterator[Step]:
        """Its micro-batches, endless; a shard is opened once an epoch."""
        numbers = self.numbers(skip)
        number = next(numbers)
        between = self._between(order)
        lanes = range(number % between, order.num_lanes, between)
        held: dict[Key, None] = {}  # in the order of their opening
        while True:
            takes = order.micro_batch(number)
            opens = tuple(key for key in dict.fromkeys(t.key for t in takes) if key not in held)
            held |= dict.fromkeys(opens)
            closes = tuple(key for key in held if order.is_used_up(key, number, lanes))
            for key in closes:
                del held[key]
            yield Step(takes=takes, opens=opens, closes=closes)
            number = next(numbers)

    def _between(self, order: ViewOrder) -> int:
        return gcd(self.world_size * self.num_workers, order.num_lanes)
