"""What a reader refuses: it trusts the ledger, and files only as the ledger knows them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cache_content import LAYOUT, VOCABULARIES, content_of, identity_of

from pipeline.cache.reader import CacheReader
from pipeline.cache.writer import CacheWriter
from storage_schemas.errors import CacheCorruptError, CacheIdentityError, CacheMissingError
from storage_schemas.parquet_layout import VIEWS, decode_table
from storage_schemas.seal import sealed_fields, unsealed
from storage_schemas.zarr_layout import TokenRows, decode_array

IDENTITY = identity_of(top_k=2)
SHARD = "p00001-v0000-0002"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cache")
    rng = np.random.default_rng(0)
    with CacheWriter.open(path, IDENTITY, LAYOUT, VOCABULARIES) as writer:
        for part in range(2):
            writer.commit(content_of(rng, IDENTITY, part=part))
    return path


@pytest.fixture
def cache(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def edit(file: Path, change) -> None:
    """Changes what a file says, and seals it anew: more than any damage could do."""
    fields = unsealed(file.read_bytes())
    change(fields)
    file.write_bytes(sealed_fields(fields))


def files_of(path: Path) -> list[str]:
    return [file.path for file in CacheReader.open(path).entries[1].files]


def test_no_cache_is_a_missing_cache(tmp_path):
    with pytest.raises(CacheMissingError, match=r"got no manifest\.json there; make one with"):
        CacheReader.open(tmp_path / "nowhere")


def test_a_cache_without_a_committed_shard_opens_only_where_that_is_allowed(tmp_path):
    CacheWriter.open(tmp_path, IDENTITY, LAYOUT, VOCABULARIES).close()
    with pytest.raises(CacheMissingError, match="expected a committed shard or more"):
        CacheReader.open(tmp_path)
    empty = CacheReader.open(tmp_path, allow_empty=True)
    assert (empty.entries, empty.num_views) == ((), 0)


def test_another_schema_version_is_refused(cache):
    edit(cache / "manifest.json", lambda m: m["identity"].update(schema_version=99))
    with pytest.raises(CacheIdentityError, match="expected schema version 2, got 99"):
        CacheReader.open(cache)


def test_a_manifest_that_was_edited_is_refused(cache):
    edit(cache / "manifest.json", lambda m: m["identity"]["noise"].update(seed=99))
    with pytest.raises(CacheCorruptError, match="expected digest"):
        CacheReader.open(cache)
    (cache / "manifest.json").write_text("{")
    with pytest.raises(CacheCorruptError, match="expected JSON"):
        CacheReader.open(cache)


def test_every_missing_or_truncated_file_is_refused_at_opening_with_the_shard_named(cache):
    for name in [*files_of(cache), "common/vocabulary/teacher.parquet"]:
        file, where = cache / name, SHARD if name.startswith("shards") else "the manifest"
        data = file.read_bytes()
        file.unlink()
        with pytest.raises(CacheCorruptError, match=rf"{where}: expected {name} .* got no such"):
            CacheReader.open(cache)
        file.write_bytes(data[:-1])
        with pytest.raises(CacheCorruptError, match=rf"{where}: expected {name} of {len(data)} by"):
            CacheReader.open(cache)
        file.write_bytes(data)
    CacheReader.open(cache)


def test_a_file_that_vanishes_after_opening_never_reads_as_zeros(cache):
    reader = CacheReader.open(cache)
    for name in files_of(cache):
        data = (cache / name).read_bytes()
        (cache / name).unlink()
        with pytest.raises(CacheCorruptError, match=f"shard {SHARD} of .*expected {name}, got"):
            reader.read_shard(reader.entries[1])
        (cache / name).write_bytes(data)


def test_one_flipped_bit_in_any_file_is_found_on_reading(cache):
    reader, rng = CacheReader.open(cache), np.random.default_rng(0)
    for name in files_of(cache):
        data = (cache / name).read_bytes()
        for _ in range(4):
            flipped = bytearray(data)
            flipped[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            (cache / name).write_bytes(flipped)
            with pytest.raises(CacheCorruptError, match=f"shard {SHARD} of .*{name}"):
                reader.read_shard(reader.entries[1])
        (cache / name).write_bytes(data)


def test_the_files_own_checksums_find_flips_in_the_data_without_the_ledger(cache):
    kept, folder = IDENTITY.kept, cache / "shards" / SHARD
    counts = CacheReader.open(cache).entries[1].counts
    rows = TokenRows(num_rows=counts.num_token_rows, num_joint=counts.num_joint_rows)
    tokens = {
        str(file.relative_to(folder / "tokens.zarr")): file.read_bytes()
        for file in (folder / "tokens.zarr").rglob("*")
        if file.is_file()
    }
    data = tokens["ids_low/c/0/0"]
    for position in range(len(data)):
        flipped = data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]
        with pytest.raises(CacheCorruptError, match="ids"):
            decode_array(tokens | {"ids_low/c/0/0": flipped}, kept, rows, "ids_low")
    del tokens["ids_low/c/0/0"]
    with pytest.raises(CacheCorruptError, match=r"ids_low.*got no ids_low/c/0/0"):
        decode_array(tokens, kept, rows, "ids_low")
    views = (folder / "views.parquet").read_bytes()
    position = 60  # inside the first page
    flipped = views[:position] + bytes([views[position] ^ 4]) + views[position + 1 :]
    with pytest.raises(CacheCorruptError, match="expected a whole Parquet file"):
        decode_table(VIEWS, flipped)


def test_a_path_in_the_ledger_that_leaves_the_cache_is_refused(cache):
    file = cache / "ledger" / f"{SHARD}.json"
    edit(file, lambda e: e["files"][0].update(path=f"shards/{SHARD}/../../../secret"))
    with pytest.raises(CacheCorruptError, match=rf"shard {SHARD}.*(?s:.)*inside the cache folder"):
        CacheReader.open(cache)


def test_a_shard_folder_that_links_elsewhere_is_refused(cache, tmp_path):
    folder = cache / "shards" / SHARD
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheCorruptError, match="got a link to elsewhere"):
        CacheReader.open(cache)


def test_a_ledger_that_lists_too_few_files_is_refused(cache):
    edit(cache / "ledger" / f"{SHARD}.json", lambda e: e["files"].pop())
    with pytest.raises(CacheCorruptError, match=f"shard {SHARD}: expected files"):
        CacheReader.open(cache)


def test_ledger_entries_that_overlap_or_lie_about_their_name_are_refused(cache):
    ledger = cache / "ledger"
    text = (ledger / f"{SHARD}.json").read_text()
    (ledger / "p00007-v0000-0002.json").write_text(text)
    with pytest.raises(CacheCorruptError, match=f"expected shard p00007-v0000-0002, got {SHARD}"):
        CacheReader.open(cache)
    (ledger / "p00007-v0000-0002.json").unlink()
    other = "p00001-v0001-0003"
    fields = json.loads(text.replace(SHARD, other)) | {"view_start": 1, "view_stop": 3}
    del fields["seal"]
    (ledger / f"{other}.json").write_bytes(sealed_fields(fields))
    with pytest.raises(CacheCorruptError, match=f"both shards {SHARD} and {other}"):
        CacheReader.open(cache)


def test_counts_that_contradict_the_content_are_refused(cache):
    edit(cache / "ledger" / f"{SHARD}.json", lambda e: e["counts"].update(num_chunks=999))
    reader = CacheReader.open(cache)
    with pytest.raises(CacheCorruptError, match="expected 999 chunks, as the ledger says"):
        reader.read_shard(reader.entries[1])


def test_a_shard_without_a_ledger_entry_is_not_there(cache):
    (cache / "ledger" / f"{SHARD}.json").unlink()
    assert [entry.part for entry in CacheReader.open(cache).entries] == [0]
