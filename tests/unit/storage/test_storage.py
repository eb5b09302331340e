"""Addresses, and connections to object stores."""

import gzip
import multiprocessing
import subprocess
import sys
from pathlib import Path

import obstore
import obstore.store
import polars as pl
import pytest

from flows.events import cache_address
from pipeline.cache.store import open_store
from pipeline.cli.app import _prefect_home
from pipeline.config.records import FilesSource
from pipeline.records.source import index_records, read_part
from pipeline.storage.address import is_remote, resolved_address, scheme_of
from pipeline.storage.connection import connect
from storage_schemas.errors import RecipeError, StoreConnectionError

LINES = b"".join(
    b'{"messages": [{"role": "user", "content": "q%d"}, {"role": "assistant", "content": "a"}]}\n'
    % number
    for number in range(3)
)


@pytest.mark.parametrize(
    ("address", "scheme", "resolved"),
    [
        ("s3://bucket/some/cache", "s3", "s3://bucket/some/cache"),
        ("S3://bucket//some/cache/", "s3", "s3://bucket/some/cache"),
        ("gs://bucket", "gs", "gs://bucket"),
        ("az://container/cache", "az", "az://container/cache"),
        ("/a/../b", None, "/b"),
        (Path("/a/b"), None, "/a/b"),
        ("relative", None, str(Path.cwd() / "relative")),
        ("s3:/one-slash", None, str(Path.cwd() / "s3:/one-slash")),
    ],
)
def test_an_address_has_one_name(address, scheme, resolved):
    assert scheme_of(address) == scheme
    assert is_remote(address) == (scheme is not None)
    assert resolved_address(address) == resolved


def test_a_recipes_cache_keeps_its_url(make_recipe, tmp_path):
    recipe = make_recipe("a", tmp_path, **{"cache.path": "s3://bucket/caches/one/"})
    assert cache_address(recipe) == "s3://bucket/caches/one"
    assert cache_address(make_recipe("a", tmp_path)) == str((tmp_path / "cache").resolve())


def test_prefect_keeps_its_data_beside_a_local_cache_and_here_for_a_remote_one():
    assert _prefect_home("some/cache") == Path("some/cache/.prefect")
    assert _prefect_home("s3://bucket/cache") == Path(".prefect")


def test_google_and_azure_are_reached_by_the_same_settings_as_obstores(monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    assert isinstance(connect("az://container/cache"), obstore.store.AzureStore)
    assert str(connect("gs://bucket/cache")) == 'GCSStore(bucket="bucket", prefix="cache")'


def test_settings_that_are_missing_are_named(monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(RecipeError, match=r"az://c/d: .*Account must be specified; check the"):
        open_store("az://c/d")


@pytest.mark.parametrize("name", ["part.jsonl", "part.jsonl.gz", "part.parquet"])
def test_records_of_every_kind_are_read_from_a_bucket(bucket, tmp_path, name):

    if name.endswith("gz"):
        data = gzip.compress(LINES)
    elif name.endswith("parquet"):
        pl.read_ndjson(LINES).write_parquet(tmp_path / name)
        data = (tmp_path / name).read_bytes()
    else:
        data = LINES
    obstore.put(connect(f"{bucket}/data"), name, data)
    (tmp_path / name).write_bytes(data)
    found = {}
    for where in (bucket + "/data", str(tmp_path)):
        for pattern in (name, "part*"):
            config = FilesSource(type="files", paths=(f"{where}/{pattern}",))
            index = index_records(config, 2)
            records = [record for part in range(2) for record in read_part(config, index, part)]
            found[where, pattern] = index.fingerprint, [record.messages for record in records]
    assert len({str(value) for value in found.values()}) == 1


def test_records_that_cannot_be_reached_are_given_up_after_seconds(bucket, s3_server):
    tries: list[str] = []
    s3_server.before = lambda method, path: tries.append(path) or 503
    with pytest.raises(StoreConnectionError, match="expected the object store to answer"):
        index_records(FilesSource(type="files", paths=(f"{bucket}/a.jsonl",)), 2)
    assert len(tries) <= 8


def test_records_in_a_bucket_need_obstore(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    config = FilesSource(type="files", paths=("s3://bucket/a.jsonl",))
    with pytest.raises(RecipeError, match=r"pip install 'tidecache\[object-store\]'"):
        index_records(config, 2)


def test_a_file_system_that_the_user_has_registered_is_not_replaced():
    program = (
        "import fsspec; from fsspec.implementations.memory import MemoryFileSystem\n"
        "fsspec.register_implementation('s3', MemoryFileSystem)\n"
        "from pipeline.storage.connection import register_with_fsspec; register_with_fsspec()\n"
        "assert fsspec.get_filesystem_class('s3') is MemoryFileSystem\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_local_cache_loads_no_obstore():
    program = (
        "import sys; from pipeline.cache.reader import CacheReader; import pipeline.records.files\n"
        "assert 'obstore' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def _read(address: str) -> bytes:
    return open_store(address).read("a")


def test_a_forked_worker_is_told_to_spawn_instead_of_hanging(bucket):
    open_store(bucket).replace("a", b"1")
    with (
        multiprocessing.get_context("fork").Pool(1) as pool,
        pytest.raises(AssertionError, match="start workers with 'spawn'"),
    ):
        pool.apply(_read, (bucket,))
