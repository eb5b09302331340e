"""The shipped stores against the contract: a local folder, and S3 over HTTP."""

import sys
from pathlib import Path

import pytest

from pipeline.cache.store import CacheStore, open_store
from storage_schemas.errors import RecipeError

sys.path.insert(0, str(Path(__file__).parent))
from cache_store import CHECKS


@pytest.fixture(params=["folder", "bucket", "prefix"])
def address(request, tmp_path) -> str:
    """A place that is empty, or does not exist yet."""
    if request.param == "folder":
        return str(tmp_path / "cache")
    bucket = request.getfixturevalue("bucket")
    return bucket if request.param == "bucket" else f"{bucket}/some/folder/"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_store_keeps_the_contract(check, address):
    check(lambda: open_store(address))


def test_the_address_chooses_the_store(tmp_path, bucket):
    assert isinstance(open_store(tmp_path), CacheStore)
    assert open_store(tmp_path).local_path("a") == tmp_path / "a"
    assert open_store("relative/folder").local_path("a") == Path("relative/folder/a")
    remote = open_store(f"{bucket}/cache")
    assert remote.local_path("a") is None
    assert remote.address == f"{bucket}/cache"


@pytest.mark.parametrize("address", ["ftp://host/cache", "hdfs://host/cache", "http://host/cache"])
def test_a_scheme_that_nobody_knows_is_refused_with_those_that_are_known(address):
    with pytest.raises(RecipeError, match=r"expected a local path, or a URL with s3://, gs://, az"):
        open_store(address)


def test_a_url_without_a_bucket_is_refused():
    with pytest.raises(RecipeError, match="expected a bucket's name after s3://"):
        open_store("s3://")


def test_without_obstore_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(RecipeError, match=r"pip install 'tidecache\[object-store\]'"):
        open_store("s3://bucket/cache")
