"""What is finished: the manifest and the ledger, read and checked against the files that exist."""

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from storage_schemas.errors import CacheCorruptError, CacheIdentityError, CacheMissingError
from storage_schemas.identity import SCHEMA_VERSION, KeptIdentity, Stored
from storage_schemas.manifest import (
    LEDGER_FOLDER,
    MANIFEST_FILE,
    SHARDS_FOLDER,
    FileEntry,
    LedgerEntry,
    Manifest,
    views_in_name,
)
from storage_schemas.parquet_layout import TABLES
from storage_schemas.zarr_layout import TOKENS_FOLDER, token_files


def to_json(model: Stored) -> bytes:
    """The text that is stored: sorted keys, indented, the same for equal models."""
    text = json.dumps(model.model_dump(mode="json"), sort_keys=True, indent=2, allow_nan=False)
    return f"{text}\n".encode()


def read_manifest(path: Path) -> Manifest:
    """The manifest of the cache in this folder."""
    file = path / MANIFEST_FILE
    try:
        fields: Any = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CacheMissingError(
            f"{path}: expected a cache, got no {MANIFEST_FILE} there; "
            f"make one with 'tidecache teacher-cache', or check the folder's name"
        ) from error
    except ValueError as error:
        raise CacheCorruptError(f"{file}: expected JSON, got: {error}") from error
    try:
        version = fields["identity"]["schema_version"]
    except (TypeError, KeyError) as error:
        raise CacheCorruptError(
            f"{file}: expected identity.schema_version, got no such field; not a tidecache cache"
        ) from error
    if version != SCHEMA_VERSION:
        raise CacheIdentityError(
            f"{path}: expected schema version {SCHEMA_VERSION}, got {version}; read it with the "
            f"tidecache that made it ({fields.get('created_by')}), or make the cache anew"
        )
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        raise CacheCorruptError(f"{file}: expected a manifest, got: {error}") from error


def read_ledger(path: Path) -> tuple[LedgerEntry, ...]:
    """Every committed shard, in order of part and view."""
    entries = [_read_entry(file) for file in (path / LEDGER_FOLDER).glob("*.json")]
    entries.sort(key=lambda entry: (entry.part, entry.view_start))
    for entry, following in pairwise(entries):
        if entry.part == following.part and entry.view_stop > following.view_start:
            raise CacheCorruptError(
                f"{path}: expected each view of a part once, got both shards {entry.shard} and "
                f"{following.shard}; remove one of the two from {LEDGER_FOLDER}/"
            )
    return tuple(entries)


def committed_views(path: Path, part: int) -> list[range]:
    """The view ranges of one part that are in the ledger, by the names of its entries."""
    found = [
        views_in_name(file.stem) for file in (path / LEDGER_FOLDER).glob(f"p{part:05d}-*.json")
    ]
    ranges = [views for named_part, views in filter(None, found) if named_part == part]
    return sorted(ranges, key=lambda views: views.start)


def check_files(path: Path, manifest: Manifest, entries: tuple[LedgerEntry, ...]) -> None:
    """Refuses a cache in which a finished file is missing, or has another size."""
    for file in manifest.vocabularies:
        _check_file(path, file, "the manifest", "make the cache anew")
    root = path.resolve()
    for entry in entries:
        expected, got = shard_files(entry, manifest.identity.kept), set(_inner_paths(entry))
        remedy = (
            f"remove {LEDGER_FOLDER}/{entry.shard}.json and run 'tidecache teacher-cache' again: "
            f"it makes this shard anew"
        )
        if expected != got:
            raise CacheCorruptError(
                f"shard {entry.shard}: expected files {sorted(expected)}, the ledger lists "
                f"{sorted(got)}; {remedy}"
            )
        if not (path / SHARDS_FOLDER / entry.shard).resolve().is_relative_to(root):
            raise CacheCorruptError(
                f"shard {entry.shard}: expected a folder inside {path}, got a link to elsewhere"
            )
        for file in entry.files:
            _check_file(path, file, f"shard {entry.shard}", remedy)


def shard_files(entry: LedgerEntry, kept: KeptIdentity) -> set[str]:
    """Every path under the shard's folder that a shard with these counts has."""
    tokens = token_files(kept, entry.counts.num_token_rows)
    return {*TABLES, *(f"{TOKENS_FOLDER}/{file}" for file in tokens)}


def _inner_paths(entry: LedgerEntry) -> list[str]:
    return [entry.inner_path(file) for file in entry.files]


def _check_file(path: Path, file: FileEntry, where: str, remedy: str) -> None:
    try:
        size = os.stat(f"{path}/{file.path}").st_size  # noqa: PTH116 (a third of Path.stat's time)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CacheCorruptError(
            f"{where}: expected {file.path} of {file.size} bytes, got no such file in {path}; "
            f"{remedy}"
        ) from error
    if size != file.size:
        raise CacheCorruptError(
            f"{where}: expected {file.path} of {file.size} bytes, got {size} in {path}; {remedy}"
        )


def _read_entry(file: Path) -> LedgerEntry:
    try:
        entry = LedgerEntry.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise CacheCorruptError(
            f"shard {file.stem}: expected a ledger entry in {file}, got: {error}"
        ) from error
    if entry.shard != file.stem:
        raise CacheCorruptError(f"{file}: expected shard {file.stem}, got {entry.shard}")
    return entry
