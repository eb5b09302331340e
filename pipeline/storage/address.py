"""The address of a folder: a local path, or the URL of a place in an object store."""

from pathlib import Path

from pipeline.config.secrets import refuse_credentials
from storage_schemas.errors import RecipeError

OBJECT_STORES = ("s3", "gs", "az")


def scheme_of(address: str | Path) -> str | None:
    """The URL's scheme, in lower case; None for a local path."""
    if isinstance(address, Path) or "://" not in address:
        return None
    return address.partition("://")[0].lower()


def is_remote(address: str | Path) -> bool:
    """Whether it names a place in an object store; a scheme that nobody knows is refused."""
    scheme = scheme_of(address)
    if scheme is None:
        return False
    refuse_credentials(str(address), f"{scheme}:// address")
    if scheme not in OBJECT_STORES:
        known = ", ".join(f"{name}://" for name in OBJECT_STORES)
        raise RecipeError(f"{address}: expected a local path, or a URL with {known}, got {scheme}")
    _, _, bucket = str(address).partition("://")
    if not bucket.strip("/"):
        raise RecipeError(f"{address}: expected a bucket's name after {scheme}://, got none")
    return True


def resolved_address(address: str | Path) -> str:
    """The one name of a place, whatever folder a command runs in."""
    if not is_remote(address):
        return str(Path(address).resolve())
    scheme, _, place = str(address).partition("://")
    parts = [part for part in place.split("/") if part]
    return f"{scheme.lower()}://{'/'.join(parts)}"


def local_folder(address: str | Path) -> Path:
    """Where a program may keep its own files for an address: there, or here if that is remote."""
    return Path() if is_remote(address) else Path(address)
