"""What a run of stage 1 tells whoever looks on: what it is to make, and which shards failed.

Notes beside the cache: no reader of its content needs them.
"""

from typing import Literal

from storage_schemas.identity import Positive, Stored

WANTED_FILE = "wanted.json"
FAILURES_FOLDER = "failures"


class Wanted(Stored):
    """What the last run was to have in the cache when it ends: so many views of so many parts."""

    num_parts: Positive
    views: Positive


class Failure(Stored):
    """Why a shard was not made, the last time that it was tried.

    It holds until the shard's views are committed. kind: an error came of it, or it was given up
    because worker processes died. at: when, ISO 8601 in UTC.
    """

    shard: str
    kind: Literal["failed", "given up"]
    reason: str
    at: str
