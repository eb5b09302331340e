"""Both stages of one recipe, run through their Prefect flows, each shown as a bar."""

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from flows import progress
from flows.local import ensure_server
from pipeline.demo.bars import Advance
from storage_schemas.manifest import LedgerEntry


def start_prefect(output: Path) -> None:
    """A quiet Prefect server for this process, with its data under `output`."""
    ensure_server(output / ".prefect", is_quiet=True)


def run_stage_1(recipe: Path, advance: Advance) -> dict[str, Any]:
    """The flow `teacher-cache`: what it made and found."""
    from flows.teacher_cache import teacher_cache  # imports Prefect, which the server comes before

    skips: Counter[str] = Counter()

    def on_shard(entry: LedgerEntry, done: int, total: int) -> None:
        skips.update(entry.counts.skips)
        advance(done, total, ", ".join(f"{count} {reason}" for reason, count in skips.items()))

    with _reporting(on_shard=on_shard):
        return cast("dict[str, Any]", teacher_cache(str(recipe)))


def run_stage_2(recipe: Path, overrides: Sequence[str], advance: Advance) -> dict[str, Any]:
    """The flow `student-train`: where the student is, and its last metrics."""
    from flows.student_train import student_train

    def on_log(metrics: dict[str, float]) -> None:
        if metrics.get("progress"):
            step = round(metrics["step"])
            advance(step, round(step / metrics["progress"]), f"loss {metrics['loss']:.3f}")

    with _reporting(on_log=on_log):
        return cast("dict[str, Any]", student_train(str(recipe), tuple(overrides)))


def _ignore_shard(entry: LedgerEntry, done: int, total: int) -> None:
    pass


def _ignore_log(metrics: dict[str, float]) -> None:
    pass


@contextmanager
def _reporting(
    on_shard: progress.OnShard = _ignore_shard, on_log: progress.OnLog = _ignore_log
) -> Generator[None]:
    """The flows' own place for whoever looks on."""
    terminal = progress._Terminal(on_shard=on_shard, on_log=on_log)  # pyright: ignore[reportPrivateUsage]
    token = progress._TERMINAL.set(terminal)  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        progress._TERMINAL.reset(token)  # pyright: ignore[reportPrivateUsage]
