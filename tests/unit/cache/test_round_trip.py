import json
from dataclasses import replace

import numpy as np
import pytest
from cache_content import (
    EVEN,
    LAYOUT,
    SKETCH,
    VOCABULARIES,
    basis_of,
    calibrated,
    content_of,
    identity_of,
    same,
    wild_floats,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache.decode import decode_shard
from pipeline.cache.encode import count, encode_shard
from pipeline.cache.files import file_entry
from pipeline.cache.reader import CacheReader
from pipeline.cache.writer import CacheWriter
from storage_schemas.identity import KeptIdentity
from storage_schemas.manifest import LedgerEntry
from storage_schemas.targets import KeptTargets
from storage_schemas.zarr_layout import (
    TokenRows,
    decode_array,
    decode_basis,
    decode_ids,
    decode_tokens,
    encode_basis,
    encode_tokens,
    from_steps,
    to_steps,
)

FLOAT16_RELATIVE_ERROR = 2.0**-11
BASIS = basis_of()


def entry_of(content, files) -> LedgerEntry:
    return LedgerEntry(
        shard=content.name,
        part=content.part,
        view_start=content.view_start,
        view_stop=content.view_stop,
        folder=f"shards/{content.name}",
        files=tuple(file_entry(f"shards/{content.name}/{name}", files[name]) for name in files),
        counts=count(content),
    )


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    top_k=st.sampled_from([0, 1, 5]),
    num_examples=st.integers(0, 4),
    view_start=st.integers(0, 3),
    num_views=st.integers(1, 3),
    num_skips=st.integers(0, 2),
    tail=st.sampled_from([None, EVEN, SKETCH]),
    vocab_size=st.sampled_from([300, 65_536, 65_537, 2**18, 2**18 + 1]),
)
def test_what_is_read_is_what_was_written_bit_for_bit(
    seed, top_k, num_examples, view_start, num_views, num_skips, tail, vocab_size
):
    identity = identity_of(top_k=top_k, tail=tail, vocab_size=vocab_size)
    basis = BASIS if tail == SKETCH else None
    content = content_of(
        np.random.default_rng(seed),
        identity,
        view_start=view_start,
        view_stop=view_start + num_views,
        num_examples=num_examples,
        num_skips=num_skips,
    )
    files = encode_shard(content, identity.kept, basis)
    coder = None if basis is None else basis.coder
    assert same(decode_shard(files, entry_of(content, files), identity.kept, coder), content)


def test_shards_come_back_from_disk_in_order_of_part_and_view(tmp_path):
    rng, identity = np.random.default_rng(0), identity_of()
    wanted = [
        content_of(rng, identity, part=part, view_start=start, view_stop=start + 2)
        for part in (0, 1, 12)
        for start in (0, 2)
    ]
    with CacheWriter.open(tmp_path / "new" / "cache", identity, LAYOUT, VOCABULARIES) as writer:
        for content in wanted[::-1]:
            writer.commit(content)
    reader = CacheReader.open(tmp_path / "new" / "cache")
    assert reader.identity == identity
    assert reader.num_views == 4
    assert all(
        same(reader.read_shard(entry), content)
        for entry, content in zip(reader.entries, wanted, strict=True)
    )


def test_a_shard_without_examples_and_one_without_token_rows_round_trip(tmp_path):
    rng, identity = np.random.default_rng(3), identity_of()
    empty = content_of(rng, identity, part=0, num_examples=0)
    contents = [empty, content_of(rng, identity, part=1, num_examples=1)]
    with CacheWriter.open(tmp_path, identity, LAYOUT, VOCABULARIES) as writer:
        entries = [writer.commit(content) for content in contents]
    assert entries[0].counts.num_token_rows == 0
    assert entries[0].counts.num_records == 2
    assert entries[0].counts.skips == {"too_long": 2}
    reader = CacheReader.open(tmp_path)
    assert same(reader.read_shard(reader.entries[0]), empty)


def test_equal_contents_give_equal_bytes():
    for logits_dtype in ("float32", "float16"):
        identity = identity_of(logits_dtype=logits_dtype)
        first, second = (
            encode_shard(content_of(np.random.default_rng(5), identity), identity.kept, None)
            for _ in range(2)
        )
        assert first == second


@pytest.mark.parametrize("num_rows", [0, 1, 1023, 1024, 1025, 2500])
def test_float32_logits_are_exact_at_every_number_of_rows(num_rows):
    kept = identity_of(top_k=3).kept
    rng = np.random.default_rng(num_rows)
    tokens = KeptTargets(
        ids_MK=rng.integers(0, 300, (num_rows, 3), dtype=np.int32),
        logits_MK=wild_floats(rng, num_rows, 3),
        logsumexp_MJ=wild_floats(rng, num_rows, 2),
        gold_logp_M=np.zeros(num_rows, np.float32),  # all-zero objects are written too
        sketch_MR=np.empty((num_rows, 0), np.int16),
        temperatures=kept.temperatures,
        vocab_size=kept.vocab_size,
    )
    is_joint_M = rng.random(num_rows) < 0.5
    files = encode_tokens(tokens, kept, None, is_joint_M)
    read = decode_tokens(
        files, kept, None, is_joint_M=is_joint_M, chunk_logp_M=np.zeros(num_rows, np.float32)
    )
    assert same(read, tokens)


def test_what_is_not_wanted_is_left_out():
    identity = identity_of(tail=SKETCH)
    content = content_of(np.random.default_rng(0), identity)
    files = encode_shard(content, identity.kept, BASIS)
    entry = entry_of(content, files)
    lean = decode_shard(files, entry, identity.kept, None, with_top_k=False)
    for stored, whole in zip(lean.views, content.views, strict=True):
        assert stored.targets.tokens.ids_MK.shape[1] == 0
        assert stored.targets.tokens.sketch_MR.shape[1] == 0
        assert same(stored.targets.tokens.gold_logp_M, whole.targets.tokens.gold_logp_M)


def test_ids_of_a_large_vocabulary_take_two_bits_above_sixteen():
    # 5 = 0b00_0101 in the low plane alone; 65,536 + 3 has high bits 1; 3 * 65,536 has 3: packed
    # from the lowest bits, 1 << 2 | 3 << 4 = 0b110100 = 52
    kept = identity_of(top_k=3, vocab_size=2**18).kept
    tokens = KeptTargets(
        ids_MK=np.array([[5, 65_539, 196_608]], np.int32),
        logits_MK=np.zeros((1, 3), np.float32),
        logsumexp_MJ=np.zeros((1, 2), np.float32),
        gold_logp_M=np.zeros(1, np.float32),
        sketch_MR=np.empty((1, 0), np.int16),
        temperatures=kept.temperatures,
        vocab_size=kept.vocab_size,
    )
    files = encode_tokens(tokens, kept, None, np.array([True]))
    rows = TokenRows(num_rows=1, num_joint=1)
    assert decode_array(files, kept, rows, "ids_low").tolist() == [[5, 3, 0]]
    assert decode_array(files, kept, rows, "ids_high").tolist() == [[52]]
    assert decode_ids(files, kept, rows).tolist() == [[5, 65_539, 196_608]]


def test_a_basis_comes_back_bit_for_bit_and_so_does_one_without_a_sketch():
    mean_logit = replace(
        BASIS,
        encode_HR=BASIS.encode_HR[:, :0],
        scale_R=BASIS.scale_R[:0],
        decode_RV=BASIS.decode_RV[:0],
        coder=None,
    )
    for basis in (BASIS, mean_logit):
        files = encode_basis(basis)
        assert same(decode_basis(files), basis)
        assert encode_basis(decode_basis(files)) == files


def test_a_cache_keeps_one_basis_and_reads_its_sketches_with_it(tmp_path):
    identity = identity_of(tail=SKETCH)
    content = content_of(np.random.default_rng(0), identity)
    with CacheWriter.open(tmp_path, identity, LAYOUT, VOCABULARIES, calibrated) as writer:
        writer.commit(content)

    def again():
        raise AssertionError("a cache that is there is never calibrated again")

    CacheWriter.open(tmp_path, identity, LAYOUT, VOCABULARIES, again).close()
    reader = CacheReader.open(tmp_path)
    assert same(reader.read_basis(), BASIS)
    assert same(reader.read_shard(reader.entries[0], BASIS.coder), content)
    assert reader.manifest.calibration == calibrated().report


def test_float16_distances_are_exact_and_logits_within_half_a_step_of_the_distance():
    # a row (2, 1.5, -inf): distances 0, -0.5, -inf have bits 0x0000, 0xb800, 0xfc00, so the steps
    # are 0x0000, 0xb800, 0x4400
    row = np.array([[2.0, 1.5, -np.inf]], np.float32)
    max_M, step_MK = to_steps(row)
    assert (max_M.tolist(), step_MK.tolist()) == ([2.0], [[0x0000, 0xB800, 0x4400]])
    assert same(from_steps(max_M, step_MK), row)
    rng = np.random.default_rng(0)
    logits_MK = -np.sort(-10 * rng.normal(size=(500, 64)).astype(np.float32), axis=1)
    read_MK = from_steps(*to_steps(logits_MK))
    distance_MK = logits_MK[:, :1] - logits_MK
    assert (np.abs(read_MK - logits_MK) <= distance_MK * FLOAT16_RELATIVE_ERROR + 4e-6).all()
    assert same(read_MK[:, 0], logits_MK[:, 0])
    far = np.array([[1e6, 0.0]], np.float32)  # past float16's range: no probability
    assert from_steps(*to_steps(far)).tolist() == [[1e6, -np.inf]]


def test_tokens_are_readable_by_any_zarr_library_with_the_documented_dtypes(tmp_path):
    identity = identity_of(logits_dtype="float16")
    with CacheWriter.open(tmp_path, identity, LAYOUT, VOCABULARIES) as writer:
        entry = writer.commit(content_of(np.random.default_rng(0), identity))
    import zarr

    group = zarr.open_group(tmp_path / "shards" / entry.shard / "tokens.zarr", mode="r")
    rows = entry.counts.num_token_rows
    assert {name: (str(array.dtype), array.shape) for name, array in group.arrays()} == {
        "ids_low": ("uint16", (rows, 4)),
        "logit_max": ("float32", (rows,)),
        "logit_step": ("uint16", (rows, 4)),
        "logsumexp": ("float32", (rows, 2)),
        "gold_logp": ("float32", (entry.counts.num_joint_rows,)),
    }
    text = (tmp_path / "shards" / entry.shard / "tokens.zarr/ids_low/zarr.json").read_text()
    (sharding,) = json.loads(text)["codecs"]
    names = [codec["name"] for codec in sharding["configuration"]["codecs"]]
    assert names == ["bytes", "blosc", "crc32c"]


def test_a_kept_logits_dtype_is_the_only_loss_and_writing_again_changes_nothing():
    identity = identity_of(logits_dtype="float16")
    content = content_of(np.random.default_rng(0), identity)
    files = encode_shard(content, identity.kept, None)
    read = decode_shard(files, entry_of(content, files), identity.kept, None)
    assert encode_shard(read, identity.kept, None) == files


def test_a_view_whose_answers_do_not_fit_its_mask_is_a_bug_of_the_caller():
    identity = identity_of()
    content = content_of(np.random.default_rng(0), identity)
    other = KeptIdentity(**(identity.kept.model_dump() | {"top_k": 3}))
    with pytest.raises(AssertionError, match="not a row a teacher token"):
        encode_shard(content, other, None)
    with pytest.raises(AssertionError, match="top_k=0"):
        encode_shard(content, identity_of(top_k=0).kept, None)
    with pytest.raises(AssertionError, match="a sketch of another basis"):
        encode_shard(content, identity_of(tail=SKETCH).kept, BASIS)
