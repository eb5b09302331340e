"""How a run tells where it stands: a bar where a person looks on, log lines elsewhere."""

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

from storage_schemas.manifest import LedgerEntry

OnShard = Callable[[LedgerEntry, int, int], None]
OnLog = Callable[[dict[str, float]], None]
Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]

_BAR: ContextVar[OnShard | None] = ContextVar("tidecache_bar", default=None)


def report_shards(logger: Logger) -> OnShard:
    """What to call with (entry, done, total) after each shard."""

    def log(entry: LedgerEntry, done: int, total: int) -> None:
        counts = entry.counts
        logger.info(
            "shard %s: %d views, %d skipped; %d of %d shards",
            entry.shard,
            counts.num_views,
            sum(counts.skips.values()),
            done,
            total,
        )

    return _BAR.get() or log


def report_metrics(logger: Logger) -> OnLog:
    """What to call with the metrics of a training step."""

    def log(metrics: dict[str, float]) -> None:
        logger.info("%s", "  ".join(f"{name} {value:.6g}" for name, value in metrics.items()))

    return log


@contextmanager
def shard_bar() -> Generator[None]:
    """Shows shards as a progress bar on standard error, as long as the context lasts."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("shards", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("shards", total=None)

        def show(entry: LedgerEntry, done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        token = _BAR.set(show)
        try:
            yield
        finally:
            _BAR.reset(token)
