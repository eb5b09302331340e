"""Readers of a cache for tests: importable, so that they can be sent to other processes."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.cache.reader import CacheReader
from storage_schemas.batch import Batch
from storage_schemas.manifest import LedgerEntry
from storage_schemas.shard import ShardContent


@dataclass(frozen=True, slots=True, kw_only=True)
class NotingReader(CacheReader):
    """Notes in a file each shard that it reads, and the process that read it."""

    notes: Path

    @classmethod
    def over(cls, reader: CacheReader, notes: Path) -> "NotingReader":
        """The same cache, with notes."""
        return cls(
            store=reader.store, manifest=reader.manifest, entries=reader.entries, notes=notes
        )

    def read_shard(self, entry: LedgerEntry, *args, **options) -> ShardContent:
        with self.notes.open("a", encoding="utf-8") as file:
            file.write(f"{entry.shard} {os.getpid()}\n")
        return CacheReader.read_shard(self, entry, *args, **options)

    def read(self) -> list[tuple[str, int]]:
        """Shard and process of every reading so far."""
        if not self.notes.exists():
            return []
        lines = self.notes.read_text(encoding="utf-8").splitlines()
        return [(shard, int(process)) for shard, process in map(str.split, lines)]


def names_and_place(batch: Batch) -> tuple[list[tuple[str, int]], int, int]:
    """Record and view of a batch's examples; the process that made it, and its torch threads."""
    names = list(zip(batch.record_ids, batch.view_E.tolist(), strict=True))
    return names, os.getpid(), torch.get_num_threads()
