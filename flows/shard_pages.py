"""What an operator sees of stage 1: how far it is, and what became of its shards."""

from typing import Any

from prefect.artifacts import ProgressArtifact, TableArtifact

from flows.artifacts import Page, artifact_key
from pipeline.shards.pace import Progress
from pipeline.shards.work import MadeShard
from storage_schemas.run_notes import Failure

_PROGRESS_SECONDS = 5.0
_TABLE_SECONDS = 60.0  # every publication is also an event, with the whole table in it
_MOST_ROWS = 100


class ShardBoard:
    """The shards of one run so far. Written by the run, drawn by the publishing thread."""

    def __init__(self, address: str, *, num_found: int, total: int) -> None:
        self._address = address
        self._num_found = num_found
        self._total = total
        self._made: dict[str, MadeShard] = {}
        self._failed: dict[str, Failure] = {}
        self._progress: Progress | None = None

    def made(self, made: MadeShard, progress: Progress) -> None:
        """A shard is committed."""
        self._made[made.entry.shard] = made
        self._progress = progress

    def failed(self, failure: Failure) -> None:
        """A shard was not made."""
        self._failed[failure.shard] = failure

    def pages(self) -> tuple[Page, Page]:
        """Progress and table."""
        return (
            Page(draw=self._draw_progress, seconds=_PROGRESS_SECONDS),
            Page(draw=self._draw_table, seconds=_TABLE_SECONDS),
        )

    def _draw_progress(self) -> ProgressArtifact:
        there, all_shards = self._num_found + len(self._made), self._num_found + self._total
        progress = self._progress
        return ProgressArtifact(
            key=artifact_key("progress", self._address),
            progress=100 * there / all_shards if all_shards else 100.0,
            description=f"{self._summary()}{'' if progress is None else f'; {progress}'}",
        )

    def _draw_table(self) -> TableArtifact | None:
        failed, made = list(self._failed.values()), list(self._made.values())
        rows = [*map(_row_of_failure, failed), *map(_row, reversed(made))]
        if not rows:
            return None
        left_out = len(rows) - _MOST_ROWS
        more = f"; the {left_out:,} oldest rows are left out" if left_out > 0 else ""
        return TableArtifact(
            key=artifact_key("shards", self._address),
            table=rows[:_MOST_ROWS],
            description=f"{self._summary()}{more}",
        )

    def _summary(self) -> str:
        failed = f", {len(self._failed):,} not made" if self._failed else ""
        return (
            f"{self._address}: {len(self._made):,} of {self._total:,} shards of this run "
            f"committed{failed}; {self._num_found:,} were there before"
        )


def _row(made: MadeShard) -> dict[str, Any]:
    counts = made.entry.counts
    return {
        "shard": made.entry.shard,
        "state": "committed",
        "views": counts.num_views,
        "chunks": counts.num_chunks,
        "positions": made.positions,
        "bytes": made.entry.num_bytes,
        "records skipped": ", ".join(f"{n} {why}" for why, n in sorted(counts.skips.items())),
        "seconds": round(made.seconds, 2),
        "worker": made.worker,
        "reason": "",
    }


def _row_of_failure(failure: Failure) -> dict[str, Any]:
    blank = dict.fromkeys(("views", "chunks", "positions", "bytes", "records skipped"), "")
    return {
        "shard": failure.shard,
        "state": failure.kind,
        **blank,
        "seconds": "",
        "worker": "",
        "reason": failure.reason,
    }
