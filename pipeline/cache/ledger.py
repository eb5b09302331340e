"""What is finished: the manifest and the ledger, read and checked against the files that exist."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import xxhash
from pydantic import ValidationError

from pipeline.cache.decode import NONSENSE
from pipeline.cache.store import CacheStore
from storage_schemas.basis import Basis
from storage_schemas.errors import (
    CacheCorruptError,
    CacheIdentityError,
    CacheMissingError,
    CacheWriteError,
)
from storage_schemas.identity import SCHEMA_VERSION, KeptIdentity
from storage_schemas.manifest import (
    BASIS_FOLDER,
    LEDGER_FOLDER,
    MANIFEST_FILE,
    FileEntry,
    LedgerEntry,
    Manifest,
    views_in_name,
)
from storage_schemas.parquet_layout import TABLES
from storage_schemas.seal import SEAL, sealed_json, unsealed
from storage_schemas.zarr_layout import TOKENS_FOLDER, TokenRows, decode_basis, token_files


def read_manifest(store: CacheStore) -> Manifest:
    """The manifest of the cache in this store; any changed bit of it is an error."""
    file = f"{store.address}/{MANIFEST_FILE}"
    try:
        data = store.read(MANIFEST_FILE)
    except FileNotFoundError as error:
        raise CacheMissingError(
            f"{store.address}: expected a cache, got no {MANIFEST_FILE} there; "
            f"make one with 'tidecache teacher-cache', or check the folder's name"
        ) from error
    try:
        found: dict[str, Any] = dict(json.loads(data))
    except (TypeError, ValueError, RecursionError) as error:
        raise CacheCorruptError(
            f"{file}: expected JSON, got: {error}; restore it from a copy"
        ) from error
    if SEAL not in found:  # other versions may not have sealed theirs
        _check_version(store, found)
    try:
        fields = unsealed(data)
    except ValueError as error:
        raise CacheCorruptError(
            f"{file}: it was changed or damaged: {error}; restore it from a copy"
        ) from error
    _check_version(store, fields)
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        raise CacheCorruptError(f"{file}: expected a manifest, got: {error}") from error


def replace_manifest(store: CacheStore, old: Manifest, new: Manifest) -> None:
    """Writes a manifest anew, as a whole, if the stored one is `old` still and means the same."""
    if lines := old.identity.differences(new.identity):
        raise CacheIdentityError(
            "\n  ".join([f"{store.address}: a cache's identity never changes, but", *lines])
        )
    if not store.exchange(MANIFEST_FILE, sealed_json(old), sealed_json(new)):
        raise CacheWriteError(
            f"{store.address}: expected {MANIFEST_FILE} as it was read, got one that another "
            f"writer has changed meanwhile; run again"
        )


def read_ledger(store: CacheStore) -> tuple[LedgerEntry, ...]:
    """Every committed shard, in order of part and view; any changed bit of one is an error."""
    names = [name for name in store.names(LEDGER_FOLDER) if name.endswith(".json")]
    try:
        texts = store.read_all(f"{LEDGER_FOLDER}/{name}" for name in names)
    except FileNotFoundError as error:
        raise CacheCorruptError(
            f"{store.address}: expected a ledger that only grows, got an entry that was removed "
            f"while it was read ({error}); open it again"
        ) from error
    entries = [parse_entry(path, data) for path, data in texts.items()]
    entries.sort(key=lambda entry: (entry.part, entry.view_start))
    for entry, following in overlapping(entries):
        raise CacheCorruptError(
            f"{store.address}: expected each view of a part once, got both shards "
            f"{entry.shard} and {following.shard}; remove one of the two from {LEDGER_FOLDER}/"
        )
    return tuple(entries)


def overlapping(entries: Iterable[LedgerEntry]) -> Iterator[tuple[LedgerEntry, LedgerEntry]]:
    """Neighbors that hold the same view of a part; `entries` in order of part, then view."""
    for entry, following in pairwise(entries):
        if entry.part == following.part and entry.view_stop > following.view_start:
            yield entry, following


def parse_entry(path: str, data: bytes) -> LedgerEntry:
    """The entry in the ledger file at `path`."""
    shard = path.removeprefix(f"{LEDGER_FOLDER}/").removesuffix(".json")
    try:
        entry = LedgerEntry.model_validate(unsealed(data))
    except ValueError as error:  # pydantic's are, too
        raise CacheCorruptError(
            f"shard {shard}: expected a ledger entry in {path} as it was written, got: {error}; "
            f"{make_anew(shard)}"
        ) from error
    if entry.shard != shard:
        raise CacheCorruptError(f"{path}: expected shard {shard}, got {entry.shard}")
    return entry


def committed_views(store: CacheStore) -> dict[int, list[range]]:
    """Part -> the view ranges that are in the ledger, rising, by the names of its entries."""
    found: dict[int, list[range]] = {}
    for name in store.names(LEDGER_FOLDER):
        views = views_in_name(name.removesuffix(".json"))
        if views is not None and name.endswith(".json"):
            found.setdefault(views[0], []).append(views[1])
    for ranges in found.values():
        ranges.sort(key=lambda views: views.start)
    return found


def missing_views(
    committed: Mapping[int, Iterable[range]], parts: Iterable[int], views: int
) -> Iterator[tuple[int, range]]:
    """The runs of the views 0 .. views - 1 that parts lack, rising, each with its part."""
    for part in parts:
        there = {view for found in committed.get(part, ()) for view in found}
        missing = sorted(set(range(views)) - there)
        starts = [view for view in missing if view - 1 not in missing]
        stops = [view + 1 for view in missing if view + 1 not in missing]
        for start, stop in zip(starts, stops, strict=True):
            yield part, range(start, stop)


def check_files(store: CacheStore, manifest: Manifest, entries: Iterable[LedgerEntry]) -> None:
    """Refuses a cache in which a finished file is missing, or has another size.

    The vocabularies are read and hashed; the basis and the shards, when they are read.
    """
    for file in manifest.vocabularies:
        _read_common(store, file)
    files = {file: entry for entry in entries for file in _checked(entry, manifest.identity.kept)}
    sizes = store.sizes([file.path for file in (*manifest.basis, *files)])
    for file in manifest.basis:
        if sizes.get(file.path) != file.size:
            raise _damaged(store, file, str(sizes.get(file.path, "no such file")))
    for file, entry in files.items():
        size = sizes.get(file.path)
        if size != file.size:
            got = "no such file" if size is None else str(size)
            raise CacheCorruptError(
                f"shard {entry.shard}: expected {file.path} of {file.size} bytes, got {got} in "
                f"{store.address}; {make_anew(entry.shard)}"
            )


def read_basis(store: CacheStore, manifest: Manifest) -> Basis | None:
    """The basis that the cache's sketches are decoded with; None where it has none."""
    if not manifest.basis:
        return None
    files = {
        file.path.partition(f"/{BASIS_FOLDER}/")[2]: _read_common(store, file)
        for file in manifest.basis
    }
    try:
        return decode_basis(files)
    except NONSENSE as error:
        raise CacheCorruptError(
            f"{store.address}: the sketch's basis cannot be read: {error}; restore "
            f"{BASIS_FOLDER} from a copy, or make the cache anew"
        ) from error


def _checked(entry: LedgerEntry, kept: KeptIdentity) -> tuple[FileEntry, ...]:
    """The entry's files, once they are known to be those that a shard has."""
    expected, got = shard_files(entry, kept), set(_inner_paths(entry))
    if expected != got:
        raise CacheCorruptError(
            f"shard {entry.shard}: expected files {sorted(expected)}, the ledger lists "
            f"{sorted(got)}; {make_anew(entry.shard)}"
        )
    return entry.files


def shard_files(entry: LedgerEntry, kept: KeptIdentity) -> set[str]:
    """Every path under the shard's folder that a shard with these counts has."""
    counts = entry.counts
    rows = TokenRows(num_rows=counts.num_token_rows, num_joint=counts.num_joint_rows)
    tokens = token_files(kept, rows)
    return {*TABLES, *(f"{TOKENS_FOLDER}/{file}" for file in tokens)}


def _inner_paths(entry: LedgerEntry) -> list[str]:
    return [entry.inner_path(file) for file in entry.files]


def _read_common(store: CacheStore, file: FileEntry) -> bytes:
    try:
        data = store.read(file.path)
    except FileNotFoundError as error:
        raise _damaged(store, file, "no such file") from error
    if len(data) != file.size:
        raise _damaged(store, file, f"{len(data)}")
    if (digest := xxhash.xxh3_128_hexdigest(data)) != file.xxh3_128:
        raise _damaged(store, file, f"other content (xxh3 {digest}, not {file.xxh3_128})")
    return data


def _damaged(store: CacheStore, file: FileEntry, got: str) -> CacheCorruptError:
    return CacheCorruptError(
        f"the manifest: expected {file.path} of {file.size} bytes, got {got} in {store.address}; "
        f"restore that file from a copy, or make the cache anew"
    )


def _check_version(store: CacheStore, fields: dict[str, Any]) -> None:
    try:
        version = fields["identity"]["schema_version"]
    except (TypeError, KeyError) as error:
        raise CacheCorruptError(
            f"{store.address}/{MANIFEST_FILE}: expected identity.schema_version, got no such "
            f"field; not a tidecache cache"
        ) from error
    if version != SCHEMA_VERSION:
        raise CacheIdentityError(
            f"{store.address}: expected schema version {SCHEMA_VERSION}, got {version}; read it "
            f"with the tidecache that made it ({fields.get('created_by')}), or make the cache anew"
        )


def make_anew(shard: str) -> str:
    """What to do about a damaged shard."""
    return (
        f"remove {LEDGER_FOLDER}/{shard}.json and run 'tidecache teacher-cache' again: "
        f"it makes this shard anew"
    )
