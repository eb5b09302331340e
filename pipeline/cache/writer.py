"""Writing a cache: shards are staged, renamed, and only then entered in the ledger.

Commit: files under tmp/<own folder> -> fsync -> rename to shards/ -> ledger entry by hard link.
A kill between any two steps leaves what the next writer replaces. Locks end with their process.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType

from pipeline.cache.encode import count, encode_shard
from pipeline.cache.files import (
    exclusive,
    file_entry,
    lock,
    publish,
    sync_folder,
    write_durably,
    write_tree,
    writing_to,
)
from pipeline.cache.ledger import (
    check_files,
    committed_views,
    read_ledger,
    read_manifest,
    to_json,
)
from storage_schemas.errors import CacheCorruptError, CacheIdentityError, CacheWriteError
from storage_schemas.identity import CacheIdentity, differences
from storage_schemas.manifest import (
    LEDGER_FOLDER,
    MANIFEST_FILE,
    SCRATCH_FOLDER,
    SHARDS_FOLDER,
    VOCABULARY_FOLDER,
    Layout,
    LedgerEntry,
    Manifest,
)
from storage_schemas.parquet_layout import encode_vocabulary
from storage_schemas.shard import ShardContent

_LOG = logging.getLogger(__name__)
_LOCK_FILE = "lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabularies:
    """The bytes of each token by id, so that looking at a cache needs no tokenizer."""

    student: Mapping[int, bytes]
    teacher: Mapping[int, bytes]


class CacheWriter:
    """A cache open for adding shards; several may be, in any number of processes and threads."""

    def __init__(self, path: Path, manifest: Manifest, scratch: Path, scratch_lock: int) -> None:
        self.path = path
        self.manifest = manifest
        self._scratch = scratch
        self._scratch_lock: int | None = scratch_lock

    @classmethod
    def open(
        cls, path: Path, identity: CacheIdentity, layout: Layout, vocabularies: Vocabularies
    ) -> "CacheWriter":
        """Makes the cache, or opens the one that is there if it was made from the same inputs."""
        with writing_to(path):
            for folder in (SCRATCH_FOLDER, SHARDS_FOLDER, LEDGER_FOLDER, VOCABULARY_FOLDER):
                (path / folder).mkdir(parents=True, exist_ok=True)
            sync_folder(path)
            sync_folder(path.parent)
            with exclusive(path / SCRATCH_FOLDER / _LOCK_FILE):
                _remove_scratch_of_the_dead(path / SCRATCH_FOLDER)
                scratch, scratch_lock = _new_scratch(path / SCRATCH_FOLDER)
                try:
                    if not (path / MANIFEST_FILE).exists():
                        _create(path, identity, layout, vocabularies, scratch)
                    manifest = read_manifest(path)
                    _refuse_other_inputs(path, manifest, identity, layout)
                    check_files(path, manifest, read_ledger(path))
                except BaseException:
                    _end_scratch(scratch, scratch_lock)
                    raise
        return cls(path, manifest, scratch, scratch_lock)

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
        """Gives back the scratch folder; what is committed stays."""
        if self._scratch_lock is not None:
            _end_scratch(self._scratch, self._scratch_lock)
            self._scratch_lock = None

    def committed(self, part: int) -> frozenset[int]:
        """The views of a part that are in the ledger, whoever wrote them."""
        return frozenset(view for views in committed_views(self.path, part) for view in views)

    def missing_views(self, part: int, views: int) -> list[range]:
        """The runs of the views 0 .. views - 1 that the ledger lacks, rising."""
        missing = sorted(set(range(views)) - self.committed(part))
        starts = [view for view in missing if view - 1 not in missing]
        stops = [view + 1 for view in missing if view + 1 not in missing]
        return [range(start, stop) for start, stop in zip(starts, stops, strict=True)]

    def commit(self, content: ShardContent) -> LedgerEntry:
        """Writes a shard and enters it in the ledger; returns the entry that is there then.

        Where another writer was first with this very shard, this copy is dropped and the entry is
        that writer's. Views that overlap another shard's are refused.
        """
        assert self._scratch_lock is not None, "the writer is closed"
        files = encode_shard(content, self.manifest.identity.kept)
        folder = f"{SHARDS_FOLDER}/{content.name}"
        entry = LedgerEntry(
            shard=content.name,
            part=content.part,
            view_start=content.view_start,
            view_stop=content.view_stop,
            files=tuple(file_entry(f"{folder}/{name}", files[name]) for name in sorted(files)),
            counts=count(content),
        )
        with writing_to(self.path):
            staging = Path(tempfile.mkdtemp(dir=self._scratch))
            try:
                write_tree(staging / "shard", files)
                write_durably(staging / "entry", to_json(entry))
                with exclusive(self.path / SCRATCH_FOLDER / _LOCK_FILE):
                    return self._enter(staging, entry)
            finally:
                shutil.rmtree(staging, ignore_errors=True)

    def _enter(self, staging: Path, entry: LedgerEntry) -> LedgerEntry:
        """The last steps, one writer at a time. The hard link decides, should locks not hold."""
        target = self.path / SHARDS_FOLDER / entry.shard
        ledger_file = self.path / LEDGER_FOLDER / f"{entry.shard}.json"
        if not self._is_taken(entry):
            if target.exists():
                _LOG.info("shard %s: a leftover without ledger entry is replaced", entry.shard)
                target.rename(staging / "leftover")
            (staging / "shard").rename(target)
            sync_folder(target.parent)
            if publish(staging / "entry", ledger_file):
                return entry
        _LOG.info("shard %s: another writer was first, this copy is dropped", entry.shard)
        return LedgerEntry.model_validate_json(ledger_file.read_bytes())

    def _is_taken(self, entry: LedgerEntry) -> bool:
        for views in committed_views(self.path, entry.part):
            if views == entry.views:
                return True
            if views.start < entry.view_stop and entry.view_start < views.stop:
                raise CacheWriteError(
                    f"shard {entry.shard}: expected its views to be free, got views {views.start} "
                    f"to {views.stop - 1} of part {entry.part} committed by another writer; run "
                    f"again: it goes on with what is missing"
                )
        return False


def _create(
    path: Path,
    identity: CacheIdentity,
    layout: Layout,
    vocabularies: Vocabularies,
    scratch: Path,
) -> None:
    """Vocabularies first, the manifest last: with it the folder is a cache."""
    if any((path / LEDGER_FOLDER).iterdir()) or any((path / SHARDS_FOLDER).iterdir()):
        raise CacheCorruptError(
            f"{path}: expected {MANIFEST_FILE} beside its shards, got none; "
            f"put it back, or name another cache folder"
        )
    texts = {
        f"{VOCABULARY_FOLDER}/student.parquet": encode_vocabulary(vocabularies.student),
        f"{VOCABULARY_FOLDER}/teacher.parquet": encode_vocabulary(vocabularies.teacher),
    }
    for name, data in texts.items():
        write_durably(scratch / "vocabulary", data)
        (scratch / "vocabulary").rename(path / name)
    sync_folder(path / VOCABULARY_FOLDER)
    manifest = Manifest(
        created_by=_version(),
        digest=identity.digest,
        identity=identity,
        layout=layout,
        vocabularies=tuple(file_entry(name, data) for name, data in texts.items()),
    )
    write_durably(scratch / "manifest", to_json(manifest))
    publish(scratch / "manifest", path / MANIFEST_FILE)


def _refuse_other_inputs(
    path: Path, manifest: Manifest, identity: CacheIdentity, layout: Layout
) -> None:
    lines = manifest.identity.differences(identity)
    lines += [f"layout.{line}" for line in differences(manifest.layout, layout)]
    if lines:
        raise CacheIdentityError(
            "\n  ".join([f"{path}: expected a cache made from this recipe's inputs, but", *lines])
            + "\nname another cache folder, or set the recipe back to what the cache was made from"
        )


def _remove_scratch_of_the_dead(scratch_root: Path) -> None:
    """Removes scratch folders that no living writer holds the lock of."""
    for scratch in scratch_root.glob("writer-*"):
        held = lock(scratch / _LOCK_FILE, wait=False)
        if held is not None:
            _end_scratch(scratch, held)


def _new_scratch(scratch_root: Path) -> tuple[Path, int]:
    scratch = Path(tempfile.mkdtemp(prefix="writer-", dir=scratch_root))
    held = lock(scratch / _LOCK_FILE, wait=True)
    assert held is not None, "nobody else knows a new folder"
    return scratch, held


def _end_scratch(scratch: Path, held: int) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    os.close(held)


def _version() -> str:
    try:
        return version("tidecache")
    except PackageNotFoundError:
        return "unknown"
