"""Stage 1 as a Prefect flow: one task a shard, resumed from the ledger, never from a result."""

import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.states import Cancelled

from flows.events import committed_event
from flows.parameters import Overrides, RecipeFile, Views, as_overrides
from flows.progress import report_shards
from flows.results import cache_result
from flows.run_log import hide_tracebacks_of_user_errors
from flows.spread import spread
from flows.stop import stop_on_sigterm
from flows.transient import NUM_RETRIES, WAITS, is_transient
from pipeline.config.recipe import Recipe, load_recipe, resolved_json
from pipeline.shards.pace import Pace
from pipeline.shards.work import MadeShard, RecordsFound, WorkItem
from storage_schemas.errors import LostWorkersError

if TYPE_CHECKING:
    from pipeline.teacher_cache import CacheSummary, TeacherCacheStage

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]

hide_tracebacks_of_user_errors()


@flow(name="teacher-cache", persist_result=False)
def teacher_cache(
    recipe: RecipeFile, overrides: Overrides = (), views: Views = None
) -> dict[str, Any] | State:
    """Make the shards that the recipe's cache lacks; then say so with `teacher-cache.committed`.

    A process holds one teacher and makes one shard after the other: this process, or each of the
    recipe's [workers]. On SIGTERM the shards in flight are committed, no other starts, and the run
    is Cancelled; a later run goes on from there.

    Args:
        recipe: Path of the recipe where this runs; absolute in a deployment.
        overrides: Any keys of the recipe, as in `teacher.batch_tokens=8192`.
        views: `noise.views`; more than a cache has extend it.
    """
    with stop_on_sigterm() as stop:
        loaded = load_recipe(Path(recipe), (*overrides, *as_overrides(noise__views=views)))
        summary = _make_shards(loaded, stop)
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
    with TeacherCacheStage.open(recipe) as stage:
        total = len(stage.work)
        logger.info("%s: %d shards found, %d to make", stage.address, stage.num_committed, total)
        make = _make_here if recipe.workers is None else _make_in_workers
        done = make(recipe, stage, stop, logger) if stage.work else 0
        return summarize(stage, shards_made=done, seconds=time.monotonic() - began)


_shard_task = task(
    name="teacher-shard",
    task_run_name="{shard}",
    retries=NUM_RETRIES,
    retry_delay_seconds=WAITS,
    retry_condition_fn=is_transient,
    cache_policy=NO_CACHE,
    persist_result=False,
)


def _make_here(
    recipe: Recipe, stage: "TeacherCacheStage", stop: threading.Event, logger: Logger
) -> int:
    """One shard after the other, in this process; how many there were."""
    del recipe
    report = report_shards(logger)
    pace = Pace(item.most_views for item in stage.work)
    items = {item.shard: item for item in stage.work}

    @_shard_task
    def teacher_shard(shard: str) -> dict[str, Any]:
        made = stage.make_shard(items[shard])
        report(pace.after(made, items[shard].most_views))
        return made.entry.counts.model_dump(mode="json")

    for shard in items:
        if stop.is_set():
            break
        teacher_shard(shard)
    return pace.done


@_shard_task
def worker_shard(shard: str, recipe: str, found: RecordsFound, item: WorkItem) -> MadeShard:
    """Makes one shard in whatever worker process this is run in."""
    from flows.worker import make_shard

    assert shard == item.shard, "a task run is named after its shard"
    return make_shard(recipe, found, item)


def _make_in_workers(
    recipe: Recipe, stage: "TeacherCacheStage", stop: threading.Event, logger: Logger
) -> int:
    """As many shards at once as there are workers; how many were made.

    A shard whose worker dies goes to another. One that keeps killing them is given up, and named
    when all others are made; so is the first other error, when those in flight are.
    """
    from flows.runners import engine_of

    assert recipe.workers is not None, "a recipe with workers"
    stage.close_teacher()  # a calibration had it; the memory is the workers' now
    report, text = report_shards(logger), resolved_json(recipe)
    lost: list[str] = []
    failures: list[Exception] = []
    with engine_of(recipe) as engine:

        def submit(item: WorkItem) -> Any:
            common = {"recipe": text, "found": stage.found}
            return engine.submit(worker_shard, {"shard": item.shard, "item": item, **common})

        pace = Pace(item.most_views for item in stage.work)
        for item, future in spread(
            stage.work,
            submit,
            window=recipe.workers.count,
            should_stop=lambda: stop.is_set() or bool(failures),
        ):
            try:
                made: MadeShard = future.result()
            except engine.lost as error:
                logger.error("shard %s is given up, workers died of it: %s", item.shard, error)
                lost.append(item.shard)
            except Exception as error:  # raised below, when the shards in flight are committed
                failures.append(error)
            else:
                if made.load_seconds:
                    line = "worker %s: the teacher was loaded in %.1f s"
                    logger.info(line, made.worker, made.load_seconds)
                report(pace.after(made, item.most_views))
            del future
    if failures:
        raise failures[0]
    if lost:
        raise LostWorkersError(
            f"expected every shard to be made, got {len(lost)} given up, for each of which "
            f"several workers died (out of memory?): {', '.join(lost)}; what is committed is "
            f"kept, run again to try these"
        )
    return pace.done
