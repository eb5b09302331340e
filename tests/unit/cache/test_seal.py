"""Sealed metadata: a bit that flips anywhere in it is found when the cache is opened."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cache_content import LAYOUT, VOCABULARIES, content_of, identity_of

from pipeline.cache.ledger import parse_entry, read_manifest, replace_manifest
from pipeline.cache.local_store import LocalStore
from pipeline.cache.reader import CacheReader
from pipeline.cache.writer import CacheWriter
from storage_schemas.errors import CacheCorruptError, CacheIdentityError, CacheWriteError
from storage_schemas.seal import sealed_fields, sealed_json, unsealed

IDENTITY = identity_of(top_k=2)
SHARD = "p00001-v0000-0002"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path, rng = tmp_path_factory.mktemp("cache"), np.random.default_rng(0)
    with CacheWriter.open(path, IDENTITY, LAYOUT, VOCABULARIES) as writer:
        for part in range(2):
            writer.commit(content_of(rng, IDENTITY, part=part, num_examples=1))
    return path


@pytest.fixture
def cache(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def flips(data: bytes):
    """The text with one bit flipped, for every bit of every byte."""
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            yield bytes(flipped)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"b": 1, "a": [0.1, -0.0, 1e-30, None, True], "c": {"é": "\n \U0001f44b"}},
        {"seal_": "x", "big": 2**70},
    ],
)
def test_what_is_sealed_comes_back_and_every_flipped_bit_is_found(fields):
    text = sealed_fields(fields)
    assert unsealed(text) == fields
    for flipped in flips(text):
        with pytest.raises(ValueError, match=r"."):
            unsealed(flipped)


def test_every_flipped_bit_of_the_manifest_is_found(cache):
    file = cache / "manifest.json"
    data, store = file.read_bytes(), LocalStore(cache)
    for flipped in flips(data):
        file.write_bytes(flipped)
        with pytest.raises(CacheCorruptError, match=r"manifest\.json: .*restore it from a copy"):
            read_manifest(store)
    file.write_bytes(data)
    CacheReader.open(cache)


def test_every_flipped_bit_of_a_ledger_entry_is_found(cache):
    path = f"ledger/{SHARD}.json"
    data = (cache / path).read_bytes()
    assert parse_entry(path, data).shard == SHARD
    message = rf"shard {SHARD}: expected a ledger entry .*(?s:.)*; remove {path} and run "
    for flipped in flips(data):
        with pytest.raises(CacheCorruptError, match=message):
            parse_entry(path, flipped)


@pytest.mark.parametrize("kind", ["digit", "brace", "white space", "hash", "name", "end"])
@pytest.mark.parametrize("name", ["manifest.json", f"ledger/{SHARD}.json"])
def test_a_change_of_any_kind_is_found_at_opening(cache, name, kind):
    text = (cache / name).read_text()
    digest = unsealed(text.encode()).get("digest", "") or json.loads(text)["files"][0]["xxh3_128"]
    changed = {
        "digit": text.replace(": 1", ": 3", 1),
        "brace": text.replace("{", "[", 1),
        "white space": text.replace("\n  ", "\n\t", 1),
        "hash": text.replace(digest[-1] + '"', ("0" if digest[-1] != "0" else "1") + '"', 1),
        "name": text.replace('"seal"', '"sea1"'),
        "end": text.removesuffix("\n"),
    }[kind]
    assert changed != text
    (cache / name).write_text(changed)
    with pytest.raises(CacheCorruptError):
        CacheReader.open(cache)
    with pytest.raises(CacheCorruptError):
        CacheWriter.open(cache, IDENTITY, LAYOUT, VOCABULARIES)


def test_a_removed_entry_is_made_anew_as_the_message_says(cache, whole):
    file = cache / "ledger" / f"{SHARD}.json"
    file.write_text(file.read_text().replace('"part": 1', '"part": 3'))
    with pytest.raises(CacheCorruptError, match=rf"remove ledger/{SHARD}\.json"):
        CacheReader.open(cache)
    file.unlink()
    rng = np.random.default_rng(0)
    contents = [content_of(rng, IDENTITY, part=part, num_examples=1) for part in range(2)]
    with CacheWriter.open(cache, IDENTITY, LAYOUT, VOCABULARIES) as writer:
        assert writer.missing_views(1, 2) == [range(2)]
        writer.commit(contents[1])
    assert file.read_bytes() == (whole / "ledger" / f"{SHARD}.json").read_bytes()


def test_a_flipped_bit_of_a_vocabulary_is_found_at_opening(cache):
    for side in ("student", "teacher"):
        file = cache / "common" / "vocabulary" / f"{side}.parquet"
        data = file.read_bytes()
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 1
        file.write_bytes(flipped)
        with pytest.raises(
            CacheCorruptError, match=f"common/vocabulary/{side}.parquet .*other content"
        ):
            CacheReader.open(cache)
        file.write_bytes(data)


def test_a_file_that_nothing_lists_is_no_error(cache):
    (cache / "shards" / "p00009-v0000-0002").mkdir()
    (cache / "shards" / "p00009-v0000-0002" / "views.parquet").write_bytes(b"left by a kill")
    (cache / "shards" / SHARD / "extra").write_bytes(b"")
    (cache / "ledger" / "notes.txt").write_text("no entry")
    assert len(CacheReader.open(cache).entries) == 2


def test_a_manifest_is_replaced_whole_and_only_if_it_is_the_one_that_was_read(cache):
    store = LocalStore(cache)
    old = read_manifest(store)
    new = old.model_copy(update={"created_by": "another"})
    replace_manifest(store, old, new)
    assert read_manifest(store) == new
    assert (cache / "manifest.json").read_bytes() == sealed_json(new)
    with pytest.raises(CacheWriteError, match="another writer has changed meanwhile; run again"):
        replace_manifest(store, old, new)
    assert read_manifest(store) == new


def test_a_manifest_of_another_identity_is_never_put_there(cache):
    store = LocalStore(cache)
    old = read_manifest(store)
    other = identity_of(top_k=2, seed=99)
    new = old.model_copy(update={"identity": other, "digest": other.digest})
    with pytest.raises(CacheIdentityError, match=r"noise\.seed: the cache has 1"):
        replace_manifest(store, old, new)
    assert read_manifest(store) == old
