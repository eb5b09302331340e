"""Which files a path, a glob or an fsspec URL stands for, and how one is opened."""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from fsspec.core import OpenFile, url_to_fs  # pyright: ignore

from pipeline.config.secrets import refuse_credentials
from pipeline.storage.address import OBJECT_STORES, scheme_of
from pipeline.storage.connection import register_with_fsspec, require_obstore, talking_to
from storage_schemas.errors import RecipeError

_LINES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
_PARQUET = ".parquet"


def matching_files(paths: tuple[str, ...]) -> list[str]:
    """The files meant, each once, in the order of their names and then of their folders."""
    for path in paths:
        refuse_credentials(path, "records")
    files = {file for path in paths for file in _expand(path)}
    for file in sorted(files):
        if not innermost(file).endswith((*_LINES, _PARQUET)):
            expected = ", ".join((*_LINES, _PARQUET))
            raise RecipeError(
                f"{file}: expected a name ending in {expected}, got another; "
                "rename it to what it holds, or convert it"
            )
    return sorted(files, key=lambda file: (PurePosixPath(innermost(file)).name, file))


def is_parquet(file: str) -> bool:
    """Whether a file is Parquet; it holds lines of JSON otherwise."""
    return innermost(file).endswith(_PARQUET)


def innermost(file: str) -> str:
    """The file's own path in a chained URL (`zip://a.jsonl::s3://bucket/a.zip`)."""
    return file.partition("::")[0]


@contextmanager
def opened(file: str, compression: str | None = None) -> Generator[BinaryIO]:
    """The file's bytes, decompressed."""
    with _reaching(file):
        system, name = cast("tuple[Any, str]", url_to_fs(file))
        system.info(name)  # refused here; a file of obstore's that fails to open is left half made
        with cast("BinaryIO", OpenFile(system, name, "rb", compression)) as stream:
            yield stream


def _reaching(file: str) -> AbstractContextManager[None]:
    """Object stores are reached as the cache reaches them, and fail with the same errors."""
    stored = next((link for link in file.split("::") if scheme_of(link) in OBJECT_STORES), None)
    if stored is None:
        return nullcontext()
    require_obstore(stored)
    register_with_fsspec()
    return talking_to(stored)


def _expand(path: str) -> list[str]:
    with _reaching(path):
        return _expand_reached(path)


def _expand_reached(path: str) -> list[str]:
    try:
        system, name = cast("tuple[Any, str]", url_to_fs(path))
    except (ImportError, ValueError) as e:
        raise RecipeError(f"{path}: expected a path or an fsspec URL, got {e}") from e
    if system.isdir(name):
        raise RecipeError(f"{path}: expected files, got a folder; write {path}/*.jsonl or the like")
    if system.exists(name):  # before the glob, for its name may hold a bracket
        return [path]
    found: dict[str, dict[str, Any]] = system.glob(name, detail=True)
    files = [match for match, facts in found.items() if facts["type"] == "file"]
    if not files:
        raise RecipeError(f"{path}: expected a file or a glob of files, got none; check the path")
    if "://" not in path and "::" not in path:
        return files
    _, chain, outer = path.partition("::")
    return [system.unstrip_protocol(match) + chain + outer for match in files]
