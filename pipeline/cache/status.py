"""Where a cache stands: what is committed, what is missing, what failed, and who works on it.

Read from the manifest, the ledger and a run's notes alone: no shard is opened, nothing is hashed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.cache.counts import total_counts
from pipeline.cache.ledger import missing_views, read_ledger, read_manifest
from pipeline.cache.local_store import Writers
from pipeline.cache.store import CacheStore, open_store
from storage_schemas.errors import CacheCorruptError
from storage_schemas.manifest import (
    LEDGER_FOLDER,
    SHARDS_FOLDER,
    Counts,
    Manifest,
    shard_name,
    views_in_name,
)
from storage_schemas.run_notes import FAILURES_FOLDER, WANTED_FILE, Failure, Wanted
from storage_schemas.seal import unsealed

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStatus:
    """What is known of a cache without opening a shard.

    missing: shards that a run like the last one would make; None where no run has left word of
    what it wanted. uncommitted: shards whose files are there, in whole or in part, while no entry
    names them: being committed now, or left by a kill. writers: None where the store cannot tell.
    """

    address: str
    manifest: Manifest
    num_shards: int
    missing: tuple[str, ...] | None
    counts: Counts
    num_bytes: int
    last_commit: datetime | None
    writers: Writers | None
    uncommitted: tuple[str, ...]
    failures: tuple[Failure, ...]

    def to_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "address": self.address,
            "digest": self.manifest.digest,
            "identity": self.manifest.identity.model_dump(mode="json"),
            "shards": self.num_shards,
            "missing": None if self.missing is None else list(self.missing),
            "counts": self.counts.model_dump(mode="json"),
            "bytes": self.num_bytes,
            "last_commit": None if self.last_commit is None else self.last_commit.isoformat(),
            "writers": None
            if self.writers is None
            else {"alive": self.writers.num_alive, "dead": self.writers.num_dead},
            "uncommitted": list(self.uncommitted),
            "failures": [failure.model_dump(mode="json") for failure in self.failures],
        }


def cache_status(address: str | Path) -> CacheStatus:
    """Look at a cache without changing it; it may be in use."""
    store = open_store(address)
    manifest = read_manifest(store)
    begun = store.names(SHARDS_FOLDER)  # before the ledger: what is committed meanwhile is in it
    failures = _read_failures(store)
    entries = read_ledger(store)
    there = {entry.shard for entry in entries}
    committed: dict[int, list[range]] = {}
    for entry in entries:
        committed.setdefault(entry.part, []).append(entry.views)
    return CacheStatus(
        address=store.address,
        manifest=manifest,
        num_shards=len(entries),
        missing=_missing(store, committed),
        counts=total_counts(entries),
        num_bytes=sum(entry.num_bytes for entry in entries),
        last_commit=store.changed_at(LEDGER_FOLDER),
        writers=store.writers(),
        uncommitted=tuple(sorted(set(begun) - there)),
        failures=tuple(one for one in failures if not _is_over(one, committed)),
    )


def _missing(store: CacheStore, committed: Mapping[int, list[range]]) -> tuple[str, ...] | None:
    try:
        wanted = _parse(Wanted, store, WANTED_FILE, store.read(WANTED_FILE))
    except FileNotFoundError:
        return None
    return tuple(
        shard_name(part, views.start, views.stop)
        for part, views in missing_views(committed, range(wanted.num_parts), wanted.views)
    )


def _read_failures(store: CacheStore) -> list[Failure]:
    paths = [f"{FAILURES_FOLDER}/{name}" for name in sorted(store.names(FAILURES_FOLDER))]
    texts = store.read_all(paths)
    return [_parse(Failure, store, path, data) for path, data in texts.items()]


def _is_over(failure: Failure, committed: Mapping[int, list[range]]) -> bool:
    """Whether every view of the shard is committed by now, in whatever shards."""
    found = views_in_name(failure.shard)
    if found is None:
        return False
    part, views = found
    return all(any(view in there for there in committed.get(part, ())) for view in views)


def _parse(model: type[Model], store: CacheStore, path: str, data: bytes) -> Model:
    try:
        return model.model_validate(unsealed(data))
    except (ValidationError, ValueError) as error:
        raise CacheCorruptError(
            f"{store.address}/{path}: expected a run's note as it was written, got: {error}; "
            f"remove that file: no shard depends on it"
        ) from error
