"""Lines of JSON, plain or gzipped: one object a line, blank lines allowed."""

import gzip
import json
import zlib
from codecs import BOM_UTF8
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, BinaryIO, cast

from pipeline.records.files import innermost, opened
from pipeline.records.part import Part, Row, RowOrSkip, Rows, Span
from storage_schemas.errors import RecipeError
from storage_schemas.skips import Skip

_Start = tuple[int, int]  # bytes and lines before a line


def scan(file: str, records_per_part: int) -> tuple[bytes, list[Span]]:
    """The SHA-256 of the (decompressed) content, and the spans of its records, in one pass."""
    digest = sha256()
    spans: list[Span] = []
    first: _Start = (0, 0)
    num_records = 0
    for (offset, line_number), line in _lines(file, (0, 0)):
        digest.update(line)
        if not _text(line, offset):
            continue
        if num_records == 0:
            first = (offset, line_number)
        num_records += 1
        if num_records == records_per_part:
            spans.append(_span(first, num_records))
            num_records = 0
    if num_records:
        spans.append(_span(first, num_records))
    return digest.digest(), spans


def read(part: Part) -> Rows:
    """The part's rows; a line that is no JSON object becomes a Skip."""
    remaining = part.span.num_records
    for (offset, line_number), line in _lines(
        part.file, (part.span.start, part.span.first_line - 1)
    ):
        text = _text(line, offset)
        if not text:
            continue
        yield _parse(text, f"{part.file}:{line_number + 1}")
        remaining -= 1
        if remaining == 0:
            return
    raise RecipeError(
        f"{part.file}: expected {part.span.num_records} records from line {part.span.first_line}, "
        f"got {remaining} fewer; the file has changed since it was indexed: start the run again"
    )


def _span(first: _Start, num_records: int) -> Span:
    offset, line_number = first
    return Span(start=offset, first_line=line_number + 1, num_records=num_records)


def _lines(file: str, start: _Start) -> Iterator[tuple[_Start, bytes]]:
    offset, line_number = start
    with _decompressed(file) as stream:
        stream.seek(offset)
        for line in stream:
            yield (offset, line_number), line
            offset += len(line)
            line_number += 1


@contextmanager
def _decompressed(file: str) -> Generator[BinaryIO]:
    compression = "gzip" if innermost(file).endswith(".gz") else None
    try:
        with opened(file, compression) as stream:
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise RecipeError(f"{file}: expected a whole gzip file, got {e}; copy it again") from e


def _text(line: bytes, offset: int) -> bytes:
    """The line without its ends, and without the byte order mark that may open a file."""
    return (line.removeprefix(BOM_UTF8) if offset == 0 else line).strip()


def _parse(line: bytes, where: str) -> RowOrSkip:
    try:
        values = json.loads(line.decode())
    except UnicodeDecodeError as e:
        return _broken(where, f"a byte that is no UTF-8 at byte {e.start + 1}")
    except json.JSONDecodeError as e:
        return _broken(where, f"broken JSON at column {e.colno} ({e.msg})")
    except (RecursionError, ValueError) as e:
        return _broken(where, f"JSON that Python refuses ({e})")
    if not isinstance(values, dict):
        message = f"expected an object on the line, got {type(values).__name__}"
        return Skip(where=where, record_id="", reason="wrong_type", message=message)
    return Row(where=where, values=cast("dict[str, Any]", values))


def _broken(where: str, got: str) -> Skip:
    message = f"expected one JSON object on the line, got {got}"
    return Skip(where=where, record_id="", reason="broken_json", message=message)
