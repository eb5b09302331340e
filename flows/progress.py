"""How a run tells where it stands: to whoever looks on, else in the run's log."""

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from storage_schemas.manifest import LedgerEntry

OnShard = Callable[[LedgerEntry, int, int], None]
OnLog = Callable[[dict[str, float]], None]
Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terminal:
    on_shard: OnShard
    on_log: OnLog


_TERMINAL: ContextVar[_Terminal | None] = ContextVar("tidecache_terminal", default=None)


def report_shards(logger: Logger) -> OnShard:
    """What to call with (entry, done, total) after each shard."""

    def log(entry: LedgerEntry, done: int, total: int) -> None:
        views, skipped = entry.counts.num_views, sum(entry.counts.skips.values())
        line = "shard %s: %d views, %d records skipped; %d of %d"
        logger.info(line, entry.shard, views, skipped, done, total)

    terminal = _TERMINAL.get()
    return log if terminal is None else terminal.on_shard


def report_metrics(logger: Logger) -> OnLog:
    """What to call with the metrics of a training step."""

    def log(metrics: dict[str, float]) -> None:
        logger.info("%s", _line(metrics))

    terminal = _TERMINAL.get()
    return log if terminal is None else terminal.on_log


@contextmanager
def reporting_to(*, on_shard: OnShard, on_log: OnLog) -> Generator[None]:
    """Reports go to these functions instead of the log, while the context lasts."""
    token = _TERMINAL.set(_Terminal(on_shard=on_shard, on_log=on_log))
    try:
        yield
    finally:
        _TERMINAL.reset(token)


@contextmanager
def on_terminal() -> Generator[None]:
    """Shows shards as a bar, and metrics as lines, on standard error while the context lasts."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    columns = ("shards", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("shards", total=None, visible=False)

        def on_shard(entry: LedgerEntry, done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, visible=True)

        def on_log(metrics: dict[str, float]) -> None:
            console.print(_line(metrics))

        with reporting_to(on_shard=on_shard, on_log=on_log):
            yield


def _line(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.6g}" for name, value in metrics.items())
