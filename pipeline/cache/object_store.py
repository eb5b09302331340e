"""A cache in an object store: files under a prefix of their own, then one conditional put.

There are no renames and no locks. Each commit's files get names that nobody else has; the record
that names them is put only where there is none yet. The store itself decides who was first.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import uuid4

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError

from pipeline.storage.connection import connect, talking_to
from storage_schemas.errors import CacheWriteError, TidecacheError

if TYPE_CHECKING:
    from obstore import PutMode, UpdateVersion

_LOG = logging.getLogger(__name__)
_REQUESTS = 16  # at once
_PAGE = 1000  # what one listing request returns at most


class ObjectStore:
    """A cache's files in S3, Google Cloud Storage or Azure, or in what speaks as they do."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._store = connect(address)

    @property
    def address(self) -> str:
        """The URL."""
        return self._address

    def read(self, path: str) -> bytes:
        """The bytes of one object."""
        with talking_to(self._address):
            return obstore.get(self._store, path).bytes().to_bytes()

    def read_all(self, paths: Iterable[str]) -> dict[str, bytes]:
        """The bytes of several objects by path, read at the same time."""
        wanted = list(paths)
        with ThreadPoolExecutor(_REQUESTS) as pool:
            return dict(zip(wanted, pool.map(self.read, wanted), strict=True))

    def sizes(self, paths: Collection[str]) -> dict[str, int]:
        """The sizes of those objects that are there, by listing the folders that they are in."""
        found: dict[str, int] = {}
        for folder in {path.partition("/")[0] for path in paths}:
            with talking_to(self._address):
                for page in obstore.list(self._store, folder, chunk_size=_PAGE):
                    found |= {meta["path"]: meta["size"] for meta in page}
        return {path: found[path] for path in paths if path in found}

    def names(self, folder: str) -> list[str]:
        """The names of the objects and prefixes in a folder."""
        with talking_to(self._address):
            listed = obstore.list_with_delimiter(self._store, folder or None)
        paths = [*listed["common_prefixes"], *(meta["path"] for meta in listed["objects"])]
        return [path.rstrip("/").rpartition("/")[2] for path in paths]

    def changed_at(self, folder: str) -> datetime | None:
        """The youngest object's time, as the store says."""
        with talking_to(self._address):
            listed = obstore.list_with_delimiter(self._store, folder)
        return max((meta["last_modified"] for meta in listed["objects"]), default=None)

    def writers(self) -> None:
        """None: a writer holds nothing there."""

    def local_path(self, path: str) -> None:
        """None: every byte comes through this store."""

    def replace(self, path: str, data: bytes) -> None:
        """Puts an object, whatever is there."""
        self._put(path, data, "overwrite")

    def exchange(self, path: str, old: bytes, new: bytes) -> bool:
        """Puts an object if the one there, by its ETag, is still the one that holds `old`."""
        with talking_to(self._address):
            found = obstore.get(self._store, path)
            data = found.bytes().to_bytes()
        if data != old:
            return False
        version: UpdateVersion = {}  # which of the two there is depends on the store
        if e_tag := found.meta["e_tag"]:
            version["e_tag"] = e_tag
        if number := found.meta["version"]:
            version["version"] = number
        try:
            self._put(path, new, version)
        except PreconditionError:
            return False  # also, at worst, a put whose answer was lost and that was asked again
        return True

    def open_writer(self) -> "ObjectWriter":
        """Nothing needs to be made."""
        return ObjectWriter(self)

    def put_all(self, files: Mapping[str, bytes]) -> None:
        """Puts several new objects at the same time."""
        with ThreadPoolExecutor(_REQUESTS) as pool:
            list(pool.map(self.replace, files.keys(), files.values()))

    def put_new(self, path: str, data: bytes) -> bool:
        """Puts an object where there is none; whether the one there now is this one.

        A put whose answer was lost is asked again, and then refused by itself: so the bytes decide.
        """
        try:
            self._put(path, data, "create")
        except AlreadyExistsError:
            return self.read(path) == data
        return True

    def discard(self, paths: Collection[str]) -> None:
        """Removes objects that nothing names, as far as the store lets us: they are never read."""
        try:
            with talking_to(self._address, is_writing=True):
                obstore.delete(self._store, list(paths))
        except (TidecacheError, FileNotFoundError) as error:
            _LOG.warning("%s: %d unused objects stay there: %s", self._address, len(paths), error)

    def remove(self, path: str) -> None:
        """Removes one object."""
        with talking_to(self._address, is_writing=True):
            obstore.delete(self._store, path)

    def _put(self, path: str, data: bytes, mode: "PutMode") -> None:
        try:
            with talking_to(self._address, is_writing=True):
                obstore.put(self._store, path, data, mode=mode)
        except FileNotFoundError as error:
            raise CacheWriteError(
                f"{self._address}: expected a bucket that is there, got none; make it first, or "
                f"check its name"
            ) from error


class ObjectWriter:
    """Adds to a cache in an object store; holds nothing."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def commit(
        self,
        folder: str,
        files: Mapping[str, bytes],
        record: str,
        record_of: Callable[[str], bytes],
        is_taken: Callable[[], bool],
    ) -> bool:
        """Data first, the record last, where there is none yet."""
        own = f"{folder}/{uuid4().hex}"
        paths = {f"{own}/{name}": data for name, data in files.items()}
        self._store.put_all(paths)
        try:
            is_entered = not is_taken() and self._store.put_new(record, record_of(own))
        except CacheWriteError:
            self._store.discard(paths)
            raise
        if not is_entered:
            self._store.discard(paths)
            return False
        try:
            is_taken()
        except CacheWriteError:
            # Its own record shows by now, so another stands in its way that was not there before.
            # Whoever comes last sees the other, so never do both stay.
            self._store.remove(record)
            raise
        return True

    def close(self) -> None:
        """Nothing is held."""
