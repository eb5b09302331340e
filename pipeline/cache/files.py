"""Durable files: what is visible under its final name is whole, also after a power cut."""

import fcntl
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import xxhash

from storage_schemas.errors import CacheWriteError, TidecacheError
from storage_schemas.manifest import FileEntry


def write_durably(path: Path, data: bytes) -> None:
    """Writes a new file and waits until it is on disk; its name is durable after `sync_folder`."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Waits until the names in a folder are on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_tree(root: Path, files: Mapping[str, bytes]) -> None:
    """Writes files by relative path under a new folder, durably, folders included."""
    root.mkdir()
    folders = {root}
    for relative, data in files.items():
        path = root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        folders |= {parent for parent in path.parents if parent.is_relative_to(root)}
        write_durably(path, data)
    for folder in sorted(folders, reverse=True):  # a folder after what is in it
        sync_folder(folder)


def publish(staged: Path, target: Path) -> bool:
    """Gives a staged file its final name if nobody has it yet; False if it is taken."""
    try:
        target.hardlink_to(staged)
    except FileExistsError:
        return False
    sync_folder(target.parent)
    staged.unlink()
    return True


def file_entry(path: str, data: bytes) -> FileEntry:
    """What the ledger says of a file with these bytes."""
    return FileEntry(path=path, size=len(data), xxh3_128=xxhash.xxh3_128_hexdigest(data))


def lock(path: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the lock until it is closed; None if another has it (no wait)."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock; asking takes no right to write."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def exclusive(path: Path) -> Generator[None]:
    """One holder at a time among all processes and threads that use this lock file."""
    descriptor = lock(path, wait=True)
    assert descriptor is not None, "a waiting lock returns when it is held"
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def writing_to(path: Path) -> Generator[None]:
    """Turns an operating system's refusal into an error that says what to do."""
    try:
        yield
    except TidecacheError:
        raise
    except OSError as error:
        raise CacheWriteError(
            f"{path}: expected a writable folder with room left (on a file system with file locks "
            f"and hard links), got: {error}; free some room, or name another cache folder"
        ) from error
