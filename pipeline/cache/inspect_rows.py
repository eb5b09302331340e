"""Rows about answered positions as a Polars LazyFrame, read shard by shard with push-down.

Conditions joined by `&` are taken apart: those on shard and view skip whole shards unread, those on
a position are met before anything but the tables is read, and the rest, with the columns that are
asked for, says which arrays an answer needs.

Axes: M answered teacher token, C answered chunk.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import compress
from operator import not_
from typing import Any

import numpy as np
import polars as pl
from polars.io.plugins import register_io_source

from pipeline.cache.decode import tokens_of
from pipeline.cache.inspect_tables import scan_vocabulary
from pipeline.cache.reader import CacheReader
from storage_schemas.manifest import LedgerEntry
from storage_schemas.parquet_layout import CHUNKS, EXAMPLES, VIEWS, Array, decode_table
from storage_schemas.zarr_layout import TOKENS_FOLDER, TokenRows

_OF_SHARD = pl.Schema({"shard": pl.String(), "view": pl.Int32()})
OF_POSITION = pl.Schema(
    {
        "shard": pl.String(),
        "record_id": pl.String(),
        "view": pl.Int32(),
        "time": pl.Float64(),
        "example": pl.Int32(),
        "chunk": pl.Int32(),
        "pass": pl.Int8(),
        "teacher_position": pl.Int32(),
    }
)

Expand = Callable[[LedgerEntry, pl.DataFrame, set[str]], Iterator[pl.DataFrame]]
"""A shard, its chosen positions, and the columns that are needed: their rows, in blocks.

Beside OF_POSITION the positions have `row` (in the arrays of M rows), `joint_row` (in those of
joint chunks, null elsewhere), `gold` (the true token) and `chunk_logp`. What is not needed may be
null in a block.
"""


def scan_rows(reader: CacheReader, schema: Mapping[str, Any], expand: Expand) -> pl.LazyFrame:
    """A frame of the schema, whose columns begin with those of OF_POSITION."""

    def source(
        with_columns: list[str] | None,
        predicate: pl.Expr | None,
        n_rows: int | None,
        batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        del batch_size  # a block at a time
        wanted = list(schema) if with_columns is None else with_columns
        conditions = [] if predicate is None else conjuncts(predicate)
        if n_rows is None:
            for entry in reader.entries:
                yield from _blocks(reader, entry, expand, wanted, conditions)
            return
        # A limit counts rows before the condition: Polars gives both for head(n).filter(...) and
        # keeps the limit of filter(...).head(n) to itself.
        names = [*wanted, *(name for name in _names(conditions) if name not in wanted)]
        for entry in reader.entries:
            if n_rows <= 0:
                return
            for block in _blocks(reader, entry, expand, names, []):
                frame = block.head(n_rows)
                n_rows -= len(frame)
                yield _meeting(conditions, frame).select(wanted)
                if n_rows <= 0:
                    return

    return register_io_source(source, schema=pl.Schema(schema), validate_schema=True)


def conjuncts(predicate: pl.Expr) -> list[pl.Expr]:
    """The conditions that `predicate` joins by `&`, or itself."""
    inputs = predicate.meta.pop()
    if len(inputs) == 2:
        for left, right in (inputs, inputs[::-1]):
            if (left & right).meta.eq(predicate):
                return [*conjuncts(left), *conjuncts(right)]
    return [predicate]


def read_arrays(
    reader: CacheReader, entry: LedgerEntry, names: Collection[str]
) -> tuple[dict[str, bytes], TokenRows]:
    """The files of some arrays of a shard, checked, by path under tokens.zarr; and their rows."""
    prefixes = tuple(f"{TOKENS_FOLDER}/{name}/" for name in names)
    listed = [file for file in entry.files if entry.inner_path(file).startswith(prefixes)]
    files = tokens_of(reader.read_files(entry, listed)) if listed else {}
    counts = entry.counts
    return files, TokenRows(num_rows=counts.num_token_rows, num_joint=counts.num_joint_rows)


def teacher_texts(reader: CacheReader) -> pl.Series:
    """The teacher's token texts, by id; null where the vocabulary has a gap."""
    tokens = scan_vocabulary(reader, "teacher").collect()
    last: int = tokens["id"].to_numpy().max(initial=-1)
    ids = pl.DataFrame({"id": np.arange(last + 1, dtype=np.int32)})
    return ids.join(tokens, on="id", how="left", maintain_order="left")["text"]


def with_columns_of(
    positions: pl.DataFrame, columns: dict[str, Array | pl.Series], schema: Mapping[str, Any]
) -> pl.DataFrame:
    """A block: the positions, and the other columns of the schema, null where there is none."""
    size = len(positions)
    others = [
        pl.Series(name, columns[name], dtype=dtype)
        if name in columns
        else pl.Series(name, [None], dtype=dtype).new_from_index(0, size)
        for name, dtype in schema.items()
        if name not in OF_POSITION
    ]
    return positions.select(OF_POSITION.keys()).with_columns(others)


def _blocks(
    reader: CacheReader,
    entry: LedgerEntry,
    expand: Expand,
    wanted: list[str],
    conditions: list[pl.Expr],
) -> Iterator[pl.DataFrame]:
    """The rows of one shard that meet all conditions."""
    of_shard, _ = _split(conditions, _OF_SHARD)
    views = pl.DataFrame({"shard": entry.shard, "view": list(entry.views)}, schema=_OF_SHARD)
    if _meeting(of_shard, views).is_empty():
        return
    of_position, of_row = _split(conditions, OF_POSITION)
    positions = _meeting(of_position, _positions(reader, entry))
    if positions.is_empty():
        return
    for block in expand(entry, positions, {*wanted, *_names(of_row)}):
        yield _meeting(of_row, block).select(wanted)


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
    """The answered positions of a shard in stored order, as `Expand` takes them."""
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
    is_joint_M = lengths_C[chunk_M] > 1
    record_ids = pl.Series(views.texts["record_id"], dtype=pl.String)
    frame = pl.DataFrame(
        {
            "record_id": record_ids.gather(view_row_M),
            "view": chunks["view"][chunk_M],
            "time": views.arrays["time"][view_row_M],
            "example": example_M,
            "chunk": chunks["chunk"][chunk_M],
            "pass": chunks["pass"][chunk_M],
            "teacher_position": position_M,
            "gold": examples.values[starts[example_M] + position_M],
            "chunk_logp": chunks["logp"][chunk_M],
            "joint_row": pl.Series(is_joint_M.cumsum() - 1).set(pl.Series(~is_joint_M), None),
        }
    )
    return frame.select(pl.lit(entry.shard).alias("shard"), pl.all()).with_row_index("row")
