"""The whole distributions that sketches stand for, as a LazyFrame: one row a likely token.

Axes: M answered teacher token, V vocabulary, N token that is shown.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.cache.inspect_rows import (
    OF_POSITION,
    read_arrays,
    scan_rows,
    teacher_texts,
    with_columns_of,
)
from pipeline.cache.inspect_tokens import gold_logp_of, logsumexp_at
from pipeline.cache.reader import CacheReader
from pipeline.targets.sketch_rows import sketch_rows
from storage_schemas.errors import CacheMissingError
from storage_schemas.identity import SketchTail
from storage_schemas.manifest import LedgerEntry
from storage_schemas.parquet_layout import Array
from storage_schemas.sketch_coder import decode_sketch
from storage_schemas.zarr_layout import decode_array

DISTRIBUTIONS = pl.Schema(
    {
        **OF_POSITION,
        "rank": pl.Int32(),
        "token_id": pl.Int32(),
        "token": pl.String(),
        "probability": pl.Float64(),
        "is_gold": pl.Boolean(),
    }
)
_LOGITS_A_BLOCK = 2**24  # 64 MiB of float32 logits at once


def scan_distributions(
    address: str | Path,
    *,
    temperature: float = 1.0,
    likeliest: int | None = 16,
    above: float = 0.0,
) -> pl.LazyFrame:
    """One row a token: its probability at one of the cached temperatures, as stage 2 expands it.

    Of each position the `likeliest` tokens (None: all) whose probability is at least `above`, in
    order of rank. The true token's probability is exact. Conditions are pushed down (see
    `inspect_rows`): only positions that meet those on a position are expanded, and a shard without
    any has none of its arrays read.
    """
    reader = CacheReader.open(address, allow_empty=True)
    kept = reader.identity.kept
    if not isinstance(kept.tail, SketchTail):
        raise CacheMissingError(
            f"{address}: expected sketches, got a cache without them; look at scan_top_k, or make "
            f"a cache with targets.tail.type = 'sketch'"
        )
    if temperature not in kept.temperatures:
        raise CacheMissingError(
            f"{address}: expected one of the cached temperatures {list(kept.temperatures)}, got "
            f"{temperature}"
        )
    num_shown = kept.vocab_size if likeliest is None else min(likeliest, kept.vocab_size)

    def expand(
        entry: LedgerEntry, positions: pl.DataFrame, names: set[str]
    ) -> Iterator[pl.DataFrame]:
        basis = reader.read_basis()
        assert basis is not None, "a sketch has its basis"
        assert basis.coder is not None, "and its coder"
        texts = teacher_texts(reader) if "token" in names else None
        files, rows = read_arrays(reader, entry, ("sketch", "logsumexp", "gold_logp"))
        coded = decode_array(files, kept, rows, "sketch")
        sketch_MR = decode_sketch(coded, rows.num_rows, basis.coder)
        scaled_M = logsumexp_at(files, kept, rows, temperature).astype(np.float32)
        # without the normalizer at T = 1 a log-likelihood gives no logit: the token is left alone
        has_plain = 1.0 in kept.temperatures
        plain_M = logsumexp_at(files, kept, rows, 1.0 if has_plain else temperature)
        for block in positions.iter_slices(max(1, _LOGITS_A_BLOCK // kept.vocab_size)):
            row_M, gold_M = block["row"].to_numpy(), block["gold"].to_numpy()
            logits_MV = sketch_rows(
                basis,
                sketch_MR[row_M],
                scaled_M[row_M],
                gold_M if has_plain else np.full_like(gold_M, kept.vocab_size),
                (gold_logp_of(files, kept, rows, block) + plain_M[row_M]).astype(np.float32),
                temperature=temperature,
            )
            log_shares_MV = logits_MV / temperature - scaled_M[row_M, None]
            ids_MN = _likeliest(log_shares_MV, num_shown)
            shares_MN = np.exp(np.take_along_axis(log_shares_MV, ids_MN, 1).astype(np.float64))
            m_N, rank_N = np.nonzero(shares_MN >= above)
            ids_N = ids_MN[m_N, rank_N].astype(np.int32)
            columns: dict[str, Array | pl.Series] = {
                "rank": rank_N.astype(np.int32),
                "token_id": ids_N,
                "probability": shares_MN[m_N, rank_N],
                "is_gold": ids_N == gold_M[m_N],
            }
            if texts is not None:
                columns["token"] = texts.gather(ids_N, null_on_oob=True)
            repeats = pl.Series(m_N.astype(np.uint32))
            yield with_columns_of(block.select(pl.all().gather(repeats)), columns, DISTRIBUTIONS)

    return scan_rows(reader, DISTRIBUTIONS, expand)


def _likeliest(log_shares_MV: Array, count: int) -> Array:
    """Ids of the `count` largest of each row, in order."""
    order_MV = -log_shares_MV
    if count == order_MV.shape[1]:
        return order_MV.argsort(axis=1, kind="stable")
    ids_MN = np.argpartition(order_MV, count, axis=1)[:, :count]
    inner_MN = np.take_along_axis(order_MV, ids_MN, 1).argsort(axis=1, kind="stable")
    return np.take_along_axis(ids_MN, inner_MN, 1)
