"""The layout on disk, read with the format's own libraries and none of our code."""

import hashlib
import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import xxhash
import zarr

from pipeline.cache.writer import CacheWriter, Vocabularies
from storage_schemas.examples import Pair
from storage_schemas.identity import CacheIdentity
from storage_schemas.manifest import Layout
from storage_schemas.shard import ShardContent, StoredView
from storage_schemas.skips import Skip
from storage_schemas.targets import KeptTargets, Targets
from storage_schemas.views import Corruption

IDENTITY = {
    "schema_version": 2,
    "pipeline": "shared_tokenizer",
    "teacher": {
        "revision": None,
        "weights": "abc",
        "family": "wedlm",
        "attention": "block",
        "block_size": 4,
        "dtype": "bfloat16",
    },
    "student_tokenizer": "s",
    "teacher_tokenizer": "t",
    "lengths": {"student_length": 8, "teacher_length": 8, "student_block_size": 4},
    "records": "r",
    "noise": {"seed": 3, "eps": 0.001, "demo_ratio": 0.5},
    "kept": {
        "top_k": 2,
        "logits_dtype": "float32",
        "temperatures": [1.0, 2.0],
        "vocab_size": 10,
        "tail": {"type": "even"},
    },
}


def worked_content() -> ShardContent:
    """One example of four tokens a side; chunks 0 = t[1:2] s[1:3] and 1 = t[2:4] s[3:4]; both are
    masked, so three teacher tokens are answered, the first of them a chunk of its own.
    """
    pair = Pair(
        record_id="a/1",
        student_ids_S=np.array([4, 5, 6, 7], np.int32),
        is_target_S=np.array([False, True, True, True]),
        teacher_ids_T=np.array([1, 2, 3, 9], np.int32),
        chunks_C4=np.array([[1, 2, 1, 3], [2, 4, 3, 4]], np.int32),
    )
    noise = Corruption(
        view=0,
        time=0.25,
        is_masked_S=np.array([False, True, False, True]),
        is_masked_T=np.array([False, True, True, True]),
        is_masked_C=np.array([True, True]),
    )
    top_k = KeptTargets(
        ids_MK=np.array([[8, 2], [3, 1], [0, 9]], np.int32),
        logits_MK=np.array([[7.0, 3.0], [2.0, 1.0], [5.5, -0.0]], np.float32),
        logsumexp_MJ=np.array([[7.5, 5.0], [2.5, 3.5], [6.0, 4.0]], np.float32),
        gold_logp_M=np.array([-0.25, -0.5, -6.0], np.float32),
        sketch_MR=np.empty((3, 0), np.int16),
        temperatures=(1.0, 2.0),
        vocab_size=10,
    )
    targets = Targets(
        chunk_C=np.array([0, 1], np.int32),
        pass_C=np.array([0, 1], np.int8),
        logp_C=np.array([-0.25, -6.5], np.float32),
        tokens=top_k,
    )
    return ShardContent(
        part=0,
        view_start=0,
        view_stop=1,
        examples=(pair,),
        views=(StoredView(example=0, corruption=noise, targets=targets),),
        skips=(Skip(where="x:2", record_id="a/2", reason="too_long", message="m"),),
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cache")
    identity = CacheIdentity.model_validate(IDENTITY)
    vocabularies = Vocabularies(student={4: b"a", 9: b"\xc3"}, teacher={3: b" b"})
    with CacheWriter.open(path, identity, Layout(records_per_part=2), vocabularies) as writer:
        writer.commit(worked_content())
    return path


def test_the_folder_holds_these_files_and_no_others(cache):
    shard = "shards/p00000-v0000-0001"
    arrays = {"ids_low": "c/0/0", "logits": "c/0/0", "logsumexp": "c/0/0", "gold_logp": "c/0"}
    tokens = {f"{shard}/tokens.zarr/{name}/zarr.json" for name in arrays}
    tokens |= {f"{shard}/tokens.zarr/{name}/{chunk}" for name, chunk in arrays.items()}
    tables = {f"{shard}/{name}.parquet" for name in ("examples", "views", "chunks", "skips")}
    got = {str(file.relative_to(cache)) for file in cache.rglob("*") if file.is_file()}
    assert got == tokens | tables | {
        f"{shard}/tokens.zarr/zarr.json",
        "ledger/p00000-v0000-0001.json",
        "manifest.json",
        "tmp/lock",
        "common/vocabulary/student.parquet",
        "common/vocabulary/teacher.parquet",
    }


def test_the_manifest_names_its_inputs_and_their_digest(cache):
    manifest = json.loads((cache / "manifest.json").read_text())
    canonical = json.dumps(IDENTITY, sort_keys=True, separators=(",", ":"))
    assert manifest["identity"] == IDENTITY
    assert manifest["digest"] == hashlib.sha256(canonical.encode()).hexdigest()[:16]
    assert manifest["layout"] == {"records_per_part": 2}
    assert manifest["format"] == "tidecache"


def test_the_ledger_lists_every_file_of_the_shard_with_size_and_hash(cache):
    entry = json.loads((cache / "ledger" / "p00000-v0000-0001.json").read_text())
    folder = cache / "shards" / "p00000-v0000-0001"
    assert entry["files"] == [
        {
            "path": str(file.relative_to(cache)),
            "size": file.stat().st_size,
            "xxh3_128": xxhash.xxh3_128_hexdigest(file.read_bytes()),
        }
        for file in sorted(folder.rglob("*"), key=str)
        if file.is_file()
    ]
    assert entry["counts"] == {
        "num_records": 2,
        "num_examples": 1,
        "num_views": 1,
        "num_chunks": 2,
        "num_masked": 2,
        "num_token_rows": 3,
        "num_joint_rows": 2,
        "skips": {"too_long": 1},
    }


def test_the_tables_hold_these_columns(cache):
    folder = cache / "shards" / "p00000-v0000-0001"
    read = {name: pl.read_parquet(folder / f"{name}.parquet") for name in ("chunks", "views")}
    assert read["chunks"].to_dicts() == [
        {
            "view_row": 0,
            "example": 0,
            "view": 0,
            "chunk": 0,
            "pass": 0,
            "t0": 1,
            "t1": 2,
            "s0": 1,
            "s1": 3,
            "logp": -0.25,
            "token_row": 0,
        },
        {
            "view_row": 0,
            "example": 0,
            "view": 0,
            "chunk": 1,
            "pass": 1,
            "t0": 2,
            "t1": 4,
            "s0": 3,
            "s1": 4,
            "logp": -6.5,
            "token_row": 1,
        },
    ]
    masked = [False, True, False, True]
    assert read["views"].to_dicts() == [
        {"example": 0, "record_id": "a/1", "view": 0, "time": 0.25, "is_masked": masked}
    ]
    (example,) = pl.read_parquet(folder / "examples.parquet").to_dicts()
    assert example["chunks"][1] == {"t0": 2, "t1": 4, "s0": 3, "s1": 4}
    assert example["teacher_ids"] == [1, 2, 3, 9]
    (skip,) = pl.read_parquet(folder / "skips.parquet").to_dicts()
    assert skip == {"where": "x:2", "record_id": "a/2", "reason": "too_long", "message": "m"}
    student = pl.read_parquet(cache / "common" / "vocabulary" / "student.parquet").rows()
    assert student == [(4, b"a", "a"), (9, b"\xc3", "\ufffd")]


def test_every_parquet_page_carries_a_checksum(cache):
    for file in (cache / "shards" / "p00000-v0000-0001").glob("*.parquet"):
        data, found = bytearray(file.read_bytes()), 0
        for column in range((metadata := pq.ParquetFile(file).metadata).num_columns):
            chunk = metadata.row_group(0).column(column)
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            broken = data.copy()
            broken[start + chunk.total_compressed_size - 1] ^= 1  # the end of the last page's data
            copy = cache.parent / "broken.parquet"
            copy.write_bytes(broken)
            try:
                pq.read_table(copy, page_checksum_verification=True)
            except OSError:
                found += 1
        assert found, file.name


def test_the_tokens_are_one_row_an_answered_teacher_token(cache):
    group = zarr.open_group(cache / "shards" / "p00000-v0000-0001" / "tokens.zarr", mode="r")
    assert np.asarray(group["ids_low"][...]).tolist() == [[8, 2], [3, 1], [0, 9]]
    logits = np.asarray(group["logits"][...])
    assert logits.tolist() == [[7.0, 3.0], [2.0, 1.0], [5.5, 0.0]]
    assert np.signbit(logits[2, 1])
    assert np.asarray(group["logsumexp"][...]).tolist() == [[7.5, 5.0], [2.5, 3.5], [6.0, 4.0]]
    # the first token is a chunk of its own, whose logp is in chunks.parquet
    assert np.asarray(group["gold_logp"][...]).tolist() == [-0.5, -6.0]
