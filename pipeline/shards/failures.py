"""Why a shard was not made, as it is kept and shown."""

from datetime import UTC, datetime
from typing import Literal

from storage_schemas.errors import TidecacheError
from storage_schemas.run_notes import Failure

_MOST_CHARACTERS = 2000


def failure_of(
    shard: str, error: BaseException, *, kind: Literal["failed", "given up"] = "failed"
) -> Failure:
    """What is said of a shard that ended with an error; of a bug, also the error's class."""
    text = str(error)
    reason = text if isinstance(error, TidecacheError) else f"{type(error).__name__}: {text}"
    return Failure(
        shard=shard,
        kind=kind,
        reason=reason[:_MOST_CHARACTERS],
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
