"""How a run tells where it stands: to whoever looks on, else in the run's log."""

import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.shards.pace import Progress, duration

if TYPE_CHECKING:
    from rich.console import Console

OnShard = Callable[[Progress], None]
OnLog = Callable[[dict[str, float]], None]
Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]

HELD_OUT = "held_out_nll"
_OF_PLACE = ("step", "steps", "seconds_left", "progress")


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


def place_of(metrics: Mapping[str, float]) -> str:
    """Where a run of stage 2 stands: `step 30 of 120, 01:02:03 left`."""
    steps = f" of {metrics['steps']:.0f}" if "steps" in metrics else ""
    left = f", {_left(metrics)}" if _left(metrics) else ""
    return f"step {metrics['step']:.0f}{steps}{left}"


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
    """Shows shards, or steps, as a bar on standard error while the context lasts.

    Held-out likelihood also gets a line each time that it is measured.
    """
    from rich.console import Console

    with bars_on(Console(stderr=True, highlight=False)):
        yield


@contextmanager
def bars_on(console: "Console") -> Generator[None]:
    """`on_terminal`, on any console."""
    from rich.progress import BarColumn, MofNCompleteColumn
    from rich.progress import Progress as Bars

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[note]}")
    with Bars(*columns, console=console) as bars:
        shards = bars.add_task("shards", total=None, visible=False, note="")
        steps = bars.add_task("steps", total=None, visible=False, note="")
        held_out: dict[str, float] = {}  # as it was measured last

        def on_shard(progress: Progress) -> None:
            bars.update(
                shards,
                completed=progress.done,
                total=progress.total,
                visible=True,
                note=_short(progress),
            )

        def on_log(metrics: dict[str, float]) -> None:
            if HELD_OUT in metrics:
                console.print(_line(metrics))
                held_out[HELD_OUT] = metrics[HELD_OUT]
            bars.update(
                steps,
                completed=metrics["step"],
                total=metrics.get("steps"),
                visible=True,
                note=_note(held_out | metrics),
            )

        with reporting_to(on_shard=on_shard, on_log=on_log):
            yield


def _line(metrics: dict[str, float]) -> str:
    """A log entry for a person: where the run stands, then what it says of itself."""
    values = [
        f"{name} {value:.6g}"
        for name, value in metrics.items()
        if name not in _OF_PLACE and not name.startswith(f"{HELD_OUT}_at_")
    ]
    return "  ".join([place_of(metrics), *values])


def _note(metrics: dict[str, float]) -> str:
    """What stands behind the bar of steps."""
    held_out = f"held out {metrics[HELD_OUT]:.4g}" if HELD_OUT in metrics else ""
    speed = f"{metrics['tokens_per_s']:,.0f} tok/s" if "tokens_per_s" in metrics else ""
    parts = (_left(metrics), f"loss {metrics['loss']:.4g}", held_out, speed)
    return "  ".join(part for part in parts if part)


def _left(metrics: Mapping[str, float]) -> str:
    return f"{duration(metrics['seconds_left'])} left" if "seconds_left" in metrics else ""


def _short(progress: Progress) -> str:
    left = "" if progress.seconds_left is None else f"{duration(progress.seconds_left)} left  "
    return (
        f"{left}{progress.positions_per_second:,.0f} pos/s  "
        f"{progress.tokens_per_second:,.0f} tok/s  {progress.num_bytes / 1e6:,.1f} MB"
    )
