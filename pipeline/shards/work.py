"""What goes to whoever makes a shard, and what comes back: names and counts, and no torch.

A worker process reads these before it has chosen its GPUs.
"""

from dataclasses import dataclass

from pipeline.records.part import Part
from storage_schemas.manifest import LedgerEntry, shard_name
from storage_schemas.skips import Skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsFound:
    """What the index of the records says of all of them."""

    fingerprint: str
    num_records: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkItem:
    """One shard to make: views [view_start, view_stop) of one part of the records."""

    part: Part
    view_start: int
    view_stop: int

    @property
    def shard(self) -> str:
        """The shard's name."""
        return shard_name(self.part.number, self.view_start, self.view_stop)

    @property
    def most_views(self) -> int:
        """The views that the shard holds if no record is skipped."""
        return self.part.span.num_records * (self.view_stop - self.view_start)


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeShard:
    """A shard that is in the ledger now.

    positions: answered teacher tokens. teacher_tokens: those of the passes that the teacher ran,
    block-wise of the clean and the noised half, padding left out. Both are 0, and so is `seconds`,
    where the shard was there already. load_seconds: how long the teacher took to load just before
    (0 where it was loaded). worker: the process, as host:pid.
    """

    entry: LedgerEntry
    positions: int
    teacher_tokens: int
    seconds: float
    load_seconds: float
    not_finite: tuple[Skip, ...]
    worker: str
