"""The training stream over a real cache."""

from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path

import pytest
from tiny import assert_same

from pipeline.cache.reader import CacheReader
from pipeline.stream.loader import CacheStream
from pipeline.stream.order import view_order
from pipeline.teacher_cache import run_teacher_cache
from storage_schemas.basis import Basis
from storage_schemas.errors import CacheMissingError
from storage_schemas.manifest import LedgerEntry
from storage_schemas.shard import ShardContent


class Counted(ShardContent):
    """A shard of which it is known how many are in memory."""

    num_alive = 0
    most_alive = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        Counted.num_alive += 1
        Counted.most_alive = max(Counted.most_alive, Counted.num_alive)

    def __del__(self) -> None:
        Counted.num_alive -= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CountingReader(CacheReader):
    """A reader that knows which shards it read."""

    read: list[str] = field(default_factory=list)

    def read_shard(
        self, entry: LedgerEntry, basis: Basis | None = None, *, with_top_k: bool = True
    ) -> ShardContent:
        content = CacheReader.read_shard(self, entry, basis, with_top_k=with_top_k)
        self.read.append(entry.shard)
        return Counted(**{one.name: getattr(content, one.name) for one in fields(content)})


@pytest.fixture(scope="module")
def cache(tiny, tmp_path_factory):
    """Twelve records in six shards of four views, and pipeline B's token targets."""
    recipe = tiny.recipe("b", tmp_path_factory.mktemp("cache"), **{"cache.records_per_part": 2})
    run_teacher_cache(recipe)
    return recipe.cache.path


@pytest.fixture
def reader(cache):
    plain = CacheReader.open(Path(cache))
    Counted.num_alive = Counted.most_alive = 0
    return CountingReader(store=plain.store, manifest=plain.manifest, entries=plain.entries)


def _stream(reader, batch_size=5, has_tokens=True):
    return CacheStream(reader, batch_size=batch_size, seed=3, has_tokens=has_tokens)


@pytest.mark.parametrize("has_tokens", [False, True])
@pytest.mark.parametrize("skip", [0, 1, 4, 5, 11])
def test_to_skip_batches_is_to_drop_them(reader, skip, has_tokens):
    stream = _stream(reader, has_tokens=has_tokens)
    dropped = list(islice(stream.batches(), skip, skip + 3))
    assert_same(list(islice(stream.batches(skip=skip), 3)), dropped)


def test_skipping_reads_only_the_shards_that_follow(reader):
    stream = _stream(reader, batch_size=4)
    next(stream.batches(skip=4))  # 16 of 24 views: in the third buffer of two shards
    assert len(reader.read) == 2


def test_batches_are_the_views_in_their_order(reader):
    counts = [entry.counts.num_views for entry in reader.entries]
    stream = _stream(reader)
    assert stream.num_views == sum(counts) == 24
    contents = [CacheReader.read_shard(reader, entry) for entry in reader.entries]
    order = view_order(counts, seed=3)
    for batch in islice(stream.batches(), 10):
        for record_id, view, (_, shard, row) in zip(
            batch.record_ids, batch.view_E, islice(order, 5), strict=True
        ):
            stored = contents[shard].views[row]
            assert record_id == contents[shard].examples[stored.example].record_id
            assert view == stored.corruption.view


def test_larger_batches_are_smaller_ones_one_after_the_other(reader):
    small = [batch.record_ids for batch in islice(_stream(reader, 2).batches(), 12)]
    large = [batch.record_ids for batch in islice(_stream(reader, 8).batches(), 3)]
    assert [sum(small[i : i + 4], ()) for i in (0, 4, 8)] == large


def test_no_more_than_two_shards_are_in_memory(reader):
    for _ in islice(_stream(reader).batches(), 15):
        pass
    assert len(reader.read) > 12
    assert Counted.most_alive == 2


def test_a_cache_without_a_view_is_refused(reader):
    entries = tuple(
        entry.model_copy(update={"counts": entry.counts.model_copy(update={"num_views": 0})})
        for entry in reader.entries
    )
    empty = CacheReader(store=reader.store, manifest=reader.manifest, entries=entries)
    with pytest.raises(CacheMissingError, match="expected views to train on"):
        _stream(empty)
