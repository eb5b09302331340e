"""Looking at a cache: Polars LazyFrames over its committed shards, with the tokens' texts.

Examples, views and chunks are scans over Parquet; what is kept of positions is in `inspect_tokens`
and `inspect_sketches`. docs/queries.md asks ten questions of them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import polars as pl

from pipeline.cache.inspect_sketches import scan_distributions
from pipeline.cache.inspect_tables import scan_table, scan_vocabulary
from pipeline.cache.inspect_tokens import scan_positions, scan_top_k
from pipeline.cache.reader import CacheReader

__all__ = [
    "scan_chunks",
    "scan_distributions",
    "scan_examples",
    "scan_positions",
    "scan_top_k",
    "scan_views",
    "token_texts",
]

_TEXT = pl.String()
_SPAN = pl.Struct({"t0": pl.Int32, "t1": pl.Int32, "s0": pl.Int32, "s1": pl.Int32})
_EXAMPLES = pl.Schema(
    {
        "shard": pl.String(),
        "example": pl.Int32(),
        "record_id": pl.String(),
        "student_ids": pl.List(pl.Int32),
        "is_target": pl.List(pl.Boolean),
        "teacher_ids": pl.List(pl.Int32),
        "chunks": pl.List(_SPAN),
    }
)
_VIEWS = pl.Schema(
    {
        "shard": pl.String(),
        "example": pl.Int32(),
        "record_id": pl.String(),
        "view": pl.Int32(),
        "time": pl.Float64(),
        "is_masked": pl.List(pl.Boolean),
    }
)
_CHUNKS = pl.Schema(
    {
        "shard": pl.String(),
        "view_row": pl.Int32(),
        "example": pl.Int32(),
        "view": pl.Int32(),
        "chunk": pl.Int32(),
        "pass": pl.Int8(),
        "t0": pl.Int32(),
        "t1": pl.Int32(),
        "s0": pl.Int32(),
        "s1": pl.Int32(),
        "logp": pl.Float32(),
        "token_row": pl.Int64(),
    }
)


def scan_examples(address: str | Path) -> pl.LazyFrame:
    """One row an example of a shard: both tokenizations, and the chunks aligned between them."""
    return _scan(address, "examples.parquet", _EXAMPLES)


def scan_views(address: str | Path) -> pl.LazyFrame:
    """One row a view: its time, and which student positions are masked."""
    return _scan(address, "views.parquet", _VIEWS)


def scan_chunks(address: str | Path, *, with_text: bool = False) -> pl.LazyFrame:
    """One row an answered chunk: its spans and the teacher's log-likelihood in nats.

    With the text, a column `text` has what the chunk says: its teacher tokens' bytes as UTF-8.
    """
    chunks = _scan(address, "chunks.parquet", _CHUNKS)
    if not with_text:
        return chunks
    tokens = token_texts(address, "teacher").select("id", "bytes").collect()
    bytes_of: dict[int, bytes] = dict(tokens.iter_rows())

    def texts(spans: pl.Series) -> pl.Series:
        joined = [b"".join(bytes_of.get(token_id, b"") for token_id in span) for span in spans]
        return pl.Series([span.decode("utf-8", errors="replace") for span in joined], dtype=_TEXT)

    ids = scan_examples(address).select("shard", "example", "teacher_ids")
    span = pl.col("teacher_ids").list.slice(pl.col("t0"), pl.col("t1") - pl.col("t0"))
    text = span.map_batches(texts, return_dtype=_TEXT, is_elementwise=True).alias("text")
    joined = chunks.join(ids, on=["shard", "example"], how="left", maintain_order="left")
    return joined.with_columns(text).drop("teacher_ids")


def token_texts(address: str | Path, side: Literal["student", "teacher"]) -> pl.LazyFrame:
    """One row a token of one tokenizer: id, bytes, and text (undecodable bytes as U+FFFD)."""
    reader = CacheReader.open(address, allow_empty=True)
    return scan_vocabulary(reader, side)


def _scan(address: str | Path, file: str, schema: Mapping[str, Any]) -> pl.LazyFrame:
    reader = CacheReader.open(address, allow_empty=True)
    columns = [name for name in schema if name != "shard"]
    shards = [
        scan_table(reader, entry, file, schema).select(pl.lit(entry.shard).alias("shard"), *columns)
        for entry in reader.entries
    ]
    return pl.concat(shards) if shards else pl.LazyFrame(schema=schema)
