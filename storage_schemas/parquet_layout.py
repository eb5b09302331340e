"""The Parquet half of a shard: what is one number, or one short list, a row.

This is the one module that knows pyarrow. Every page carries a checksum, which reading verifies;
the same columns give the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_schemas.errors import CacheCorruptError
from storage_schemas.expansion import check_expansion

# pyarrow has no type stubs: as Any it stays inside this module, whose own functions are typed.
_pa: Any = import_module("pyarrow")
_pq: Any = import_module("pyarrow.parquet")

Array = NDArray[Any]
Fields = Mapping[str, str]

EXAMPLES: Fields = {
    "example": "int32",
    "record_id": "string",
    "student_ids": "list<int32>",
    "is_target": "list<bool>",
    "teacher_ids": "list<int32>",
    "chunks": "list<chunk>",
}
VIEWS: Fields = {
    "example": "int32",
    "record_id": "string",
    "view": "int32",
    "time": "float64",
    "is_masked": "list<bool>",
}
CHUNKS: Fields = {
    "view_row": "int32",  # row of views.parquet
    "example": "int32",
    "view": "int32",
    "chunk": "int32",
    "pass": "int8",
    "t0": "int32",
    "t1": "int32",
    "s0": "int32",
    "s1": "int32",
    "logp": "float32",
    "token_row": "int64",  # first row in tokens.zarr; null where no tokens are kept
}
SKIPS: Fields = {"where": "string", "record_id": "string", "reason": "string", "message": "string"}
VOCABULARY: Fields = {"id": "int32", "bytes": "binary", "text": "string"}

TABLES: Mapping[str, Fields] = {
    "examples.parquet": EXAMPLES,
    "views.parquet": VIEWS,
    "chunks.parquet": CHUNKS,
    "skips.parquet": SKIPS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ragged:
    """A list column: all rows' values end to end, and how many belong to each row."""

    values: Array
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[Array], empty: Array) -> "Ragged":
        """The rows end to end; `empty` (no rows) gives dtype and trailing shape."""
        lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
        return cls(values=np.concatenate([empty, *rows]), lengths=lengths)

    def rows(self) -> list[Array]:
        """One view into `values` a row."""
        edges = [0, *self.lengths.cumsum().tolist()]
        return [self.values[start:stop] for start, stop in pairwise(edges)]


Column = Array | Ragged | Sequence[str] | Sequence[bytes] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns read back, by kind."""

    arrays: Mapping[str, Array]
    lists: Mapping[str, Ragged]
    texts: Mapping[str, list[str]]


def encode_table(fields: Fields, columns: Mapping[str, Column]) -> bytes:
    """A Parquet file: zstd, a checksum on every page. A column of None is all null."""
    assert list(columns) == list(fields), f"expected columns {list(fields)}, got {list(columns)}"
    num_rows = max((len(_rows_of(column)) for column in columns.values()), default=0)
    arrays = [_to_arrow(kind, columns[name], num_rows) for name, kind in fields.items()]
    table = _pa.Table.from_arrays(arrays, schema=_schema(fields))
    sink = _pa.BufferOutputStream()
    counters = [name for name, kind in fields.items() if kind in ("int32", "int64")]
    _pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=1,
        # Numbers of rows and tokens rise by small steps; a dictionary of them would only cost.
        use_dictionary=[name for name, kind in fields.items() if kind == "string"],
        column_encoding=dict.fromkeys(counters, "DELTA_BINARY_PACKED"),
        write_page_checksum=True,
    )
    return sink.getvalue().to_pybytes()


def decode_table(fields: Fields, data: bytes) -> Table:
    """The columns of a Parquet file, page checksums verified."""
    try:
        file = _pq.ParquetFile(_pa.BufferReader(data), page_checksum_verification=True)
        _check_claims(file, len(data))
        table = file.read(use_threads=False)
    except (_pa.ArrowException, OSError) as error:
        raise CacheCorruptError(f"expected a whole Parquet file, got: {error}") from error
    if not table.schema.equals(_schema(fields)):
        got = ", ".join(f"{field.name} {field.type}" for field in table.schema)
        expected = ", ".join(f"{field.name} {field.type}" for field in _schema(fields))
        raise CacheCorruptError(f"expected columns [{expected}], got [{got}]")
    columns = {name: table.column(name).combine_chunks() for name in fields}
    return Table(
        arrays={
            name: columns[name].to_numpy(zero_copy_only=False)
            for name, kind in fields.items()
            if not kind.startswith("list") and kind not in ("string", "binary")
        },
        lists={
            name: _to_ragged(kind, columns[name])
            for name, kind in fields.items()
            if kind.startswith("list")
        },
        texts={
            name: columns[name].to_pylist() for name, kind in fields.items() if kind == "string"
        },
    )


def _check_claims(file: Any, size: int) -> None:
    """Before its rows are read: no objects of other programs, and no room for what is not there."""
    about = file.metadata
    if foreign := set(about.metadata or ()) - {b"ARROW:schema"}:
        names = ", ".join(sorted(repr(name.decode(errors="replace")) for name in foreign))
        raise CacheCorruptError(f"expected a table without metadata of its own, got {names}")
    if extended := [field.name for field in file.schema_arrow if _is_extended(field)]:
        raise CacheCorruptError(f"expected plain columns, got an extension type in {extended[0]!r}")
    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    unpacked = sum(max(one.total_uncompressed_size, 8 * one.num_values) for one in columns)
    check_expansion(unpacked, size, "a Parquet file")


def _is_extended(field: Any) -> bool:
    is_named = b"ARROW:extension:name" in (field.metadata or ())
    return is_named or isinstance(field.type, _pa.BaseExtensionType)


def encode_vocabulary(vocabulary: Mapping[int, bytes]) -> bytes:
    """A tokenizer's tokens by id: the bytes of each, and a text to look at."""
    ids = sorted(vocabulary)
    tokens = [vocabulary[token_id] for token_id in ids]
    texts = [token.decode("utf-8", errors="replace") for token in tokens]
    columns = {"id": np.array(ids, dtype=np.int32), "bytes": tokens, "text": texts}
    return encode_table(VOCABULARY, columns)


def _rows_of(column: Column) -> Sequence[Any] | Array:
    if column is None:
        return ()
    return column.lengths if isinstance(column, Ragged) else column


def _schema(fields: Fields) -> Any:
    return _pa.schema([_pa.field(name, _arrow_type(kind)) for name, kind in fields.items()])


def _arrow_type(kind: str) -> Any:
    if kind == "list<chunk>":
        return _pa.list_(_chunk_type())
    if kind.startswith("list<"):
        return _pa.list_(_arrow_type(kind[5:-1]))
    return getattr(_pa, {"bool": "bool_"}.get(kind, kind))()


def _chunk_type() -> Any:
    return _pa.struct([_pa.field(name, _pa.int32()) for name in ("t0", "t1", "s0", "s1")])


def _to_arrow(kind: str, column: Column, num_rows: int) -> Any:
    if column is None:
        return _pa.nulls(num_rows, _arrow_type(kind))
    if not isinstance(column, Ragged):
        return _pa.array(column, type=_arrow_type(kind))
    offsets = np.concatenate(([0], column.lengths.cumsum())).astype(np.int32)
    if kind == "list<chunk>":
        spans = [_pa.array(column.values[:, axis], type=_pa.int32()) for axis in range(4)]
        values = _pa.StructArray.from_arrays(spans, fields=list(_chunk_type()))
    else:
        values = _pa.array(column.values, type=_arrow_type(kind[5:-1]))
    return _pa.ListArray.from_arrays(offsets, values, type=_arrow_type(kind))


def _to_ragged(kind: str, column: Any) -> Ragged:
    flat = column.flatten()
    if kind == "list<chunk>":
        values = np.stack([span.to_numpy(zero_copy_only=False) for span in flat.flatten()], axis=1)
    else:
        values = flat.to_numpy(zero_copy_only=False)
    return Ragged(values=values, lengths=np.diff(column.offsets.to_numpy()).astype(np.int64))
