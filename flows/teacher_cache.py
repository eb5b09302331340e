"""Stage 1 as a Prefect flow: one task a shard, resumed from the ledger, never from a result."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.states import Cancelled

from flows.events import committed_event
from flows.progress import report_shards
from flows.results import cache_result
from flows.run_log import hide_tracebacks_of_user_errors
from flows.stop import stop_on_sigterm
from flows.transient import NUM_RETRIES, WAITS, is_transient
from pipeline.config.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from pipeline.teacher_cache import CacheSummary, TeacherCacheStage, WorkItem
    from storage_schemas.manifest import LedgerEntry


hide_tracebacks_of_user_errors()


@flow(name="teacher-cache", persist_result=False)
def teacher_cache(recipe: str, overrides: tuple[str, ...] = ()) -> dict[str, Any] | State[Any]:
    """Make the shards that the recipe's cache lacks; then say so with `teacher-cache.committed`.

    Shards are made one after the other: a process holds one teacher. On SIGTERM the shard in
    flight is committed, no other starts, and the run is Cancelled; a later run goes on from there.
    """
    with stop_on_sigterm() as stop:
        summary = _make_shards(load_recipe(Path(recipe), overrides), stop)
    result = cache_result(summary)
    if not summary.is_complete:
        views = result["views"]
        return Cancelled(message=f"stopped with {views} views committed; run again to go on")
    # Also where every shard was found: the run that made the last one may have died before this.
    emit_event(
        **committed_event(
            address=result["address"],
            digest=summary.digest,
            num_views=result["views"],
            recipe=recipe,
        )
    )
    return result


def _make_shards(recipe: Recipe, stop: threading.Event) -> "CacheSummary":
    from pipeline.teacher_cache import TeacherCacheStage, summarize  # here: it loads torch

    logger = get_run_logger()
    began = time.monotonic()
    made = 0
    with TeacherCacheStage.open(recipe) as stage:
        total = len(stage.work)
        logger.info("%s: %d shards found, %d to make", stage.address, stage.num_committed, total)
        report = report_shards(logger)
        make_shard = _shard_task(stage, lambda entry: report(entry, made + 1, total))
        for item in stage.work:
            if stop.is_set():
                break
            make_shard(item.shard)
            made += 1
        return summarize(stage, shards_made=made, seconds=time.monotonic() - began)


def _shard_task(
    stage: "TeacherCacheStage", report: "Callable[[LedgerEntry], None]"
) -> Callable[[str], object]:
    """A task for this process's one stage: a shard's name in, its counts out."""
    items: dict[str, WorkItem] = {item.shard: item for item in stage.work}

    @task(
        name="teacher-shard",
        task_run_name="{shard}",
        retries=NUM_RETRIES,
        retry_delay_seconds=WAITS,
        retry_condition_fn=is_transient,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def teacher_shard(shard: str) -> dict[str, Any]:
        entry = stage.make_shard(items[shard])
        report(entry)
        return entry.counts.model_dump(mode="json")

    return teacher_shard
