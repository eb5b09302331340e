"""How far a run of stage 1 is, how fast it goes, and when it will end."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipeline.shards.work import MadeShard
from storage_schemas.manifest import LedgerEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands after a shard of it (`entry`).

    done, total: shards of this run. elapsed: seconds since it began. positions_per_second,
    tokens_per_second: answered teacher tokens, and all that the teacher read for them, in that
    time. num_bytes: written by this run. seconds_left: None until something tells.
    """

    entry: LedgerEntry
    done: int
    total: int
    elapsed: float
    positions_per_second: float
    tokens_per_second: float
    num_bytes: int
    seconds_left: float | None

    def __str__(self) -> str:
        """One line for a person, without the shard."""
        left = "" if self.seconds_left is None else f", {duration(self.seconds_left)} left"
        return (
            f"{self.done} of {self.total} shards{left}; {self.positions_per_second:,.0f} positions "
            f"and {self.tokens_per_second:,.0f} teacher tokens a second, "
            f"{self.num_bytes / 1e6:,.1f} MB written"
        )


class Pace:
    """Counts what a run has done; it begins when this is made.

    The time left is that which the remaining views take at the rate of this run so far: shards may
    be of any size, and those that an earlier run made say nothing of this one's workers.
    """

    def __init__(
        self, views: Iterable[int], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        views_of = tuple(views)
        self.total = len(views_of)
        self.done = 0
        self._views_left = sum(views_of)
        self._views_made = 0
        self._positions = 0
        self._tokens = 0
        self._bytes = 0
        self._began = clock()

    def after(self, made: MadeShard, views: int) -> Progress:
        """Count a shard that was planned to hold `views` views."""
        self.done += 1
        self._views_left -= views
        if made.seconds > 0:  # else it was there already, and took no time
            self._views_made += views
            self._positions += made.positions
            self._tokens += made.teacher_tokens
            self._bytes += made.entry.num_bytes
        elapsed = max(self._clock() - self._began, 1e-9)
        left = self._views_left * elapsed / self._views_made if self._views_made else None
        return Progress(
            entry=made.entry,
            done=self.done,
            total=self.total,
            elapsed=elapsed,
            positions_per_second=self._positions / elapsed,
            tokens_per_second=self._tokens / elapsed,
            num_bytes=self._bytes,
            seconds_left=left if self._views_left else 0.0,
        )


def duration(seconds: float) -> str:
    """Days, hours, minutes and seconds, as in 2d 03:04:05."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{f'{days}d ' if days else ''}{hour:02d}:{minute:02d}:{second:02d}"
