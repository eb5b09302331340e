"""A part of the data that one task reads alone, and the index that lists all of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from storage_schemas.skips import Skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A run of records in one file: where it starts and how many it holds.

    start: bytes before it in a file of lines (after decompression), rows before it elsewhere.
    first_line: the number, from 1, of the line or row at `start`.
    """

    start: int
    first_line: int
    num_records: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One span of one file (or of one data set, with its commit), of a mixture's n-th source."""

    number: int
    file: str
    span: Span
    source: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordIndex:
    """What a pass over the data leaves behind; its size is that of the list of parts.

    num_records counts every line or row that is not blank, the unusable ones too. The fingerprint
    depends on the content, its order and the fields read, but not on the folder or compression.
    """

    fingerprint: str
    num_records: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The raw fields of one record, before any check."""

    where: str
    values: Mapping[str, Any]


RowOrSkip = Row | Skip
Rows = Iterator[RowOrSkip]


def even_spans(num_rows: int, records_per_part: int) -> Iterator[Span]:
    """Consecutive spans over rows that are all records."""
    for start in range(0, num_rows, records_per_part):
        num_records = min(records_per_part, num_rows - start)
        yield Span(start=start, first_line=start + 1, num_records=num_records)
