"""Records from files or a data set: indexed in one streaming pass, then read part by part."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256

from pipeline.config.records import FilesSource, HubSource, MixtureSource, RecordsConfig
from pipeline.records import hub, jsonl, parquet
from pipeline.records.files import is_parquet, matching_files
from pipeline.records.parse import columns, to_record
from pipeline.records.part import Part, RecordIndex, Rows, Span
from storage_schemas.errors import RecipeError
from storage_schemas.examples import Record
from storage_schemas.skips import Skip


def index_records(config: RecordsConfig, records_per_part: int) -> RecordIndex:
    """The data's fingerprint and its parts: at most records_per_part records, never two files.

    The fingerprint also covers which fields are read: other fields are other data.
    """
    assert records_per_part > 0, "a part holds at least one record"
    if isinstance(config, MixtureSource):
        return _one_after_the_other(
            [index_records(one, records_per_part) for one in config.sources]
        )
    names = columns(config.fields, config.id_field)
    fields = {"fields": config.fields.model_dump(), "id_field": config.id_field}
    digest = sha256(json.dumps(fields, sort_keys=True).encode())
    parts: list[Part] = []
    for file, content, spans in _scanned(config, names, records_per_part):
        digest.update(content)
        new = enumerate(spans, start=len(parts))
        parts += [Part(number=number, file=file, span=span) for number, span in new]
    if not parts:
        source = ", ".join(config.paths) if isinstance(config, FilesSource) else config.name
        raise RecipeError(f"{source}: expected records, got none; name a source that has some")
    num_records = sum(part.span.num_records for part in parts)
    return RecordIndex(fingerprint=digest.hexdigest(), num_records=num_records, parts=tuple(parts))


def read_part(
    config: RecordsConfig, index: RecordIndex, part_number: int
) -> Iterator[Record | Skip]:
    """`read_records` of a part by its number."""
    return read_records(config, index.parts[part_number])


def read_records(config: RecordsConfig, part: Part) -> Iterator[Record | Skip]:
    """Each record of one part, in order; a bad one is a Skip, and so is an id seen in this part.

    A plain file of lines is read from the part's first byte, a Parquet file from its row group; a
    gzipped one has to be decompressed from its beginning.
    """
    if isinstance(config, MixtureSource):
        config = config.sources[part.source]
    ids: set[str] = set()
    for row in _rows(config, part):
        record = row if isinstance(row, Skip) else to_record(row, config.fields, config.id_field)
        if isinstance(record, Record) and record.id in ids:
            message = "expected an id of its own, got one that this part has already"
            reason = "duplicate_id"
            record = Skip(where=record.where, record_id=record.id, reason=reason, message=message)
        elif isinstance(record, Record):
            ids.add(record.id)
        yield record


def _one_after_the_other(indices: Sequence[RecordIndex]) -> RecordIndex:
    """The parts of all, numbered through."""
    of_source = [(source, part) for source, index in enumerate(indices) for part in index.parts]
    return RecordIndex(
        fingerprint=sha256("\n".join(index.fingerprint for index in indices).encode()).hexdigest(),
        num_records=sum(index.num_records for index in indices),
        parts=tuple(
            replace(part, number=number, source=source)
            for number, (source, part) in enumerate(of_source)
        ),
    )


def _scanned(
    config: FilesSource | HubSource, names: list[str], records_per_part: int
) -> Iterator[tuple[str, bytes, list[Span]]]:
    if isinstance(config, HubSource):
        yield hub.scan(config, names, records_per_part)
        return
    for file in matching_files(config.paths):
        if is_parquet(file):
            yield file, *parquet.scan(file, names, records_per_part)
        else:
            yield file, *jsonl.scan(file, records_per_part)


def _rows(config: FilesSource | HubSource, part: Part) -> Rows:
    names = columns(config.fields, config.id_field)
    if isinstance(config, HubSource):
        return hub.read(config, part, names)
    if is_parquet(part.file):
        return parquet.read(part, names)
    return jsonl.read(part)
