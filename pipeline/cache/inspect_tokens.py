"""What is kept of a position, as LazyFrames: one row a position, or one a (position, rank).

Axes: M answered teacher token, K kept logit, J cached temperature.
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
from pipeline.cache.reader import CacheReader
from storage_schemas.errors import CacheMissingError
from storage_schemas.identity import KeptIdentity
from storage_schemas.manifest import LedgerEntry
from storage_schemas.parquet_layout import Array
from storage_schemas.targets import Floats
from storage_schemas.zarr_layout import TokenRows, decode_array, decode_ids, decode_logits

_OF_RANK = pl.Schema(
    {
        "rank": pl.Int32(),
        "token_id": pl.Int32(),
        "token": pl.String(),
        "logit": pl.Float32(),
        "probability": pl.Float64(),
        "is_gold": pl.Boolean(),
    }
)
TOP_K = pl.Schema({**OF_POSITION, **_OF_RANK})
_ROWS_A_BLOCK = 2**19


def scan_top_k(address: str | Path) -> pl.LazyFrame:
    """One row a kept logit: where it stands, its token and text, its probability at T = 1.

    probability = exp(logit - logsumexp) over the kept columns; null where T = 1 was not stored.
    is_gold marks the true token. Conditions and columns are pushed down (see `inspect_rows`).
    """
    reader = CacheReader.open(address, allow_empty=True)
    kept = reader.identity.kept
    if kept.top_k == 0:
        instead = (
            "scan_distributions for what its sketches say"
            if kept.has_tokens
            else "scan_chunks, or make a cache with top_k > 0"
        )
        raise CacheMissingError(
            f"{address}: expected kept logits, got a cache without a top k; look at {instead}"
        )

    def expand(
        entry: LedgerEntry, positions: pl.DataFrame, names: set[str]
    ) -> Iterator[pl.DataFrame]:
        texts = teacher_texts(reader) if "token" in names else None
        files, rows = read_arrays(reader, entry, _arrays_for(names))
        wants_ids = names & {"token_id", "token", "is_gold"}
        ids_MK = decode_ids(files, kept, rows) if wants_ids else None
        wants_logits = names & {"logit", "probability"}
        logits_MK = decode_logits(files, kept, rows) if wants_logits else None
        normalizer_M = None
        if "probability" in names and 1.0 in kept.temperatures:
            normalizer_M = logsumexp_at(files, kept, rows, 1.0)
        for block in positions.iter_slices(max(1, _ROWS_A_BLOCK // kept.top_k)):
            row_M = block["row"].to_numpy()
            columns: dict[str, Array | pl.Series] = {
                "rank": np.tile(np.arange(kept.top_k, dtype=np.int32), len(row_M))
            }
            if ids_MK is not None:
                columns["token_id"] = ids_MK[row_M].ravel()
                columns["is_gold"] = (ids_MK[row_M] == block["gold"].to_numpy()[:, None]).ravel()
            if texts is not None and ids_MK is not None:
                columns["token"] = texts.gather(ids_MK[row_M].ravel(), null_on_oob=True)
            if logits_MK is not None:
                columns["logit"] = logits_MK[row_M].ravel()
            if logits_MK is not None and normalizer_M is not None:
                shares_MK = np.exp(logits_MK[row_M] - normalizer_M[row_M, None])
                columns["probability"] = shares_MK.ravel()
            repeats = pl.Series(np.repeat(np.arange(len(row_M), dtype=np.uint32), kept.top_k))
            yield with_columns_of(block.select(pl.all().gather(repeats)), columns, TOP_K)

    return scan_rows(reader, TOP_K, expand)


def scan_positions(address: str | Path) -> pl.LazyFrame:
    """One row an answered teacher token: where it stands, the true token, and its likelihood.

    gold_logp: of the true token, over the teacher's whole vocabulary, in nats. logsumexp_1.0 and so
    on: logsumexp(z / T) over the kept columns at each cached T. Conditions and columns are pushed
    down (see `inspect_rows`): what is read beside the tables is what these columns need.
    """
    reader = CacheReader.open(address, allow_empty=True)
    kept = reader.identity.kept
    check_has_tokens(reader)
    normalizers = {f"logsumexp_{t}": t for t in kept.temperatures}
    schema = pl.Schema(
        {
            **OF_POSITION,
            "token_id": pl.Int32(),
            "token": pl.String(),
            "gold_logp": pl.Float32(),
            **dict.fromkeys(normalizers, pl.Float32()),
        }
    )

    def expand(
        entry: LedgerEntry, positions: pl.DataFrame, names: set[str]
    ) -> Iterator[pl.DataFrame]:
        wanted = {name: t for name, t in normalizers.items() if name in names}
        arrays = {"logsumexp"} if wanted else set[str]()
        # of a chunk of one token it is the chunk's own
        has_joint = "gold_logp" in names and positions["joint_row"].is_not_null().any()
        files, rows = read_arrays(reader, entry, arrays | ({"gold_logp"} if has_joint else set()))
        columns: dict[str, Array | pl.Series] = {"token_id": positions["gold"]}
        if "token" in names:
            columns["token"] = teacher_texts(reader).gather(positions["gold"], null_on_oob=True)
        if "gold_logp" in names:
            columns["gold_logp"] = gold_logp_of(files, kept, rows, positions)
        for name, temperature in wanted.items():
            normalizer_M = logsumexp_at(files, kept, rows, temperature)
            columns[name] = normalizer_M[positions["row"].to_numpy()].astype(np.float32)
        yield with_columns_of(positions, columns, schema)

    return scan_rows(reader, schema, expand)


def check_has_tokens(reader: CacheReader) -> None:
    """Raise where nothing is kept of a position."""
    if not reader.identity.kept.has_tokens:
        raise CacheMissingError(
            f"{reader.address}: expected rows of positions, got a cache with chunk likelihoods "
            f"alone (top_k = 0); look at scan_chunks, or make a cache with top_k > 0"
        )


def logsumexp_at(
    files: dict[str, bytes], kept: KeptIdentity, rows: TokenRows, temperature: float
) -> Array:
    """One column of the normalizers, as float64."""
    logsumexp_MJ = decode_array(files, kept, rows, "logsumexp")
    return logsumexp_MJ[:, kept.temperatures.index(temperature)].astype(np.float64)


def gold_logp_of(
    files: dict[str, bytes], kept: KeptIdentity, rows: TokenRows, positions: pl.DataFrame
) -> Floats:
    """The true tokens' log-likelihoods; the array is needed where a chunk has more tokens."""
    gold_logp_M = positions["chunk_logp"].to_numpy().copy()
    is_joint_M = positions["joint_row"].is_not_null().to_numpy()
    if is_joint_M.any():
        joint_L = positions["joint_row"].drop_nulls().to_numpy()
        gold_logp_M[is_joint_M] = decode_array(files, kept, rows, "gold_logp")[joint_L]
    return gold_logp_M


def _arrays_for(names: set[str]) -> set[str]:
    arrays: set[str] = set()
    if names & {"token_id", "token", "is_gold"}:
        arrays |= {"ids_low", "ids_high"}
    if names & {"logit", "probability"}:
        arrays |= {"logits", "logit_max", "logit_step"}
    if "probability" in names:
        arrays.add("logsumexp")
    return arrays
