"""Parquet tables of a cache as LazyFrames: scanned in place on a disk, else read when needed."""

from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from typing import Any, Literal

import polars as pl
from polars.io.plugins import register_io_source

from pipeline.cache.reader import CacheReader
from storage_schemas.manifest import LedgerEntry


def scan_table(
    reader: CacheReader, entry: LedgerEntry, name: str, schema: Mapping[str, Any]
) -> pl.LazyFrame:
    """One table of a shard, with at least those columns of the schema that are stored.

    From an object store the table's bytes come through the reader, checked, when it is collected.
    """
    file = next(file for file in entry.files if entry.inner_path(file) == name)
    path = reader.store.local_path(file.path)
    if path is not None:
        return pl.scan_parquet(path, glob=False)
    stored = {column: kind for column, kind in schema.items() if column != "shard"}
    return _lazily(lambda: reader.read_files(entry, [file])[name], stored)


def scan_vocabulary(reader: CacheReader, side: Literal["student", "teacher"]) -> pl.LazyFrame:
    """One tokenizer's tokens: id, bytes, text."""
    path = reader.store.local_path(reader.manifest.vocabulary(side).path)
    if path is not None:
        return pl.scan_parquet(path, glob=False)
    return pl.read_parquet(BytesIO(reader.read_vocabulary(side))).lazy()


def _lazily(read: Callable[[], bytes], schema: Mapping[str, Any]) -> pl.LazyFrame:
    def source(
        with_columns: list[str] | None,
        predicate: pl.Expr | None,
        n_rows: int | None,
        batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        del batch_size  # a table at a time
        frame = pl.read_parquet(BytesIO(read())).select(list(schema))
        if n_rows is not None:  # before the condition, as Polars counts
            frame = frame.head(n_rows)
        if predicate is not None:
            frame = frame.filter(predicate)
        yield frame if with_columns is None else frame.select(with_columns)

    return register_io_source(source, schema=pl.Schema(schema), validate_schema=True)
