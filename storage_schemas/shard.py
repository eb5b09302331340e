"""The content of one shard in memory: examples, the views drawn of them, and what was skipped."""

from dataclasses import dataclass

from storage_schemas.examples import Pair
from storage_schemas.manifest import shard_name
from storage_schemas.skips import Skip
from storage_schemas.targets import Targets
from storage_schemas.views import Corruption


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredView:
    """One view: the noise, and the teacher's answer to it. `example` is a row of the examples."""

    example: int
    corruption: Corruption
    targets: Targets


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardContent:
    """Views [view_start, view_stop) of the examples of one part, in order of example, then view."""

    part: int
    view_start: int
    view_stop: int
    examples: tuple[Pair, ...]
    views: tuple[StoredView, ...]
    skips: tuple[Skip, ...]

    def __post_init__(self) -> None:
        assert self.part >= 0, "parts are numbered from 0"
        assert 0 <= self.view_start < self.view_stop, "a shard holds one view or more"
        before = (-1, -1)
        for stored in self.views:
            here = (stored.example, stored.corruption.view)
            assert before < here, f"views are not in order of (example, view): {before}, {here}"
            assert 0 <= stored.example < len(self.examples), "a view of no example"
            assert self.view_start <= here[1] < self.view_stop, "a view out of the shard's range"
            before = here

    @property
    def name(self) -> str:
        """Folder and ledger name of this shard."""
        return shard_name(self.part, self.view_start, self.view_stop)
