"""What every CacheStore must do, whatever its bytes lie in.

Each check gets a function that opens the store anew: two stores of one address are two machines.
"""

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier

import pytest

from pipeline.cache.store import CacheStore
from storage_schemas.errors import CacheWriteError

Open = Callable[[], CacheStore]
NUM_WRITERS = 8
FILES = {"views.parquet": b"views", "tokens.zarr/ids/c/0/0": b"\0\1\2" * 1000, "empty": b""}


def commit(store: CacheStore, name: str, record: bytes = b"", files=FILES, is_taken=None) -> bool:
    """Commits a shard whose record says which folder its files are in."""
    writer = store.open_writer()
    try:
        return writer.commit(
            f"shards/{name}",
            files,
            f"ledger/{name}.json",
            lambda folder: folder.encode() + b"|" + record,
            is_taken or (lambda: f"{name}.json" in store.names("ledger")),
        )
    finally:
        writer.close()


def folder_of(store: CacheStore, name: str) -> str:
    return store.read(f"ledger/{name}.json").partition(b"|")[0].decode()


def what_is_not_there_is_a_file_not_found(open_store: Open) -> None:
    store = open_store()
    with pytest.raises(FileNotFoundError):
        store.read("manifest.json")
    with pytest.raises(FileNotFoundError):
        store.read_all(["manifest.json"])
    assert store.names("ledger") == []
    assert store.names("") == []
    assert store.sizes(["shards/a/b"]) == {}
    assert store.changed_at("ledger") is None


def a_committed_shard_is_whole(open_store: Open) -> None:
    assert commit(open_store(), "a")
    store = open_store()
    assert store.names("ledger") == ["a.json"]
    assert store.names("shards") == ["a"]
    folder = folder_of(store, "a")
    paths = {f"{folder}/{name}": data for name, data in FILES.items()}
    assert store.read_all(paths) == paths
    assert {path: store.read(path) for path in paths} == paths
    sizes = {path: len(data) for path, data in paths.items()}
    assert store.sizes([*paths, f"{folder}/absent", "ledger/absent"]) == sizes


def a_commit_changes_the_ledgers_folder_then(open_store: Open) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)  # a store may count in seconds
    assert commit(open_store(), "a")
    changed = open_store().changed_at("ledger")
    assert changed is not None
    assert before <= changed <= datetime.now(UTC) + timedelta(seconds=2)


def a_writer_that_is_open_is_counted_where_the_store_can_tell(open_store: Open) -> None:
    writer = open_store().open_writer()
    during = open_store().writers()
    writer.close()
    after = open_store().writers()
    assert (during is None) == (after is None)
    if during is not None and after is not None:
        assert (during.num_alive, during.num_dead) == (1, 0)
        assert (after.num_alive, after.num_dead) == (0, 0)


def a_taken_name_is_left_as_it_is(open_store: Open) -> None:
    assert commit(open_store(), "a", b"first")
    store = open_store()
    before = (store.read("ledger/a.json"), store.names("shards/a"))
    assert not commit(store, "a", b"second", {"other": b"other"})
    assert (store.read("ledger/a.json"), store.names("shards/a")) == before


def a_refused_commit_leaves_nothing_that_counts(open_store: Open) -> None:
    def refuse() -> bool:
        raise CacheWriteError("refused")

    with pytest.raises(CacheWriteError, match="refused"):
        commit(open_store(), "a", is_taken=refuse)
    assert open_store().names("ledger") == []
    assert commit(open_store(), "a")


def of_writers_at_once_exactly_one_wins_and_its_shard_is_whole(open_store: Open) -> None:
    barrier = Barrier(NUM_WRITERS)

    def run(number: int) -> bool:
        store = open_store()
        barrier.wait()
        data = str(number).encode()
        return commit(store, "a", data, {f"file-{i}": data for i in range(5)})

    with ThreadPoolExecutor(NUM_WRITERS) as pool:
        won = list(pool.map(run, range(NUM_WRITERS)))
    assert sum(won) == 1
    store = open_store()
    record = store.read("ledger/a.json")
    assert record.endswith(f"|{won.index(True)}".encode())
    paths = [f"{folder_of(store, 'a')}/file-{i}" for i in range(5)]
    assert set(store.read_all(paths).values()) == {str(won.index(True)).encode()}


def of_puts_at_once_exactly_one_wins_even_if_none_looked_first(open_store: Open) -> None:
    barrier = Barrier(NUM_WRITERS)

    def run(number: int) -> bool:
        store = open_store()
        barrier.wait()
        return commit(store, "a", str(number).encode(), is_taken=lambda: False)

    with ThreadPoolExecutor(NUM_WRITERS) as pool:
        won = list(pool.map(run, range(NUM_WRITERS)))
    assert sum(won) == 1
    assert open_store().read("ledger/a.json").endswith(f"|{won.index(True)}".encode())


def replace_writes_over_what_is_there(open_store: Open) -> None:
    store = open_store()
    for path in ("recipe.json", "failures/a.json"):
        for data in (b"one", b"", b"three"):
            store.replace(path, data)
            assert open_store().read(path) == data


def exchange_writes_only_over_what_was_read(open_store: Open) -> None:
    store = open_store()
    store.replace("manifest.json", b"one")
    assert not store.exchange("manifest.json", b"other", b"two")
    assert store.read("manifest.json") == b"one"
    assert store.exchange("manifest.json", b"one", b"two")
    assert open_store().read("manifest.json") == b"two"
    with pytest.raises(FileNotFoundError):
        store.exchange("absent.json", b"one", b"two")


def of_exchanges_at_once_none_is_lost(open_store: Open) -> None:
    open_store().replace("manifest.json", b"0")

    def add_one(_: int) -> None:
        store = open_store()
        while True:
            old = store.read("manifest.json")
            if store.exchange("manifest.json", old, str(int(old) + 1).encode()):
                return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add_one, range(12)))
    assert open_store().read("manifest.json") == b"12"


def a_store_goes_to_another_process(open_store: Open) -> None:
    store = open_store()
    store.replace("recipe.json", b"one")
    sent = pickle.loads(pickle.dumps(store))
    assert (sent.address, sent.read("recipe.json")) == (store.address, b"one")


def a_local_path_holds_the_same_bytes(open_store: Open) -> None:
    store = open_store()
    store.replace("recipe.json", b"one")
    path = store.local_path("recipe.json")
    assert path is None or path.read_bytes() == b"one"


CHECKS = [
    what_is_not_there_is_a_file_not_found,
    a_committed_shard_is_whole,
    a_commit_changes_the_ledgers_folder_then,
    a_writer_that_is_open_is_counted_where_the_store_can_tell,
    a_taken_name_is_left_as_it_is,
    a_refused_commit_leaves_nothing_that_counts,
    of_writers_at_once_exactly_one_wins_and_its_shard_is_whole,
    of_puts_at_once_exactly_one_wins_even_if_none_looked_first,
    replace_writes_over_what_is_there,
    exchange_writes_only_over_what_was_read,
    of_exchanges_at_once_none_is_lost,
    a_store_goes_to_another_process,
    a_local_path_holds_the_same_bytes,
]
