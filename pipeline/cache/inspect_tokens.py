"""The kept logits as a Polars LazyFrame, one row a (position, rank), read shard by shard.

Axes: M answered teacher token, K kept logit.
"""

from collections.abc import Collection, Iterator
from itertools import compress
from operator import not_
from pathlib import Path

import numpy as np
import polars as pl
from polars.io.plugins import register_io_source

from pipeline.cache.decode import tokens_of
from pipeline.cache.inspect_tables import scan_vocabulary
from pipeline.cache.reader import CacheReader
from storage_schemas.errors import CacheMissingError
from storage_schemas.manifest import LedgerEntry
from storage_schemas.parquet_layout import CHUNKS, EXAMPLES, VIEWS, Array, decode_table
from storage_schemas.zarr_layout import (
    TOKENS_FOLDER,
    TokenRows,
    decode_array,
    decode_ids,
    decode_logits,
)

_OF_SHARD = pl.Schema({"shard": pl.String(), "view": pl.Int32()})
_OF_POSITION = pl.Schema(
    {
        "shard": pl.String(),
        "record_id": pl.String(),
        "view": pl.Int32(),
        "time": pl.Float64(),
        "example": pl.Int32(),
        "chunk": pl.Int32(),
        "teacher_position": pl.Int32(),
    }
)
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
_ALL = pl.Schema({**_OF_POSITION, **_OF_RANK})


def scan_top_k(address: str | Path) -> pl.LazyFrame:
    """One row a kept logit: where it stands, its token and text, its probability at T = 1.

    probability = exp(logit - logsumexp) over the kept columns; null where T = 1 was not stored.
    is_gold marks the true token. Conditions joined by `&` are pushed down: those on shard and view
    skip whole shards unread, those on a position skip the logits of shards without a match.
    """
    reader = CacheReader.open(address, allow_empty=True)
    if reader.identity.kept.top_k == 0:
        raise CacheMissingError(
            f"{address}: expected kept logits, got a cache with chunk likelihoods alone "
            f"(top_k = 0); look at scan_chunks, or make a cache with top_k > 0"
        )
    schema = _ALL

    def source(
        with_columns: list[str] | None,
        predicate: pl.Expr | None,
        n_rows: int | None,
        batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        del batch_size  # a shard at a time
        wanted = list(schema) if with_columns is None else with_columns
        conditions = [] if predicate is None else conjuncts(predicate)
        texts = _texts(reader)
        if n_rows is None:
            for entry in reader.entries:
                yield _read(reader, entry, texts, wanted, conditions, None)
            return
        # A limit counts rows before the condition: Polars gives both for head(n).filter(...) and
        # keeps the limit of filter(...).head(n) to itself.
        names = [*wanted, *(name for name in _names(conditions) if name not in wanted)]
        for entry in reader.entries:
            if n_rows <= 0:
                return
            frame = _read(reader, entry, texts, names, [], n_rows)
            n_rows -= len(frame)
            yield _meeting(conditions, frame).select(wanted)

    return register_io_source(source, schema=schema, validate_schema=True)


def conjuncts(predicate: pl.Expr) -> list[pl.Expr]:
    """The conditions that `predicate` joins by `&`, or itself."""
    inputs = predicate.meta.pop()
    if len(inputs) == 2:
        for left, right in (inputs, inputs[::-1]):
            if (left & right).meta.eq(predicate):
                return [*conjuncts(left), *conjuncts(right)]
    return [predicate]


def _read(
    reader: CacheReader,
    entry: LedgerEntry,
    texts: pl.Series,
    wanted: list[str],
    conditions: list[pl.Expr],
    limit: int | None,
) -> pl.DataFrame:
    """The rows of one shard that meet all conditions; a limit is for reading without any."""
    assert limit is None or not conditions, "a limit and conditions do not commute"
    nothing = pl.DataFrame(schema=_ALL).select(wanted)
    of_shard, _ = _split(conditions, _OF_SHARD)
    views = pl.DataFrame({"shard": entry.shard, "view": list(entry.views)}, schema=_OF_SHARD)
    if _meeting(of_shard, views).is_empty():
        return nothing
    of_position, of_rank = _split(conditions, _OF_POSITION)
    positions = _meeting(of_position, _positions(reader, entry).with_row_index("row"))
    if positions.is_empty():
        return nothing
    names = {*wanted, *_names(of_rank)}
    top_k = reader.identity.kept.top_k
    positions = positions if limit is None else positions.head(-(-limit // top_k))
    repeats = pl.Series(np.repeat(np.arange(len(positions), dtype=np.uint32), top_k))
    ranks = _ranks(
        reader, entry, texts, names, positions["row"].to_numpy(), positions["gold"].to_numpy()
    )
    frame = positions.select(_OF_POSITION.keys()).select(pl.all().gather(repeats))
    rows = _meeting(of_rank, frame.with_columns(ranks)).select(wanted)
    return rows if limit is None else rows.head(limit)


def _names(conditions: list[pl.Expr]) -> set[str]:
    """The columns that conditions read."""
    return {name for condition in conditions for name in condition.meta.root_names()}


def _split(
    conditions: list[pl.Expr], columns: Collection[str]
) -> tuple[list[pl.Expr], list[pl.Expr]]:
    """The conditions that need these columns alone, and the others."""
    inside = [set(condition.meta.root_names()) <= set(columns) for condition in conditions]
    return list(compress(conditions, inside)), list(compress(conditions, map(not_, inside)))


def _meeting(conditions: list[pl.Expr], frame: pl.DataFrame) -> pl.DataFrame:
    """The rows for which all conditions hold."""
    for condition in conditions:
        frame = frame.filter(condition)
    return frame


def _positions(reader: CacheReader, entry: LedgerEntry) -> pl.DataFrame:
    """The answered positions of a shard in stored order, with the true token of each (`gold`)."""
    names = {"examples.parquet", "views.parquet", "chunks.parquet"}
    files = reader.read_files(entry, [f for f in entry.files if entry.inner_path(f) in names])
    examples = decode_table(EXAMPLES, files["examples.parquet"]).lists["teacher_ids"]
    views = decode_table(VIEWS, files["views.parquet"])
    chunks = decode_table(CHUNKS, files["chunks.parquet"]).arrays
    lengths_C = chunks["t1"] - chunks["t0"]
    chunk_M = np.repeat(np.arange(len(lengths_C)), lengths_C)
    first_M = (lengths_C.cumsum() - lengths_C)[chunk_M]
    position_M = (chunks["t0"][chunk_M] + np.arange(len(chunk_M)) - first_M).astype(np.int32)
    example_M, view_row_M = chunks["example"][chunk_M], chunks["view_row"][chunk_M]
    starts = examples.lengths.cumsum() - examples.lengths
    record_ids = pl.Series(views.texts["record_id"], dtype=pl.String)
    return pl.DataFrame(
        {
            "record_id": record_ids.gather(view_row_M),
            "view": chunks["view"][chunk_M],
            "time": views.arrays["time"][view_row_M],
            "example": example_M,
            "chunk": chunks["chunk"][chunk_M],
            "teacher_position": position_M,
            "gold": examples.values[starts[example_M] + position_M],
        }
    ).select(pl.lit(entry.shard).alias("shard"), pl.all())


def _ranks(
    reader: CacheReader,
    entry: LedgerEntry,
    texts: pl.Series,
    names: set[str],
    row_M: Array,
    gold_M: Array,
) -> list[pl.Series]:
    """The columns of a (position, rank) that are asked for; the others are null and unread."""
    kept = reader.identity.kept
    prefixes = [f"{TOKENS_FOLDER}/{name}/" for name in _arrays_for(names)]
    listed = [f for f in entry.files if any(p in f.path for p in prefixes)]
    files = tokens_of(reader.read_files(entry, listed))
    counts = entry.counts
    rows = TokenRows(num_rows=counts.num_token_rows, num_joint=counts.num_joint_rows)
    columns: dict[str, Array | pl.Series] = {}
    if "rank" in names:
        columns["rank"] = np.tile(np.arange(kept.top_k, dtype=np.int32), len(row_M))
    if names & {"token_id", "token", "is_gold"}:
        ids_MK = decode_ids(files, kept, rows)[row_M]
        columns["token_id"] = ids_MK.ravel()
        columns["is_gold"] = (ids_MK == gold_M[:, None]).ravel()
        if "token" in names:
            columns["token"] = texts.gather(ids_MK.ravel(), null_on_oob=True)
    if names & {"logit", "probability"}:
        logits_MK = decode_logits(files, kept, rows)[row_M]
        columns["logit"] = logits_MK.ravel()
        if "probability" in names and 1.0 in kept.temperatures:
            logsumexp_MJ = decode_array(files, kept, rows, "logsumexp").astype(np.float64)
            normalizer_M = logsumexp_MJ[row_M, kept.temperatures.index(1.0)]
            columns["probability"] = np.exp(logits_MK - normalizer_M[:, None]).ravel()
    size = len(row_M) * kept.top_k
    return [
        pl.Series(name, columns[name], dtype=dtype)
        if name in columns
        else pl.Series(name, [None], dtype=dtype).new_from_index(0, size)
        for name, dtype in _OF_RANK.items()
    ]


def _arrays_for(names: set[str]) -> set[str]:
    arrays: set[str] = set()
    if names & {"token_id", "token", "is_gold"}:
        arrays |= {"ids_low", "ids_high"}
    if names & {"logit", "probability"}:
        arrays |= {"logits", "logit_max", "logit_step", "logsumexp"}
    return arrays


def _texts(reader: CacheReader) -> pl.Series:
    """The teacher's token texts, by id; null where the vocabulary has a gap."""
    tokens = scan_vocabulary(reader, "teacher").collect()
    last: int = tokens["id"].to_numpy().max(initial=-1)
    ids = pl.DataFrame({"id": np.arange(last + 1, dtype=np.int32)})
    return ids.join(tokens, on="id", how="left", maintain_order="left")["text"]
