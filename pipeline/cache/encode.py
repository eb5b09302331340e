"""A shard's content as the bytes of its files: equal contents give equal bytes."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pipeline.diffusion.corrupt import has_any, is_covered
from storage_schemas.basis import Basis
from storage_schemas.examples import Pair
from storage_schemas.identity import KeptIdentity
from storage_schemas.manifest import Counts
from storage_schemas.parquet_layout import (
    CHUNKS,
    EXAMPLES,
    SKIPS,
    VIEWS,
    Array,
    Ragged,
    encode_table,
)
from storage_schemas.shard import ShardContent, StoredView
from storage_schemas.targets import KeptTargets, TokenTargets
from storage_schemas.zarr_layout import TOKENS_FOLDER, encode_tokens


def encode_shard(
    content: ShardContent, kept: KeptIdentity, basis: Basis | None
) -> dict[str, bytes]:
    """Every file of a shard, by its path under the shard's folder."""
    rank = 0 if basis is None else basis.rank
    for stored in content.views:
        _check_view(stored, content.examples[stored.example], kept, rank)
    files = encode_tables(content, kept)
    if kept.has_tokens:
        tokens = encode_tokens(
            _joined([stored.targets.tokens for stored in content.views], kept, rank),
            kept,
            basis,
            joint_rows(content),
        )
        files |= {f"{TOKENS_FOLDER}/{path}": data for path, data in tokens.items()}
    return files


def encode_tables(content: ShardContent, kept: KeptIdentity) -> dict[str, bytes]:
    """The Parquet files of a shard."""
    return {
        "examples.parquet": _encode_examples(content.examples),
        "views.parquet": _encode_views(content),
        "chunks.parquet": _encode_chunks(content, kept),
        "skips.parquet": _encode_skips(content),
    }


def count(content: ShardContent) -> Counts:
    """What the ledger says of a shard; a record gives an example or a skip."""
    joint = joint_rows(content)
    return Counts(
        num_records=len(content.examples) + len(content.skips),
        num_examples=len(content.examples),
        num_views=len(content.views),
        num_chunks=sum(len(stored.targets.chunk_C) for stored in content.views),
        num_masked=sum(int(stored.corruption.is_masked_S.sum()) for stored in content.views),
        num_token_rows=len(joint),
        num_joint_rows=int(joint.sum()),
        skips=dict(sorted(Counter(skip.reason for skip in content.skips).items())),
    )


def answered_chunks(content: ShardContent, stored: StoredView) -> Array:
    """Rows (t0, t1, s0, s1) of the chunks that a view has answers for."""
    return content.examples[stored.example].chunks_C4[stored.targets.chunk_C]


def joint_rows(content: ShardContent) -> NDArray[np.bool_]:
    """For each kept token row, whether its chunk has two teacher tokens or more."""
    spans = [
        answered_chunks(content, stored)[:, :2]
        for stored in content.views
        if stored.targets.tokens is not None
    ]
    size_C = np.diff(np.concatenate([np.empty((0, 2), np.int32), *spans]), axis=1)[:, 0]
    return np.repeat(size_C > 1, size_C)


def _check_view(stored: StoredView, pair: Pair, kept: KeptIdentity, rank: int) -> None:
    """A view must be what reading will derive: masks follow chunks, answers follow masks."""
    noise, targets = stored.corruption, stored.targets
    where = f"{pair.record_id} view {noise.view}"
    spans_C4, is_masked_C = pair.chunks_C4, noise.is_masked_C
    assert noise.is_masked_S.shape == pair.is_target_S.shape, f"{where}: mask of another length"
    assert np.array_equal(is_masked_C, has_any(spans_C4[:, 2:], noise.is_masked_S)), (
        f"{where}: is_masked_C is not the chunks that is_masked_S touches"
    )
    assert np.array_equal(
        noise.is_masked_T, is_covered(spans_C4[:, :2], is_masked_C, len(pair.teacher_ids_T))
    ), f"{where}: is_masked_T is not the teacher's side of is_masked_C"
    chunk_C = targets.chunk_C
    assert (np.diff(chunk_C) > 0).all(), f"{where}: answered chunks are not in order"
    assert is_masked_C[chunk_C].all(), f"{where}: a chunk is answered that is not masked"
    assert len(chunk_C) == len(targets.pass_C) == len(targets.logp_C), f"{where}: ragged targets"
    assert not np.isnan(targets.logp_C).any(), f"{where}: a chunk's logp is not a number"
    tokens = targets.tokens
    assert (tokens is not None) == kept.has_tokens, f"{where}: kept is {kept}"
    if tokens is not None:
        assert isinstance(tokens, KeptTargets), f"{where}: dense targets are never stored"
        num_rows = int(np.diff(spans_C4[chunk_C, :2]).sum())
        assert tokens.ids_MK.shape == (num_rows, kept.top_k), f"{where}: not a row a teacher token"
        size_C = spans_C4[chunk_C, 1] - spans_C4[chunk_C, 0]
        last_C = size_C.cumsum() - 1
        assert np.array_equal(
            tokens.gold_logp_M[last_C[size_C == 1]], targets.logp_C[size_C == 1]
        ), f"{where}: a chunk of one token has another logp than its token"
        assert tokens.sketch_MR.shape == (num_rows, rank), f"{where}: a sketch of another basis"
        assert tokens.temperatures == kept.temperatures, f"{where}: other temperatures"
        assert tokens.vocab_size == kept.vocab_size, f"{where}: another vocabulary"
        assert not np.isnan(tokens.logsumexp_MJ).any(), f"{where}: a logsumexp is not a number"


def _encode_examples(examples: tuple[Pair, ...]) -> bytes:
    ints, bools = np.empty(0, np.int32), np.empty(0, np.bool_)
    return encode_table(
        EXAMPLES,
        {
            "example": np.arange(len(examples), dtype=np.int32),
            "record_id": [pair.record_id for pair in examples],
            "student_ids": Ragged.of([pair.student_ids_S for pair in examples], ints),
            "is_target": Ragged.of([pair.is_target_S for pair in examples], bools),
            "teacher_ids": Ragged.of([pair.teacher_ids_T for pair in examples], ints),
            "chunks": Ragged.of([pair.chunks_C4 for pair in examples], np.empty((0, 4), np.int32)),
        },
    )


def _encode_views(content: ShardContent) -> bytes:
    views = content.views
    noises = [stored.corruption for stored in views]
    return encode_table(
        VIEWS,
        {
            "example": _int32(stored.example for stored in views),
            "record_id": [content.examples[stored.example].record_id for stored in views],
            "view": _int32(noise.view for noise in noises),
            "time": np.array([noise.time for noise in noises], dtype=np.float64),
            "is_masked": Ragged.of(
                [noise.is_masked_S for noise in noises], np.empty(0, dtype=np.bool_)
            ),
        },
    )


def _encode_chunks(content: ShardContent, kept: KeptIdentity) -> bytes:
    views = content.views
    counts = _int32(len(stored.targets.chunk_C) for stored in views)
    spans_C4 = np.concatenate(
        [np.empty((0, 4), np.int32), *(answered_chunks(content, stored) for stored in views)]
    )
    row_stops_C = (spans_C4[:, 1] - spans_C4[:, 0]).cumsum(dtype=np.int64)
    row_starts_C = row_stops_C - (spans_C4[:, 1] - spans_C4[:, 0])
    targets = [stored.targets for stored in views]
    return encode_table(
        CHUNKS,
        {
            "view_row": np.repeat(np.arange(len(views), dtype=np.int32), counts),
            "example": np.repeat(_int32(stored.example for stored in views), counts),
            "view": np.repeat(_int32(stored.corruption.view for stored in views), counts),
            "chunk": np.concatenate(
                [np.empty(0, np.int32), *(target.chunk_C for target in targets)]
            ),
            "pass": np.concatenate([np.empty(0, np.int8), *(target.pass_C for target in targets)]),
            "t0": spans_C4[:, 0],
            "t1": spans_C4[:, 1],
            "s0": spans_C4[:, 2],
            "s1": spans_C4[:, 3],
            "logp": np.concatenate(
                [np.empty(0, np.float32), *(target.logp_C for target in targets)]
            ),
            "token_row": row_starts_C if kept.has_tokens else None,
        },
    )


def _encode_skips(content: ShardContent) -> bytes:
    return encode_table(
        SKIPS, {name: [getattr(skip, name) for skip in content.skips] for name in SKIPS}
    )


def _joined(parts: list[TokenTargets | None], kept: KeptIdentity, rank: int) -> KeptTargets:
    """The rows of all views end to end."""
    no_rows = KeptTargets(
        ids_MK=np.empty((0, kept.top_k), np.int32),
        logits_MK=np.empty((0, kept.top_k), np.float32),
        logsumexp_MJ=np.empty((0, len(kept.temperatures)), np.float32),
        gold_logp_M=np.empty(0, np.float32),
        sketch_MR=np.empty((0, rank), np.int16),
        temperatures=kept.temperatures,
        vocab_size=kept.vocab_size,
    )
    return KeptTargets.joined([no_rows, *(one for one in parts if isinstance(one, KeptTargets))])


def _int32(numbers: Iterable[int]) -> Array:
    return np.fromiter(numbers, dtype=np.int32)
