"""Commits to an object store whose answers are lost, raced or refused."""

import numpy as np
import obstore
import pytest
from cache_content import LAYOUT, VOCABULARIES, content_of, identity_of, same

from pipeline.cache.ledger import read_manifest, replace_manifest
from pipeline.cache.object_store import ObjectStore
from pipeline.cache.reader import CacheReader
from pipeline.cache.writer import CacheWriter
from pipeline.storage.connection import connect
from storage_schemas.errors import (
    CacheCorruptError,
    CacheWriteError,
    RecipeError,
    StoreConnectionError,
)

IDENTITY = identity_of(top_k=2)


@pytest.fixture
def address(bucket) -> str:
    return f"{bucket}/cache"


def content(seed: int = 0, **views: int):
    return content_of(np.random.default_rng(seed), IDENTITY, num_examples=2, **views)


def open_writer(address: str) -> CacheWriter:
    return CacheWriter.open(address, IDENTITY, LAYOUT, VOCABULARIES)


def objects_under(address: str, folder: str) -> list[str]:
    return [meta["path"] for meta in obstore.list(connect(address), folder).collect()]


def test_a_shard_lies_under_a_prefix_of_its_own_that_its_entry_names(address):
    with open_writer(address) as writer:
        entry = writer.commit(content())
    assert entry.folder.rpartition("/")[0] == f"shards/{entry.shard}"
    listed = sorted(file.path for file in entry.files)
    assert sorted(objects_under(address, "shards")) == listed
    reader = CacheReader.open(address)
    assert reader.entries == (entry,)
    assert same(reader.read_shard(entry), content())


def test_the_entry_is_put_last(address, s3_server):
    puts: list[str] = []

    def note(method: str, path: str) -> None:
        if method == "PUT":
            puts.append(path.split("/cache/")[1])

    s3_server.after = note
    with open_writer(address) as writer:
        entry = writer.commit(content())
    assert [path.split("/")[0] for path in puts[:3]] == [
        "common",
        "common",
        "manifest.json",
    ]
    assert sorted(puts[3:-1]) == sorted(file.path for file in entry.files)
    assert puts[-1] == f"ledger/{entry.shard}.json"


def test_the_second_of_two_writers_gets_the_first_ones_entry_and_removes_its_own(address):
    with open_writer(address) as one, open_writer(address) as other:
        entry = one.commit(content(seed=0))
        assert other.commit(content(seed=1)) == entry
    assert sorted(objects_under(address, "shards")) == sorted(f.path for f in entry.files)
    reader = CacheReader.open(address)
    assert same(reader.read_shard(entry), content(seed=0))


@pytest.mark.parametrize("where", ["ledger/p00000-v0000-0002.json", "manifest.json"])
def test_a_conditional_put_whose_answer_is_lost_is_known_for_ones_own(address, s3_server, where):
    lost: list[str] = []

    def lose_once(method: str, path: str) -> int | None:
        if method == "PUT" and path.endswith(where) and not lost:
            lost.append(path)
            return 503  # done, but the client is told otherwise, and puts it again
        return None

    s3_server.after = lose_once
    with open_writer(address) as writer:
        entry = writer.commit(content())
    assert len(lost) == 1
    assert same(CacheReader.open(address).read_shard(entry), content())  # nothing of it was removed


def test_two_writers_of_overlapping_views_never_both_stay(address, s3_server):
    one, other = open_writer(address), open_writer(address)

    def second_puts_in_between(method: str, path: str) -> None:
        if method == "PUT" and path.endswith("ledger/p00000-v0000-0003.json"):
            s3_server.before = None
            other.commit(content(view_start=2, view_stop=4))

    s3_server.before = second_puts_in_between
    with pytest.raises(CacheWriteError, match="views 2 to 3 of part 0 committed by another writer"):
        one.commit(content(view_start=0, view_stop=3))
    reader = CacheReader.open(address)
    assert [entry.shard for entry in reader.entries] == ["p00000-v0002-0004"]
    assert one.missing_views(0, 4) == [range(2)]


def test_a_shards_missing_or_cut_object_is_found_at_opening(address):
    with open_writer(address) as writer:
        entry = writer.commit(content())
    store, path = connect(address), entry.files[0].path
    data = obstore.get(store, path).bytes().to_bytes()
    obstore.put(store, path, data[:-1])
    with pytest.raises(CacheCorruptError, match=f"expected {path} of {len(data)} bytes, got"):
        CacheReader.open(address)
    obstore.delete(store, path)
    with pytest.raises(CacheCorruptError, match=rf"{path} .* got no such file in s3://"):
        CacheReader.open(address)
    obstore.put(store, path, data[:-1] + bytes([data[-1] ^ 1]))
    reader = CacheReader.open(address)
    with pytest.raises(CacheCorruptError, match=f"shard {entry.shard} of s3://.*expected {path}"):
        reader.read_shard(entry)


def test_a_manifest_is_replaced_only_if_it_is_the_one_that_was_read(address):
    open_writer(address).close()
    store = ObjectStore(address)
    old = read_manifest(store)
    new = old.model_copy(update={"created_by": "another"})
    replace_manifest(store, old, new)
    assert read_manifest(store) == new
    with pytest.raises(CacheWriteError, match="another writer has changed meanwhile"):
        replace_manifest(store, old, new)


def test_a_bucket_that_may_be_read_but_not_written_is_refused_with_advice(address, s3_server):
    with open_writer(address) as writer:
        entry = writer.commit(content())
        s3_server.before = lambda method, path: None if method == "GET" else 403
        with pytest.raises(CacheWriteError, match=r"allowed to write there.*check the credentials"):
            writer.commit(content(view_start=2, view_stop=3))
    assert same(CacheReader.open(address).read_shard(entry), content())
    s3_server.before = lambda method, path: 403
    with pytest.raises(RecipeError, match=r"allowed to read there.*check the credentials"):
        CacheReader.open(address)
    s3_server.before = None
    with open_writer(address) as writer:
        writer.commit(content(view_start=2, view_stop=3))
    assert CacheReader.open(address).num_views == 3


def test_a_store_that_does_not_answer_is_given_up_after_seconds(address, s3_server):
    tries: list[str] = []
    s3_server.before = lambda method, path: tries.append(path) or 503
    with pytest.raises(StoreConnectionError, match="run again when it can be reached"):
        CacheReader.open(address)
    assert len(tries) == 4
