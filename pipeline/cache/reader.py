"""Reading a cache: the ledger alone is trusted, and every byte is checked before it is used."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import xxhash

from pipeline.cache.decode import NONSENSE, decode_shard
from pipeline.cache.ledger import check_files, read_basis, read_ledger, read_manifest
from pipeline.cache.store import CacheStore, open_store
from storage_schemas.basis import Basis
from storage_schemas.errors import CacheCorruptError, CacheMissingError, TidecacheError
from storage_schemas.identity import CacheIdentity
from storage_schemas.manifest import LEDGER_FOLDER, FileEntry, LedgerEntry, Manifest
from storage_schemas.shard import ShardContent
from storage_schemas.sketch_coder import SketchCoder


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReader:
    """A cache as its ledger stood at opening; `entries` in order of part, then view."""

    store: CacheStore
    manifest: Manifest
    entries: tuple[LedgerEntry, ...]

    @classmethod
    def open(cls, address: str | Path, *, allow_empty: bool = False) -> "CacheReader":
        """Reads manifest and ledger, and checks that every finished file is there in full."""
        store = open_store(address)
        manifest, entries = read_manifest(store), read_ledger(store)
        if not entries and not allow_empty:
            raise CacheMissingError(
                f"{address}: expected a committed shard or more, got none in {LEDGER_FOLDER}/; "
                f"run 'tidecache teacher-cache' to its end first"
            )
        check_files(store, manifest, entries)
        return cls(store=store, manifest=manifest, entries=entries)

    @property
    def address(self) -> str:
        """Where the cache is: a local path or a URL."""
        return self.store.address

    @property
    def identity(self) -> CacheIdentity:
        """What the cache was made from."""
        return self.manifest.identity

    @property
    def num_views(self) -> int:
        """Views 0 .. num_views - 1 are there for every committed part; 0 without a part."""
        views: dict[int, int] = {}
        for entry in self.entries:  # in order of view, so a gap ends the count
            views.setdefault(entry.part, 0)
            if entry.view_start == views[entry.part]:
                views[entry.part] = entry.view_stop
        return min(views.values(), default=0)

    def read_basis(self) -> Basis | None:
        """What the sketches are decoded with; None where the cache has none."""
        return read_basis(self.store, self.manifest)

    def read_shard(
        self,
        entry: LedgerEntry,
        coder: SketchCoder | None = None,
        *,
        with_top_k: bool = True,
    ) -> ShardContent:
        """The content of one shard; every byte is checked, what is not wanted is not decoded.

        Sketches are decoded with the basis's coder; without one they are left out (R = 0).
        """
        try:
            files = self.read_files(entry, entry.files)
            return decode_shard(
                files,
                entry,
                self.identity.kept,
                coder,
                with_top_k=with_top_k,
            )
        except NONSENSE as error:
            kind = "" if isinstance(error, CacheCorruptError) else f"{type(error).__name__}: "
            raise CacheCorruptError(
                f"shard {entry.shard} of {self.address}: {kind}{error}; remove "
                f"{LEDGER_FOLDER}/{entry.shard}.json and run 'tidecache teacher-cache' again: it "
                f"makes this shard anew"
            ) from error

    def read_files(self, entry: LedgerEntry, files: Iterable[FileEntry]) -> dict[str, bytes]:
        """The bytes of some files of a shard by path under its folder, as the ledger knows them."""
        listed = list(files)
        found = self._read_all(listed)
        return {entry.inner_path(file): found[file.path] for file in listed}

    def read_vocabulary(self, side: Literal["student", "teacher"]) -> bytes:
        """The Parquet file of one tokenizer's tokens."""
        file = self.manifest.vocabulary(side)
        return self._read_all([file])[file.path]

    def _read_all(self, files: list[FileEntry]) -> dict[str, bytes]:
        try:
            found = self.store.read_all(file.path for file in files)
        except TidecacheError:
            raise
        except OSError as error:
            named = next((file.path for file in files if file.path in str(error)), "its files")
            raise CacheCorruptError(f"expected {named}, got: {error}") from error
        for file in files:
            data = found[file.path]
            got = xxhash.xxh3_128_hexdigest(data)
            if (len(data), got) != (file.size, file.xxh3_128):
                raise CacheCorruptError(
                    f"expected {file.path} of {file.size} bytes with xxh3 {file.xxh3_128}, "
                    f"got {len(data)} bytes with {got}"
                )
        return found
