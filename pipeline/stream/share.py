"""What one reader makes of a cache: its share of the micro-batches, in this process or a worker."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.reader import CacheReader
from pipeline.stream.ahead import ReadAhead
from pipeline.stream.buckets import bucketed, shuffled
from pipeline.stream.collate import View
from pipeline.stream.order import Key, Reader, Step, Take, ViewOrder
from storage_schemas.batch import Batch
from storage_schemas.shard import ShardContent
from storage_schemas.sketch_coder import SketchCoder


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenShard:
    """A shard in memory, and the order of its views in one epoch."""

    content: ShardContent
    order_V: NDArray[np.intp]

    def views(self, take: Take) -> Iterator[View]:
        """Those of one take."""
        rows = cast("list[int]", self.order_V[take.start : take.stop].tolist())
        for row in rows:
            stored = self.content.views[row]
            yield View(
                pair=self.content.examples[stored.example],
                corruption=stored.corruption,
                targets=stored.targets,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One process's part of the micro-batches from number `skip` on.

    It is sent to workers as it is: they open the cache by its address. `then` is done last, to each
    batch.
    """

    reader: CacheReader
    order: ViewOrder
    has_tokens: bool
    coder: SketchCoder | None
    collate: Callable[[Sequence[View]], Batch]
    rank: int
    world_size: int
    has_buckets: bool
    skip: int = 0
    then: Callable[[Batch], Any] | None = None

    def batches(self, *, worker: int = 0, num_workers: int = 1) -> Generator[Any]:
        """All of the process's, or those of one of its workers; closing it ends its thread."""
        reader = Reader(
            rank=self.rank, world_size=self.world_size, worker=worker, num_workers=num_workers
        )
        steps = reader.steps(self.order, self.skip)
        ahead = ReadAhead(steps, self._open, depth=reader.num_lanes(self.order))
        return ahead.results(self._make)

    def _make(self, step: Step, held: Mapping[Key, OpenShard]) -> Any:
        """One batch; no array of a shard lives on in it."""
        batch = self.collate([view for take in step.takes for view in held[take.key].views(take)])
        return batch if self.then is None else self.then(batch)

    def _open(self, key: Key) -> OpenShard:
        epoch, shard = key
        content = self.reader.read_shard(
            self.reader.entries[shard], self.coder, with_top_k=self.has_tokens
        )
        return OpenShard(content=content, order_V=self._order(content, epoch, shard))

    def _order(self, content: ShardContent, epoch: int, shard: int) -> NDArray[np.intp]:
        seeds = {"seed": self.order.seed, "epoch": epoch, "shard": shard}
        if not self.has_buckets:
            return shuffled(len(content.views), **seeds)
        examples = [view.example for view in content.views]
        lengths = [len(content.examples[example].student_ids_S) for example in examples]
        return bucketed(lengths, examples, self.order.cuts(epoch, shard), **seeds)
