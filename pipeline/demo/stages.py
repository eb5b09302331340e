"""Both stages of one recipe, run through their Prefect flows, each shown as a bar."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flows.call import StoppedRun, call_student_train, call_teacher_cache
from flows.local import ensure_server
from flows.progress import reporting_to
from pipeline.demo.bars import Advance
from pipeline.shards.pace import Progress


def start_prefect(output: Path) -> None:
    """A quiet Prefect server for this process, with its data under `output`."""
    ensure_server(output / ".prefect", is_quiet=True)


def run_stage_1(recipe: Path, overrides: Sequence[str], advance: Advance) -> dict[str, Any]:
    """The flow `teacher-cache`, and its result."""
    skips: Counter[str] = Counter()

    def on_shard(progress: Progress) -> None:
        skips.update(progress.entry.counts.skips)
        advance(
            progress.done,
            progress.total,
            ", ".join(f"{count} {reason}" for reason, count in skips.items()),
        )

    with reporting_to(on_shard=on_shard, on_log=lambda metrics: None):
        return _until_stopped(call_teacher_cache, recipe, overrides)


def run_stage_2(recipe: Path, overrides: Sequence[str], advance: Advance) -> None:
    """The flow `student-train`."""

    def on_log(metrics: dict[str, float]) -> None:
        if metrics.get("progress"):
            step = round(metrics["step"])
            advance(step, round(step / metrics["progress"]), f"loss {metrics['loss']:.3f}")

    with reporting_to(on_shard=lambda progress: None, on_log=on_log):
        _until_stopped(call_student_train, recipe, overrides)


def _until_stopped(
    flow: Callable[[Path, Sequence[str]], dict[str, Any]], recipe: Path, overrides: Sequence[str]
) -> dict[str, Any]:
    try:
        return flow(recipe, overrides)
    except StoppedRun as error:
        raise SystemExit(f"{error}: what is finished is kept") from error
