"""The training stream: whole shards read from a cache, as batches in a seeded order."""

from collections.abc import Iterator

from pipeline.cache.reader import CacheReader
from pipeline.stream.collate import View, collate
from pipeline.stream.order import view_order
from storage_schemas.basis import Basis
from storage_schemas.batch import Batch
from storage_schemas.errors import CacheMissingError
from storage_schemas.shard import ShardContent


class CacheStream:
    """Endless batches of `batch_size` views; batches run on over the ends of epochs."""

    def __init__(
        self,
        reader: CacheReader,
        *,
        batch_size: int,
        seed: int,
        has_tokens: bool,
        basis: Basis | None = None,
    ) -> None:
        """`has_tokens` brings the token targets along, their sketches decoded with the basis."""
        self._reader = reader
        self._batch_size = batch_size
        self._seed = seed
        self._has_tokens = has_tokens
        self._basis = basis if has_tokens else None
        self.num_views = sum(entry.counts.num_views for entry in reader.entries)
        if self.num_views == 0:
            raise CacheMissingError(
                f"{reader.address}: expected views to train on, got a cache whose records were all "
                f"skipped; 'tidecache inspect' tells why"
            )

    def batches(self, *, skip: int = 0) -> Iterator[Batch]:
        """Batches from number `skip` on, without reading the shards that lie wholly before it."""
        counts = [entry.counts.num_views for entry in self._reader.entries]
        held: dict[int, ShardContent] = {}
        views: list[View] = []
        for buffer, shard, row in view_order(counts, seed=self._seed, skip=skip * self._batch_size):
            if held.keys() != set(buffer):
                self._exchange(held, buffer)
            stored = held[shard].views[row]
            views.append(
                View(
                    pair=held[shard].examples[stored.example],
                    corruption=stored.corruption,
                    targets=stored.targets,
                )
            )
            if len(views) == self._batch_size:
                yield collate(views, has_tokens=self._has_tokens)
                views = []

    def _exchange(self, held: dict[int, ShardContent], buffer: tuple[int, ...]) -> None:
        """Hold the shards of one buffer; the others go first, so memory never holds both."""
        for i in held.keys() - buffer:
            del held[i]
        for i in buffer:
            if i not in held:
                held[i] = self._reader.read_shard(
                    self._reader.entries[i], self._basis, with_top_k=self._has_tokens
                )
