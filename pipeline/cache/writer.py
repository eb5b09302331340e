"""Writing a cache: a shard's files first, and only then its entry in the ledger.

How a commit holds against kills and other writers is the store's affair (`local_store`,
`object_store`); what is committed, and what must not be, is decided here.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType

from pipeline.cache.encode import count, encode_shard
from pipeline.cache.files import file_entry
from pipeline.cache.ledger import (
    check_files,
    committed_views,
    missing_views,
    parse_entry,
    read_basis,
    read_ledger,
    read_manifest,
)
from pipeline.cache.store import CacheStore, StoreWriter, open_store
from storage_schemas.basis import Basis
from storage_schemas.errors import (
    CacheCorruptError,
    CacheIdentityError,
    CacheMissingError,
    CacheWriteError,
)
from storage_schemas.identity import CacheIdentity, differences
from storage_schemas.manifest import (
    BASIS_FOLDER,
    COMMON_FOLDER,
    LEDGER_FOLDER,
    MANIFEST_FILE,
    RECIPE_FILE,
    SHARDS_FOLDER,
    VOCABULARY_FOLDER,
    Calibration,
    Layout,
    LedgerEntry,
    Manifest,
)
from storage_schemas.parquet_layout import encode_vocabulary
from storage_schemas.run_notes import FAILURES_FOLDER, WANTED_FILE, Failure, Wanted
from storage_schemas.seal import sealed_json
from storage_schemas.shard import ShardContent
from storage_schemas.zarr_layout import encode_basis

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabularies:
    """The bytes of each token by id, so that looking at a cache needs no tokenizer."""

    student: Mapping[int, bytes]
    teacher: Mapping[int, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """What a calibration gives: the basis, and how it came about."""

    basis: Basis
    report: Calibration


class CacheWriter:
    """A cache open for adding shards; several may be, in any number of processes and threads."""

    def __init__(
        self, store: CacheStore, manifest: Manifest, writer: StoreWriter, basis: Basis | None
    ) -> None:
        self.store = store
        self.manifest = manifest
        self.basis = basis
        self._writer: StoreWriter | None = writer

    @classmethod
    def open(
        cls,
        address: str | Path,
        identity: CacheIdentity,
        layout: Layout,
        vocabularies: Vocabularies,
        calibrate: Callable[[], Calibrated] | None = None,
    ) -> "CacheWriter":
        """Makes the cache, or opens the one that is there if it was made from the same inputs.

        `calibrate` gives the basis of a new cache, where the identity asks for one. Of several
        writers that make it at once, one's basis stays, and all go on with that.
        """
        store = open_store(address)
        writer = store.open_writer()
        try:
            try:
                manifest = read_manifest(store)
            except CacheMissingError:
                made = calibrate() if calibrate is not None else None
                _create(store, writer, identity, layout, vocabularies, made)
                manifest = read_manifest(store)
            _refuse_other_inputs(store, manifest, identity, layout)
            check_files(store, manifest, read_ledger(store))
            basis = read_basis(store, manifest)
        except BaseException:
            writer.close()
            raise
        return cls(store, manifest, writer, basis)

    @classmethod
    def join(cls, address: str | Path, identity: CacheIdentity, layout: Layout) -> "CacheWriter":
        """Opens a cache that is there, for one more process of the run that opened it.

        What that run has checked already, the files of all shards, is not checked again.
        """
        store = open_store(address)
        manifest = read_manifest(store)
        _refuse_other_inputs(store, manifest, identity, layout)
        basis = read_basis(store, manifest)
        return cls(store, manifest, store.open_writer(), basis)

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives back what the store holds for it; what is committed stays."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def committed(self, part: int) -> frozenset[int]:
        """The views of a part that are in the ledger, whoever wrote them."""
        ranges = committed_views(self.store).get(part, [])
        return frozenset(view for views in ranges for view in views)

    def entry(self, shard: str) -> LedgerEntry | None:
        """A shard's entry in the ledger, or None if it is not committed."""
        path = f"{LEDGER_FOLDER}/{shard}.json"
        try:
            return parse_entry(path, self.store.read(path))
        except FileNotFoundError:
            return None

    def missing_views(self, part: int, views: int) -> list[range]:
        """The runs of the views 0 .. views - 1 that the ledger lacks, rising."""
        return [missing for _, missing in self.missing([part], views)]

    def missing(self, parts: Iterable[int], views: int) -> Iterator[tuple[int, range]]:
        """The same for several parts, each run with its part; the ledger is listed once."""
        return missing_views(committed_views(self.store), parts, views)

    def commit(self, content: ShardContent) -> LedgerEntry:
        """Writes a shard and enters it in the ledger; returns the entry that is there then.

        Where another writer was first with this very shard, this copy is dropped and the entry is
        that writer's. Views that overlap another shard's are refused.
        """
        assert self._writer is not None, "the writer is closed"
        files = encode_shard(content, self.manifest.identity.kept, self.basis)
        ledger_file = f"{LEDGER_FOLDER}/{content.name}.json"

        def entry_in(folder: str) -> LedgerEntry:
            return LedgerEntry(
                shard=content.name,
                folder=folder,
                part=content.part,
                view_start=content.view_start,
                view_stop=content.view_stop,
                files=tuple(file_entry(f"{folder}/{name}", files[name]) for name in sorted(files)),
                counts=count(content),
            )

        if not self._writer.commit(
            f"{SHARDS_FOLDER}/{content.name}",
            files,
            ledger_file,
            lambda folder: sealed_json(entry_in(folder)),
            lambda: self._is_taken(content),
        ):
            _LOG.info("shard %s: another writer was first, this copy is dropped", content.name)
        return parse_entry(ledger_file, self.store.read(ledger_file))

    def write_recipe(self, text: str) -> None:
        """Keeps the last recipe that wrote to the cache: it says where the teacher is."""
        self.store.replace(RECIPE_FILE, text.encode())

    def write_wanted(self, wanted: Wanted) -> None:
        """Keeps what the last run was to make: without it nobody could tell how far it is."""
        self.store.replace(WANTED_FILE, sealed_json(wanted))

    def note_failure(self, failure: Failure) -> None:
        """Keeps why a shard was not made, in place of what was said of it before."""
        self.store.replace(f"{FAILURES_FOLDER}/{failure.shard}.json", sealed_json(failure))

    def _is_taken(self, content: ShardContent) -> bool:
        own = range(content.view_start, content.view_stop)
        committed = committed_views(self.store).get(content.part, [])
        for views in committed:
            if views != own and views.start < own.stop and own.start < views.stop:
                raise CacheWriteError(
                    f"shard {content.name}: expected its views to be free, got views {views.start} "
                    f"to {views.stop - 1} of part {content.part} committed by another writer; run "
                    f"again: it goes on with what is missing"
                )
        return own in committed


def _create(
    store: CacheStore,
    writer: StoreWriter,
    identity: CacheIdentity,
    layout: Layout,
    vocabularies: Vocabularies,
    made: Calibrated | None,
) -> None:
    """Vocabularies and basis first, the manifest last: with it the folder is a cache."""
    needs_basis = identity.kept.calibration_records > 0
    assert (made is not None) == needs_basis, "a basis where the identity asks for one"
    files = {
        f"{VOCABULARY_FOLDER}/student.parquet": encode_vocabulary(vocabularies.student),
        f"{VOCABULARY_FOLDER}/teacher.parquet": encode_vocabulary(vocabularies.teacher),
    }
    if made is not None:
        encoded = encode_basis(made.basis)
        files |= {f"{BASIS_FOLDER}/{name}": data for name, data in encoded.items()}

    def manifest_of(folder: str) -> bytes:
        entries = [file_entry(f"{folder}/{name}", files[name]) for name in sorted(files)]
        is_basis = [f"/{BASIS_FOLDER}/" in entry.path for entry in entries]
        return sealed_json(
            Manifest(
                created_by=_version(),
                digest=identity.digest,
                identity=identity,
                layout=layout,
                vocabularies=tuple(
                    e for e, basis in zip(entries, is_basis, strict=True) if not basis
                ),
                basis=tuple(e for e, basis in zip(entries, is_basis, strict=True) if basis),
                calibration=made.report if made is not None else None,
            )
        )

    def is_there() -> bool:
        if MANIFEST_FILE in store.names(""):
            return True
        if store.names(LEDGER_FOLDER) or store.names(SHARDS_FOLDER):
            raise CacheCorruptError(
                f"{store.address}: expected {MANIFEST_FILE} beside its shards, got none; "
                f"put it back, or name another cache folder"
            )
        return False

    writer.commit(COMMON_FOLDER, files, MANIFEST_FILE, manifest_of, is_there)


def _refuse_other_inputs(
    store: CacheStore, manifest: Manifest, identity: CacheIdentity, layout: Layout
) -> None:
    lines = manifest.identity.differences(identity)
    lines += [f"layout.{line}" for line in differences(manifest.layout, layout)]
    if lines:
        raise CacheIdentityError(
            "\n  ".join(
                [f"{store.address}: expected a cache made from this recipe's inputs, but", *lines]
            )
            + "\nname another cache folder, or set the recipe back to what the cache was made from"
        )


def _version() -> str:
    try:
        return version("tidecache")
    except PackageNotFoundError:
        return "unknown"
