"""A cache in a local folder: files are staged, renamed, and only then entered by hard link.

Commit: files under tmp/<own folder> -> fsync -> rename into place -> record by hard link. A kill
between any two steps leaves what the next writer replaces. Locks end with their process.
"""

import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.cache.files import (
    exclusive,
    is_locked,
    lock,
    publish,
    sync_folder,
    write_durably,
    write_tree,
    writing_to,
)
from storage_schemas.errors import CacheCorruptError
from storage_schemas.manifest import (
    COMMON_FOLDER,
    LEDGER_FOLDER,
    SCRATCH_FOLDER,
    SHARDS_FOLDER,
)

_LOG = logging.getLogger(__name__)
_LOCK_FILE = "lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Writers:
    """Scratch folders whose writers live, and those that killed ones left behind."""

    num_alive: int
    num_dead: int


class LocalStore:
    """A cache's files in a folder of this machine, or of one that it mounts."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def address(self) -> str:
        """The folder."""
        return str(self._root)

    def read(self, path: str) -> bytes:
        """The bytes of one file; a link to outside is refused."""
        self._stay_inside(path)
        try:
            return (self._root / path).read_bytes()
        except NotADirectoryError as error:
            raise FileNotFoundError(f"{self._root / path}: {error}") from error

    def read_all(self, paths: Iterable[str]) -> dict[str, bytes]:
        """The bytes of several files by path."""
        return {path: self.read(path) for path in paths}

    def sizes(self, paths: Collection[str]) -> dict[str, int]:
        """The sizes of those files that are there; a link to outside is refused."""
        for folder in {path.rpartition("/")[0] for path in paths}:
            self._stay_inside(folder)
        found: dict[str, int] = {}
        for path in paths:
            try:
                facts = os.lstat(f"{self._root}/{path}")  # (a third of pathlib's time)
                if stat.S_ISLNK(facts.st_mode):
                    self._stay_inside(path)
                    facts = (self._root / path).stat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            found[path] = facts.st_size
        return found

    def names(self, folder: str) -> list[str]:
        """The names of the files and folders in a folder; none if it is not there."""
        try:
            return [path.name for path in (self._root / folder).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def changed_at(self, folder: str) -> datetime | None:
        """The youngest file's time."""
        try:
            times = [path.stat().st_mtime for path in (self._root / folder).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return None
        return datetime.fromtimestamp(max(times), UTC) if times else None

    def writers(self) -> Writers:
        """A living writer holds the lock in its scratch folder; nothing is written to ask."""
        scratch = (self._root / SCRATCH_FOLDER).glob("writer-*")
        is_alive = [is_locked(folder / _LOCK_FILE) for folder in scratch]
        return Writers(num_alive=sum(is_alive), num_dead=len(is_alive) - sum(is_alive))

    def local_path(self, path: str) -> Path:
        """The file's path."""
        return self._root / path

    def replace(self, path: str, data: bytes) -> None:
        """Writes a file beside, then renames it."""
        with self._turn():
            self._replace(path, data)

    def exchange(self, path: str, old: bytes, new: bytes) -> bool:
        """Replaces a file if it still holds `old`; one at a time among all who hold the lock."""
        with self._turn():
            if self.read(path) != old:
                return False
            self._replace(path, new)
            return True

    def open_writer(self) -> "LocalWriter":
        """Makes the folders, removes what dead writers left, and takes a scratch folder."""
        with writing_to(self._root):
            for folder in (SCRATCH_FOLDER, SHARDS_FOLDER, LEDGER_FOLDER, COMMON_FOLDER):
                self._stay_inside(folder)
            for folder in (SCRATCH_FOLDER, SHARDS_FOLDER, LEDGER_FOLDER):
                (self._root / folder).mkdir(parents=True, exist_ok=True)
            sync_folder(self._root)
            sync_folder(self._root.parent)
            with self._turn():
                _remove_scratch_of_the_dead(self._root / SCRATCH_FOLDER)
                return LocalWriter(self._root, *_new_scratch(self._root / SCRATCH_FOLDER))

    @contextmanager
    def _turn(self) -> Generator[None]:
        """One at a time among all who change this cache."""
        with ExitStack() as stack:
            with writing_to(self._root):
                scratch = self._root / SCRATCH_FOLDER
                self._stay_inside(f"{SCRATCH_FOLDER}/{_LOCK_FILE}")
                scratch.mkdir(parents=True, exist_ok=True)
                stack.enter_context(exclusive(scratch / _LOCK_FILE))
            yield

    def _stay_inside(self, path: str) -> None:
        """Raises where links lead out of the cache's folder, which may itself be one."""
        if not (self._root / path).resolve().is_relative_to(self._root.resolve()):
            raise CacheCorruptError(
                f"{path}: expected a file or folder inside {self._root}, got a link to elsewhere; "
                f"nothing there is read or written: copy what it links to in its place"
            )

    def _replace(self, path: str, data: bytes) -> None:
        beside = self._root / SCRATCH_FOLDER / "replacement"
        with writing_to(self._root):
            beside.unlink(missing_ok=True)  # of a writer that was killed here
            write_durably(beside, data)
            (self._root / path).parent.mkdir(exist_ok=True)
            beside.replace(self._root / path)
            sync_folder((self._root / path).parent)


class LocalWriter:
    """Adds to a local cache; holds a scratch folder, and a lock that says that it lives."""

    def __init__(self, root: Path, scratch: Path, scratch_lock: int) -> None:
        self._root = root
        self._scratch = scratch
        self._scratch_lock: int | None = scratch_lock

    def commit(
        self,
        folder: str,
        files: Mapping[str, bytes],
        record: str,
        record_of: Callable[[str], bytes],
        is_taken: Callable[[], bool],
    ) -> bool:
        """Stages everything, then enters it, one writer at a time."""
        assert self._scratch_lock is not None, "the writer is closed"
        with writing_to(self._root):
            staging = Path(tempfile.mkdtemp(dir=self._scratch))
            try:
                write_tree(staging / "files", files)
                write_durably(staging / "record", record_of(folder))
                with exclusive(self._root / SCRATCH_FOLDER / _LOCK_FILE):
                    return not is_taken() and self._enter(staging, folder, record)
            finally:
                shutil.rmtree(staging, ignore_errors=True)

    def close(self) -> None:
        """Gives back the scratch folder, and those of writers that died meanwhile."""
        if self._scratch_lock is None:
            return
        _end_scratch(self._scratch, self._scratch_lock)
        self._scratch_lock = None
        with suppress(OSError), exclusive(self._root / SCRATCH_FOLDER / _LOCK_FILE):
            _remove_scratch_of_the_dead(self._root / SCRATCH_FOLDER)

    def _enter(self, staging: Path, folder: str, record: str) -> bool:
        """The last steps. The hard link decides, should locks not hold."""
        target = self._root / folder
        if target.exists():
            _LOG.info("%s: a leftover that no record names is replaced", folder)
            target.rename(staging / "leftover")
        (staging / "files").rename(target)
        sync_folder(target.parent)
        return publish(staging / "record", self._root / record)


def _remove_scratch_of_the_dead(scratch_root: Path) -> None:
    """Removes scratch folders that no living writer holds the lock of."""
    for scratch in scratch_root.glob("writer-*"):
        if scratch.is_symlink():  # not a writer's: they make folders
            continue
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
