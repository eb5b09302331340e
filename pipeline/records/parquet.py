"""Rows of a Parquet file: only the columns asked for, only the row groups that a part touches."""

from hashlib import sha256
from typing import Any

import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.parquet as pq  # pyright: ignore[reportMissingTypeStubs]

from pipeline.records.files import opened
from pipeline.records.part import Part, Row, RowOrSkip, Rows, Span, even_spans
from storage_schemas.errors import RecipeError
from storage_schemas.skips import Skip

_BLOCK_BYTES = 1 << 20
_BATCH_ROWS = 256


def scan(file: str, columns: list[str], records_per_part: int) -> tuple[bytes, list[Span]]:
    """The SHA-256 of the file's bytes, and the spans of its rows."""
    digest = sha256()
    with opened(file) as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    with opened(file) as stream:
        parquet = _parquet(file, stream)
        require_columns(file, columns, parquet.schema_arrow.names)
        num_rows: int = parquet.metadata.num_rows
    return digest.digest(), list(even_spans(num_rows, records_per_part))


def read(part: Part, columns: list[str]) -> Rows:
    """The part's rows; a row with text that is no UTF-8 becomes a Skip."""
    with opened(part.file) as stream:
        parquet = _parquet(part.file, stream)
        if parquet.metadata.num_rows < part.span.start + part.span.num_records:
            raise RecipeError(
                f"{part.file}: expected {part.span.num_records} rows from row "
                f"{part.span.first_line}, got {parquet.metadata.num_rows} in all; "
                "the file has changed since it was indexed: start the run again"
            )
        yield from _rows(parquet, part, columns)


def require_columns(source: str, columns: list[str], available: list[str]) -> None:
    """Raise a RecipeError that names the columns there are."""
    missing = [column for column in columns if column not in available]
    if missing:
        raise RecipeError(
            f"{source}: expected the column {missing[0]!r}, got {', '.join(available)}; "
            "name the right ones under `fields` and `id_field`"
        )


def _rows(parquet: Any, part: Part, columns: list[str]) -> Rows:
    stop = part.span.start + part.span.num_records
    groups: list[int] = []
    skipped = 0  # rows of groups that end before the part
    end = 0
    for group in range(parquet.metadata.num_row_groups):
        begin, end = end, end + parquet.metadata.row_group(group).num_rows
        if end <= part.span.start:
            skipped = end
        elif begin < stop:
            groups.append(group)
    row = skipped
    for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=groups, columns=columns):
        for i in range(max(part.span.start - row, 0), min(stop - row, batch.num_rows)):
            yield _row(batch, i, f"{part.file}:row {row + i + 1}")
        row += batch.num_rows


def _row(batch: Any, i: int, where: str) -> RowOrSkip:
    try:
        values = {name: batch.column(name)[i].as_py() for name in batch.schema.names}
    except UnicodeDecodeError as e:
        message = f"expected UTF-8 text, got {e}"
        return Skip(where=where, record_id="", reason="bad_text", message=message)
    return Row(where=where, values=values)


def _parquet(file: str, stream: Any) -> Any:  # whatever pyarrow takes for a file
    try:
        return pq.ParquetFile(stream)
    except pa.ArrowInvalid as e:  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        raise RecipeError(
            f"{file}: expected a Parquet file, got {e}; write or copy it again"
        ) from e
