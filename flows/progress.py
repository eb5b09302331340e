"""How a run tells where it stands: to whoever looks on, else in the run's log."""

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from pipeline.shards.pace import Progress, duration

OnShard = Callable[[Progress], None]
OnLog = Callable[[dict[str, float]], None]
Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terminal:
    on_shard: OnShard
    on_log: OnLog


_TERMINAL: ContextVar[_Terminal | None] = ContextVar("tidecache_terminal", default=None)


def report_shards(logger: Logger) -> OnShard:
    """What to call after each shard."""

    def log(progress: Progress) -> None:
        counts = progress.entry.counts
        views, skipped = counts.num_views, sum(counts.skips.values())
        line = "shard %s: %d views, %d records skipped; %s"
        logger.info(line, progress.entry.shard, views, skipped, progress)

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
    from rich.progress import BarColumn, MofNCompleteColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True, highlight=False)
    columns = ("shards", BarColumn(), MofNCompleteColumn(), "{task.fields[pace]}")
    with Bars(*columns, console=console) as bars:
        task = bars.add_task("shards", total=None, visible=False, pace="")

        def on_shard(progress: Progress) -> None:
            bars.update(
                task,
                completed=progress.done,
                total=progress.total,
                visible=True,
                pace=_short(progress),
            )

        def on_log(metrics: dict[str, float]) -> None:
            console.print(_line(metrics))

        with reporting_to(on_shard=on_shard, on_log=on_log):
            yield


def _line(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.6g}" for name, value in metrics.items())


def _short(progress: Progress) -> str:
    left = "" if progress.seconds_left is None else f"{duration(progress.seconds_left)} left  "
    return (
        f"{left}{progress.positions_per_second:,.0f} pos/s  "
        f"{progress.tokens_per_second:,.0f} tok/s  {progress.num_bytes / 1e6:,.1f} MB"
    )
