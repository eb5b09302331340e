"""Verifying a cache: every file, every count and every mask, with all faults told at once."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from pipeline.cache.check_content import Expected, contradictions
from pipeline.cache.decode import NONSENSE, decode_shard
from pipeline.cache.ledger import (
    make_anew,
    overlapping,
    parse_entry,
    read_manifest,
    shard_files,
)
from pipeline.cache.store import CacheStore, open_store
from storage_schemas.basis import Basis
from storage_schemas.errors import CacheCorruptError, CacheMissingError, TidecacheError
from storage_schemas.manifest import (
    BASIS_FOLDER,
    COMMON_FOLDER,
    LEDGER_FOLDER,
    MANIFEST_FILE,
    SHARDS_FOLDER,
    FileEntry,
    LedgerEntry,
    Manifest,
)
from storage_schemas.parquet_layout import VOCABULARY, decode_table
from storage_schemas.zarr_layout import decode_basis

_RESTORE = "restore it from a copy, or make the cache anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong: in which shard or file, what was expected and got, what to do."""

    where: str
    what: str
    to_do: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.to_do}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was checked, what is wrong, and what is there without being listed (no fault).

    The numbers count what was read whole: shards without a fault, files and bytes hashed.
    """

    address: str
    shards: int
    sound_shards: int
    files: int
    num_bytes: int
    examples: int
    views: int
    chunks: int
    token_rows: int
    faults: tuple[Fault, ...]
    unlisted: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults


def verify_cache(address: str | Path) -> VerifyReport:
    """Reads everything, one shard at a time, and goes on after a fault.

    What a kill leaves (files that no record names) is told, but is no fault: so is, for the same
    reason, a shard whose ledger entry is gone. Another schema version is refused, as by reading.
    """
    return _Verifier(open_store(address)).run()


@dataclass(slots=True)
class _Verifier:
    """One pass over a cache."""

    store: CacheStore
    faults: list[Fault] = field(default_factory=list[Fault])
    files: int = 0
    num_bytes: int = 0

    def run(self) -> VerifyReport:
        manifest = self._manifest()
        entries = self._ledger()
        expected = self._common(manifest) if manifest is not None else None
        sound = [entry for entry in entries if self._is_sound_shard(entry, expected)]
        listed = [file.path for entry in entries for file in entry.files]
        if manifest is not None:
            listed += [file.path for file in (*manifest.vocabularies, *manifest.basis)]
        counts = [entry.counts for entry in sound]
        return VerifyReport(
            address=self.store.address,
            shards=len(entries),
            sound_shards=len(sound),
            files=self.files,
            num_bytes=self.num_bytes,
            examples=sum({entry.part: entry.counts.num_examples for entry in sound}.values()),
            views=sum(one.num_views for one in counts),
            chunks=sum(one.num_chunks for one in counts),
            token_rows=sum(one.num_token_rows for one in counts),
            faults=tuple(self.faults),
            unlisted=tuple(_unlisted(self.store, listed, has_manifest=manifest is not None)),
        )

    def _fault(self, where: str, what: str, to_do: str) -> None:
        self.faults.append(Fault(where=where, what=what, to_do=to_do))

    def _manifest(self) -> Manifest | None:
        try:
            return read_manifest(self.store)
        except CacheMissingError:
            if not self.store.names(LEDGER_FOLDER):
                raise
            what = f"expected it beside {LEDGER_FOLDER}/, got no such file"
            self._fault(MANIFEST_FILE, what, _RESTORE)
        except CacheCorruptError as error:
            what = str(error).removeprefix(f"{self.store.address}/{MANIFEST_FILE}: ")
            self._fault(MANIFEST_FILE, what.removesuffix("; restore it from a copy"), _RESTORE)
        return None

    def _ledger(self) -> list[LedgerEntry]:
        entries: list[LedgerEntry] = []
        for name in sorted(self.store.names(LEDGER_FOLDER)):
            if not name.endswith(".json"):
                continue
            path, shard = f"{LEDGER_FOLDER}/{name}", name.removesuffix(".json")
            where, to_do = f"shard {shard}", make_anew(shard)
            try:
                entries.append(parse_entry(path, self.store.read(path)))
            except (CacheCorruptError, FileNotFoundError) as error:
                what = str(error).removeprefix(f"{where}: ").removesuffix(f"; {to_do}")
                self._fault(where, what, to_do)
        entries.sort(key=lambda entry: (entry.part, entry.view_start))
        for entry, following in overlapping(entries):
            self._fault(
                f"shard {following.shard}",
                f"expected each view of a part once, got some that shard {entry.shard} has too",
                f"remove one of the two from {LEDGER_FOLDER}/",
            )
        return entries

    def _common(self, manifest: Manifest) -> Expected:
        basis, kept = self._basis(manifest), manifest.identity.kept
        if bool(manifest.basis) != (kept.calibration_records > 0):
            what = f"expected a basis where the identity asks for one, got {len(manifest.basis)}"
            self._fault(MANIFEST_FILE, f"{what} files", _RESTORE)
        if basis is not None and basis.vocab_size != kept.vocab_size:
            what = f"expected {kept.vocab_size} columns, got {basis.vocab_size}"
            self._fault(BASIS_FOLDER, what, _RESTORE)
        return Expected(
            identity=manifest.identity,
            basis=basis,
            student_size=self._vocabulary_size(manifest.vocabulary("student")),
            teacher_size=self._vocabulary_size(manifest.vocabulary("teacher")),
        )

    def _basis(self, manifest: Manifest) -> Basis | None:
        found: dict[str, bytes] = {}
        for file in manifest.basis:
            data = self._read(file, file.path, _RESTORE)
            if data is not None:
                found[file.path.partition(f"/{BASIS_FOLDER}/")[2]] = data
        if not manifest.basis or len(found) < len(manifest.basis):
            return None
        try:
            return decode_basis(found)
        except NONSENSE as error:
            self._fault(BASIS_FOLDER, str(error), _RESTORE)
            return None

    def _vocabulary_size(self, file: FileEntry) -> int | None:
        data = self._read(file, file.path, _RESTORE)
        if data is None:
            return None
        try:
            ids = decode_table(VOCABULARY, data).arrays["id"]
        except CacheCorruptError as error:
            self._fault(file.path, str(error), _RESTORE)
            return None
        if not (ids[1:] > ids[:-1]).all():
            self._fault(file.path, "expected rising ids, got others", _RESTORE)
        return int(ids.max()) + 1 if len(ids) else 0

    def _is_sound_shard(self, entry: LedgerEntry, expected: Expected | None) -> bool:
        """Whether a shard is whole; each of its faults is kept."""
        where, to_do = f"shard {entry.shard}", make_anew(entry.shard)
        before = len(self.faults)
        files: dict[str, bytes] = {}
        try:  # before any is read: a link to elsewhere is refused
            self.store.sizes([file.path for file in entry.files])
        except CacheCorruptError as error:
            self._fault(where, str(error), to_do)
            return False
        for file in entry.files:
            data = self._read(file, where, to_do)
            if data is not None:
                files[entry.inner_path(file)] = data
        if expected is None:
            return len(self.faults) == before
        want = shard_files(entry, expected.identity.kept)
        for path in sorted(want ^ set(map(entry.inner_path, entry.files))):
            wants, has = ("it", "none") if path in want else ("no such file", "one")
            what = f"expected {wants} in its ledger entry, got {has}: {path}"
            self._fault(where, what, to_do)
        if len(self.faults) > before:
            return False
        for what in _content_faults(entry, files, expected):
            self._fault(where, what, to_do)
        return len(self.faults) == before

    def _read(self, file: FileEntry, where: str, to_do: str) -> bytes | None:
        """The bytes of a file, if they are those that are listed."""
        expected = f"expected {file.path} of {file.size} bytes"
        try:
            data = self.store.read(file.path)
        except FileNotFoundError:
            self._fault(where, f"{expected}, got no such file", to_do)
            return None
        except TidecacheError:
            raise
        except OSError as error:
            self._fault(where, f"{expected}, got: {error}", to_do)
            return None
        self.files += 1
        self.num_bytes += len(data)
        if len(data) != file.size:
            self._fault(where, f"{expected}, got {len(data)}", to_do)
            return None
        if (digest := xxhash.xxh3_128_hexdigest(data)) != file.xxh3_128:
            self._fault(where, f"{expected} with xxh3 {file.xxh3_128}, got {digest}", to_do)
            return None
        return data


def _content_faults(
    entry: LedgerEntry, files: dict[str, bytes], expected: Expected
) -> Iterator[str]:
    kept = expected.identity.kept
    coder = None if expected.basis is None else expected.basis.coder
    try:
        content = decode_shard(files, entry, kept, coder)
        yield from contradictions(content, entry, files, expected)
    except NONSENSE as error:
        yield f"expected content of one piece, got: {type(error).__name__}: {error}"


def _unlisted(store: CacheStore, listed: Iterable[str], *, has_manifest: bool) -> Iterator[str]:
    """What lies among the shards and common files and is named nowhere; a folder as one."""
    files = set(listed)
    folders = {
        "/".join(parts[:depth])
        for parts in (path.split("/") for path in files)
        for depth in range(1, len(parts))
    }
    waiting = [SHARDS_FOLDER, *([COMMON_FOLDER] if has_manifest else [])]
    while waiting:
        folder = waiting.pop()
        for name in sorted(store.names(folder)):
            path = f"{folder}/{name}"
            if path in folders:
                waiting.append(path)
            elif path not in files:
                yield path
