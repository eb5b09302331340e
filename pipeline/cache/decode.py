"""A shard's content from the bytes of its files; the inverse of `encode`."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from pipeline.diffusion.corrupt import has_any, is_covered
from storage_schemas.errors import CacheCorruptError
from storage_schemas.examples import Bools, Ints, Pair
from storage_schemas.identity import KeptIdentity
from storage_schemas.manifest import LedgerEntry
from storage_schemas.parquet_layout import CHUNKS, EXAMPLES, SKIPS, VIEWS, Table, decode_table
from storage_schemas.shard import ShardContent, StoredView
from storage_schemas.sketch_coder import SketchCoder
from storage_schemas.skips import Skip
from storage_schemas.targets import KeptTargets, Targets
from storage_schemas.views import Corruption
from storage_schemas.zarr_layout import TOKENS_FOLDER, decode_tokens

# What nonsense in whole files may run into while it is decoded; a damaged file comes before this.
NONSENSE = (CacheCorruptError, AssertionError, IndexError, KeyError, ValueError, OverflowError)


def decode_shard(
    files: Mapping[str, bytes],
    entry: LedgerEntry,
    kept: KeptIdentity,
    coder: SketchCoder | None,
    *,
    with_top_k: bool = True,
) -> ShardContent:
    """The content whose files (by path under the shard's folder) these are."""
    examples = _decode_examples(decode_table(EXAMPLES, files["examples.parquet"]))
    views = decode_table(VIEWS, files["views.parquet"])
    chunks = decode_table(CHUNKS, files["chunks.parquet"])
    skips = decode_table(SKIPS, files["skips.parquet"]).texts
    counts = entry.counts
    _expect("examples", len(examples), counts.num_examples)
    _expect("views", len(views.texts["record_id"]), counts.num_views)
    _expect("chunks", len(chunks.arrays["chunk"]), counts.num_chunks)
    _expect("skips", len(skips["reason"]), sum(counts.skips.values()))
    tokens = None
    if kept.has_tokens:
        size_C = chunks.arrays["t1"] - chunks.arrays["t0"]
        _expect_sizes(size_C, max((len(pair.teacher_ids_T) for pair in examples), default=0))
        is_joint_M = np.repeat(size_C > 1, size_C)
        _expect("token rows", len(is_joint_M), counts.num_token_rows)
        _expect("rows of joint chunks", int(is_joint_M.sum()), counts.num_joint_rows)
        tokens = decode_tokens(
            tokens_of(files),
            kept,
            coder,
            is_joint_M=is_joint_M,
            chunk_logp_M=np.repeat(chunks.arrays["logp"], size_C),
            with_top_k=with_top_k,
        )
    return ShardContent(
        part=entry.part,
        view_start=entry.view_start,
        view_stop=entry.view_stop,
        examples=examples,
        views=_decode_views(examples, views, chunks, tokens),
        skips=tuple(
            Skip(**dict(zip(skips, row, strict=True))) for row in zip(*skips.values(), strict=True)
        ),
    )


def tokens_of(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files under tokens.zarr, by path under it."""
    prefix = f"{TOKENS_FOLDER}/"
    return {
        path.removeprefix(prefix): data for path, data in files.items() if path.startswith(prefix)
    }


def derive_corruption(pair: Pair, *, view: int, time: float, is_masked_S: Bools) -> Corruption:
    """The noise of a view from the student's mask, which is chunk-consistent."""
    is_masked_C = has_any(pair.chunks_C4[:, 2:], is_masked_S)
    return Corruption(
        view=view,
        time=time,
        is_masked_S=is_masked_S,
        is_masked_T=is_covered(pair.chunks_C4[:, :2], is_masked_C, len(pair.teacher_ids_T)),
        is_masked_C=is_masked_C,
    )


def _decode_examples(table: Table) -> tuple[Pair, ...]:
    rows = zip(
        table.texts["record_id"],
        table.lists["student_ids"].rows(),
        table.lists["is_target"].rows(),
        table.lists["teacher_ids"].rows(),
        table.lists["chunks"].rows(),
        strict=True,
    )
    return tuple(
        Pair(
            record_id=record_id,
            student_ids_S=student_ids_S,
            is_target_S=is_target_S,
            teacher_ids_T=teacher_ids_T,
            chunks_C4=chunks_C4,
        )
        for record_id, student_ids_S, is_target_S, teacher_ids_T, chunks_C4 in rows
    )


def _decode_views(
    examples: tuple[Pair, ...], views: Table, chunks: Table, tokens: KeptTargets | None
) -> tuple[StoredView, ...]:
    column = chunks.arrays
    num_views = len(views.texts["record_id"])
    edges = np.searchsorted(column["view_row"], np.arange(num_views + 1))
    row_stops = np.concatenate(([0], (column["t1"] - column["t0"]).cumsum(dtype=np.int64)))
    chunk_edges: list[int] = edges.tolist()
    row_edges: list[int] = row_stops[edges].tolist()
    stored: list[StoredView] = []
    rows = zip(
        views.arrays["example"].tolist(),
        views.arrays["view"].tolist(),
        views.arrays["time"].tolist(),
        views.lists["is_masked"].rows(),
        pairwise(chunk_edges),
        pairwise(row_edges),
        strict=True,
    )
    for example, view, time, is_masked_S, (start, stop), token_rows in rows:
        pair = examples[int(example)]
        noise = derive_corruption(pair, view=view, time=time, is_masked_S=is_masked_S)
        targets = Targets(
            chunk_C=column["chunk"][start:stop],
            pass_C=column["pass"][start:stop],
            logp_C=column["logp"][start:stop],
            tokens=None if tokens is None else tokens.rows(*token_rows),
        )
        stored.append(StoredView(example=example, corruption=noise, targets=targets))
    return tuple(stored)


def _expect_sizes(size_C: Ints, longest: int) -> None:
    """Before a row a token is made for them."""
    if ((size_C < 1) | (size_C > longest)).any():
        raise CacheCorruptError(
            f"expected chunks of 1 to {longest} tokens, as the teacher's sequences are long, got "
            f"{int(size_C.min())} to {int(size_C.max())}"
        )


def _expect(what: str, got: int, expected: int) -> None:
    if got != expected:
        raise CacheCorruptError(f"expected {expected} {what}, as the ledger says, got {got}")
