"""The seam between a cache and where its bytes lie: a local folder, or an object store.

Paths are relative to the cache's folder, with slashes. A file under its name is whole, and never
changes; the two JSON files that may (`replace`, `exchange`) change as a whole.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Protocol, runtime_checkable

from pipeline.cache.local_store import LocalStore, Writers
from pipeline.storage.address import is_remote
from pipeline.storage.connection import require_obstore


@runtime_checkable
class StoreWriter(Protocol):
    """A store open for adding to it; several may be, in any number of processes and threads."""

    def commit(
        self,
        folder: str,
        files: Mapping[str, bytes],
        record: str,
        record_of: Callable[[str], bytes],
        is_taken: Callable[[], bool],
    ) -> bool:
        """Puts files under a folder, then the record that makes them count; False if it is taken.

        `record_of(folder)` is the record's text, given the folder that the files are really in:
        that folder, or one of their own in it. `is_taken()` is asked before the record is put, and
        may raise. Of several writers exactly one gets True; what the others put is never read.
        """
        ...

    def close(self) -> None:
        """Gives back what was held; what is committed stays."""
        ...


@runtime_checkable
class CacheStore(Protocol):
    """A cache's files. Equal addresses, equal files; a store can be sent to another process.

    What is not there is a FileNotFoundError. A store that does not answer is a
    StoreConnectionError; one that refuses to be written, a CacheWriteError.
    """

    @property
    def address(self) -> str:
        """The local path, or the URL, as it was given."""
        ...

    def read(self, path: str) -> bytes:
        """The bytes of one file."""
        ...

    def read_all(self, paths: Iterable[str]) -> dict[str, bytes]:
        """The bytes of several files by path, in as few round trips' time as can be."""
        ...

    def sizes(self, paths: Collection[str]) -> dict[str, int]:
        """The sizes of those files that are there, in far fewer calls than files."""
        ...

    def names(self, folder: str) -> list[str]:
        """The names of the files and folders in a folder; none if it is not there."""
        ...

    def changed_at(self, folder: str) -> datetime | None:
        """When a file in a folder was last written, in UTC; None if it has none."""
        ...

    def writers(self) -> Writers | None:
        """Who has it open for adding; None where the store cannot tell."""
        ...

    def local_path(self, path: str) -> Path | None:
        """The file's path where the operating system can open it, else None."""
        ...

    def replace(self, path: str, data: bytes) -> None:
        """Writes a file, as a whole, whatever is there."""
        ...

    def exchange(self, path: str, old: bytes, new: bytes) -> bool:
        """Writes a file, as a whole, if it still holds `old`; False if it does not."""
        ...

    def open_writer(self) -> StoreWriter:
        """Opens it for adding, and makes it if need be."""
        ...


def open_store(address: str | Path) -> CacheStore:
    """The store at an address: a local path, or s3://bucket/folder, gs://..., az://..."""
    if not is_remote(address):
        return LocalStore(Path(address))
    require_obstore(str(address))
    from pipeline.cache.object_store import ObjectStore  # here: it loads obstore

    return ObjectStore(str(address))
