"""How much a stored file may unpack to: what is made small to grow without end is refused."""

from storage_schemas.errors import CacheCorruptError

# Constant columns pack a thousand times; with the room below, no file of a real cache comes near.
_MOST_TIMES = 1000
_ALWAYS_FREE = 2**28


def check_expansion(unpacked: int, stored: int, what: str) -> None:
    """Raises where a file claims to hold far more bytes than it has."""
    if unpacked > max(_ALWAYS_FREE, _MOST_TIMES * stored):
        raise CacheCorruptError(
            f"expected {what} of {stored} bytes to unpack to {_ALWAYS_FREE >> 20} MiB or "
            f"{_MOST_TIMES} times its size at most, got {unpacked} bytes claimed"
        )
