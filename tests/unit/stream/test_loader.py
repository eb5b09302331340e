"""The training stream over a real cache."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import fields
from itertools import islice
from pathlib import Path
from queue import Queue

import numpy as np
import psutil
import pytest
import torch
from reading import NotingReader, names_and_place
from tiny import assert_same

from pipeline.cache.reader import CacheReader
from pipeline.stream.loader import CacheStream
from pipeline.stream.order import ViewOrder
from pipeline.teacher_cache import run_teacher_cache
from storage_schemas.basis import Basis
from storage_schemas.errors import CacheCorruptError, CacheMissingError, LoaderError
from storage_schemas.manifest import LedgerEntry
from storage_schemas.shard import ShardContent
from storage_schemas.sketch_coder import NUM_CLASSES, NUM_TABLES, PRECISION, TOP, SketchCoder

RUN = """
import sys
from pipeline.cache.reader import CacheReader
from pipeline.stream.loader import CacheStream
if __name__ == "__main__":
    reader = CacheReader.open(sys.argv[1])
    stream = CacheStream(reader, batch_size=5, seed=3, has_tokens=True, workers=1)
    batches = stream.batches()
    next(batches)
    print("reads", flush=True)
    sys.stdin.readline()
"""


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


class CountingReader(CacheReader):
    """A reader whose shards are counted while they live."""

    def read_shard(self, entry: LedgerEntry, *args, **options) -> ShardContent:
        content = CacheReader.read_shard(self, entry, *args, **options)
        return Counted(**{one.name: getattr(content, one.name) for one in fields(content)})


@pytest.fixture(scope="module")
def cache(tiny, tmp_path_factory):
    """Twelve records in six shards of four views, and pipeline B's token targets."""
    recipe = tiny.recipe("b", tmp_path_factory.mktemp("cache"), **{"cache.records_per_part": 2})
    run_teacher_cache(recipe)
    return Path(recipe.cache.path)


@pytest.fixture
def reader(cache, tmp_path):
    return NotingReader.over(CacheReader.open(cache), tmp_path / "notes")


def _stream(reader, batch_size=5, has_tokens=True, **options):
    return CacheStream(reader, batch_size=batch_size, seed=3, has_tokens=has_tokens, **options)


def _names(batch):
    return names_and_place(batch)[0]


def _children():
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.mark.parametrize("has_tokens", [False, True])
@pytest.mark.parametrize("skip", [0, 1, 4, 5, 11])
def test_to_skip_batches_is_to_drop_them(reader, skip, has_tokens):
    stream = _stream(reader, has_tokens=has_tokens)
    dropped = list(islice(stream.batches(), skip, skip + 3))
    assert_same(list(islice(stream.batches(skip=skip), 3)), dropped)


@pytest.mark.parametrize("has_buckets", [False, True])
def test_each_epoch_brings_each_view_once(reader, has_buckets):
    stream = _stream(reader, has_buckets=has_buckets)
    names = [name for batch in islice(stream.batches(), 24) for name in _names(batch)]
    entries = [CacheReader.read_shard(reader, entry) for entry in reader.entries]
    every = sorted(
        (content.examples[view.example].record_id, view.corruption.view)
        for content in entries
        for view in content.views
    )
    assert len(every) == 24
    for epoch in range(5):
        assert sorted(names[epoch * 24 : (epoch + 1) * 24]) == every


def test_no_batch_in_buckets_holds_two_views_of_one_example(reader):
    """Which a plain order has: two records of two views a shard."""

    def twice(*, has_buckets):
        stream = _stream(reader, batch_size=2, lanes=1, has_buckets=has_buckets)
        return sum(len(set(b.record_ids)) < 2 for b in islice(stream.batches(), 12 * 4))

    assert twice(has_buckets=True) == 0
    assert twice(has_buckets=False) > 0


def test_a_batch_is_of_the_shards_that_the_order_names(reader):
    counts = [entry.counts.num_views for entry in reader.entries]
    order = ViewOrder(counts, seed=3, batch_size=5, num_lanes=2)
    shard_of = {
        pair.record_id: shard
        for shard, entry in enumerate(reader.entries)
        for pair in CacheReader.read_shard(reader, entry).examples
    }
    for number, batch in enumerate(islice(_stream(reader, lanes=2).batches(), 12)):
        takes = order.micro_batch(number)
        want = [take.shard for take in takes for _ in range(take.start, take.stop)]
        assert [shard_of[record_id] for record_id in batch.record_ids] == want


@pytest.mark.parametrize("skip", [0, 3])
@pytest.mark.parametrize(("world_size", "later"), [(1, 3), (2, 1), (3, 4), (4, 2)])
def test_processes_share_the_batches_also_when_their_number_changes(
    reader, world_size, later, skip
):
    whole = list(islice(_stream(reader).batches(), 24))
    for number_of, first, stop in ((world_size, 0, 12), (later, 12, 24)):
        shares = [
            _stream(reader, rank=rank, world_size=number_of).batches(skip=first)
            for rank in range(number_of)
        ]
        for number in range(first, stop):
            assert_same(next(shares[number % number_of]), whole[number])
    share = _stream(reader, rank=1, world_size=2).batches(skip=skip)
    assert_same(next(share), whole[skip + (1 - skip) % 2])


def test_skipping_reads_only_the_shards_that_follow(reader):
    order = ViewOrder([4] * 6, seed=3, batch_size=4, num_lanes=1)
    stream = _stream(reader, batch_size=4, lanes=1)
    for batch in stream.batches(skip=4):  # 16 of 24 views
        assert len(batch.record_ids) == 4
        break
    stream.close()
    following = [take.shard for number in (4, 5) for take in order.micro_batch(number)]
    names = [reader.entries[shard].shard for shard in following]
    assert [shard for shard, _ in reader.read()] in (names[:1], names)  # the second was read ahead


def test_each_shard_is_read_once_an_epoch_by_one_process(reader, tmp_path):
    readers = [NotingReader.over(reader, tmp_path / f"notes-{rank}") for rank in range(2)]
    for rank, one in enumerate(readers):
        stream = _stream(one, batch_size=2, lanes=2, rank=rank, world_size=2)
        list(islice(stream.batches(), 6))  # 24 views in twelve batches
    first = Counter(shard for one in readers for shard, _ in one.read()[:3])
    assert first == {entry.shard: 1 for entry in reader.entries}


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_memory_holds_the_open_shards_and_as_many_that_come_next(cache, lanes):
    plain = CacheReader.open(cache)
    reader = CountingReader(store=plain.store, manifest=plain.manifest, entries=plain.entries)
    Counted.num_alive = Counted.most_alive = 0
    stream = _stream(reader, batch_size=2, lanes=lanes)
    for _ in islice(stream.batches(), 60):
        pass
    assert lanes <= Counted.most_alive <= 2 * lanes


def test_the_next_shard_is_read_while_a_batch_is_looked_at(cache):
    plain = CacheReader.open(cache)
    read: Queue[str] = Queue()

    class TellingReader(CacheReader):
        def read_shard(self, entry: LedgerEntry, *args, **options) -> ShardContent:
            content = CacheReader.read_shard(self, entry, *args, **options)
            read.put(entry.shard)
            return content

    reader = TellingReader(store=plain.store, manifest=plain.manifest, entries=plain.entries)
    batches = _stream(reader, batch_size=2, lanes=1).batches()
    next(batches)
    first, second = (read.get(timeout=60) for _ in range(2))
    assert first != second
    assert read.empty()


def test_it_leaves_alone_the_generator_that_dropout_draws_from(reader):
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    next(_stream(reader).batches())
    torch.testing.assert_close(torch.rand(3), want, rtol=0, atol=0)


def test_a_cache_without_a_view_is_refused(reader):
    entries = tuple(
        entry.model_copy(update={"counts": entry.counts.model_copy(update={"num_views": 0})})
        for entry in reader.entries
    )
    empty = CacheReader(store=reader.store, manifest=reader.manifest, entries=entries)
    with pytest.raises(CacheMissingError, match="expected views to train on"):
        _stream(empty)


def test_workers_bring_what_the_process_itself_would_and_each_reads_shards_of_its_own(reader):
    own = _stream(reader, batch_size=2, lanes=2)
    want = [names_and_place(batch)[0] for batch in islice(own.batches(), 12, 36)]
    own.close()
    before, seen = _children(), len(reader.read())
    with _stream(reader, batch_size=2, lanes=2, workers=2) as stream:
        found = list(islice(stream.batches(skip=12, then=names_and_place), 24))
        workers = _children() - before
        assert [names for names, _, _ in found] == want
        assert {process for _, process, _ in found} <= workers  # one more may track resources
        assert {threads for _, _, threads in found} == {1}
    assert not {process for _, process, _ in found} & _children()
    notes = reader.read()[seen:]
    by_process = {process: [] for _, process, _ in found}
    for shard, process in notes:
        by_process[process].append(shard)
    first_epoch = [shard for shards in by_process.values() for shard in shards[:3]]
    assert sorted(first_epoch) == [entry.shard for entry in reader.entries]


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_is_the_same_error_from_a_worker(cache, tmp_path, workers):
    copy = tmp_path / "cache"
    shutil.copytree(cache, copy)
    reader = CacheReader.open(copy)
    damaged = copy / "shards" / reader.entries[-1].shard / "chunks.parquet"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    stream = _stream(reader, workers=workers)
    with pytest.raises(CacheCorruptError) as error:
        list(islice(stream.batches(), 12))
    assert str(error.value).startswith(f"shard {reader.entries[-1].shard} of {copy}: expected")
    assert "run 'tidecache teacher-cache' again: it makes this shard anew" in str(error.value)
    assert "Traceback" not in str(error.value)


def test_a_killed_worker_is_an_error_that_says_what_to_do(reader):
    with _stream(reader, workers=1) as stream:
        batches = stream.batches(then=names_and_place)
        _, worker, _ = next(batches)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(LoaderError, match=r"(?s)to live as long.*lower train.loader_workers"):
            list(islice(batches, 50))


def test_workers_leave_ctrl_c_to_the_run(reader):
    with _stream(reader, workers=1) as stream:
        batches = stream.batches(then=names_and_place)
        _, worker, _ = next(batches)
        os.kill(worker, signal.SIGINT)
        assert {process for _, process, _ in islice(batches, 12)} == {worker}


def test_workers_end_when_the_run_is_killed(cache):
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, str(cache)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout.readline() == "reads\n"
    workers = psutil.Process(run.pid).children(recursive=True)
    assert workers
    run.kill()
    run.communicate()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def test_of_the_basis_workers_are_sent_the_coder_alone(reader):
    frequency_BA = np.zeros((NUM_TABLES, 2 * TOP + 1), np.uint16)
    frequency_BA[:, TOP] = 1 << PRECISION
    rank, vocab_size = 8, 200_000
    basis = Basis(
        mean_H=np.zeros(16, np.float32),
        encode_HR=np.zeros((16, rank), np.float32),
        scale_R=np.ones(rank, np.float32),
        decode_RV=np.zeros((rank, vocab_size), np.float16),
        base_V=np.zeros(vocab_size, np.float32),
        bias_V=np.zeros(vocab_size, np.float32),
        step=0.1,
        temperature=1.0,
        coder=SketchCoder(
            shift_R=np.zeros(rank, np.uint8),
            weight_R=np.zeros(rank, np.int32),
            mean_R=np.zeros(rank, np.int32),
            table_RG=np.zeros((rank, NUM_CLASSES), np.uint8),
            frequency_BA=frequency_BA,
        ),
    )
    bare, with_basis = (len(pickle.dumps(_stream(reader, basis=one))) for one in (None, basis))
    assert 0 < with_basis - bare < 100_000 < basis.decode_RV.nbytes
