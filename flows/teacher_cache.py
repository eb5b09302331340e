"""Stage 1 as a Prefect flow: one task a shard, resumed from the ledger, never from a result."""

import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.states import Cancelled, Failed

from flows.artifacts import publishing
from flows.assets import record_cache
from flows.events import committed_event
from flows.parameters import Overrides, RecipeFile, Views, as_overrides
from flows.progress import Logger, report_shards
from flows.results import cache_result
from flows.run_log import hide_tracebacks_of_user_errors
from flows.shard_pages import ShardBoard
from flows.spread import spread
from flows.stop import stop_on_sigterm
from flows.transient import NUM_RETRIES, WAITS, is_transient
from pipeline.config.recipe import Recipe, load_recipe, resolved_json
from pipeline.shards.failures import failure_of
from pipeline.shards.pace import Pace, Progress
from pipeline.shards.work import MadeShard, RecordsFound, WorkItem
from storage_schemas.errors import LostWorkersError
from storage_schemas.run_notes import Failure

if TYPE_CHECKING:
    from pipeline.teacher_cache import CacheSummary, TeacherCacheStage

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
        try:
            summary = _make_shards(loaded, stop)
        except _FailedShard as failed:  # the run's state names the shard, the error stays itself
            return Failed(message=str(failed), data=failed.__cause__)
    result = cache_result(summary)
    if not summary.is_complete:
        views = result["views"]
        return Cancelled(message=f"stopped with {views} views committed; run again to go on")
    record_cache(summary.address, result)
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
        account = _Account(stage, logger)
        with account.publishing():
            if not stage.work:
                done = 0
            elif recipe.workers is None:
                done = _make_here(stage, stop, account)
            else:
                done = _make_in_workers(recipe, stage, stop, account)
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


class _FailedShard(Exception):  # noqa: N818 - it carries an error to the flow, as its cause
    """The first shard that could not be made."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"shard {failure.shard}: {failure.reason}")


class _Account:
    """What became of each shard, told everywhere that an operator looks."""

    def __init__(self, stage: "TeacherCacheStage", logger: Logger) -> None:
        self._stage = stage
        self._logger = logger
        self._report = report_shards(logger)
        total = len(stage.work)
        self._board = ShardBoard(stage.address, num_found=stage.num_committed, total=total)

    def publishing(self) -> AbstractContextManager[None]:
        """Keeps Prefect's UI informed while the context lasts."""
        return publishing(self._board.pages(), self._logger)

    def loaded(self, made: MadeShard) -> None:
        """What a worker's first shard says of its teacher."""
        if made.load_seconds:
            line = "worker %s: the teacher was loaded in %.1f s"
            self._logger.info(line, made.worker, made.load_seconds)

    def made(self, made: MadeShard, progress: Progress) -> None:
        self._report(progress)
        self._board.made(made, progress)

    def failed(self, failure: Failure) -> None:
        is_what = "is given up" if failure.kind == "given up" else "failed"
        self._logger.error("shard %s %s: %s", failure.shard, is_what, failure.reason)
        self._board.failed(failure)
        self._stage.note_failure(failure)


def _make_here(stage: "TeacherCacheStage", stop: threading.Event, account: _Account) -> int:
    """One shard after the other, in this process; how many there were."""
    pace = Pace(item.most_views for item in stage.work)
    items = {item.shard: item for item in stage.work}

    @_shard_task
    def teacher_shard(shard: str) -> dict[str, Any]:
        made = stage.make_shard(items[shard])
        account.made(made, pace.after(made, items[shard].most_views))
        return made.entry.counts.model_dump(mode="json")

    for shard in items:
        if stop.is_set():
            break
        try:
            teacher_shard(shard)
        except Exception as error:
            failure = failure_of(shard, error)
            account.failed(failure)
            raise _FailedShard(failure) from error
    return pace.done


@_shard_task
def worker_shard(shard: str, recipe: str, found: RecordsFound, item: WorkItem) -> MadeShard:
    """Makes one shard in whatever worker process this is run in."""
    from flows.worker import make_shard

    assert shard == item.shard, "a task run is named after its shard"
    return make_shard(recipe, found, item)


def _make_in_workers(
    recipe: Recipe, stage: "TeacherCacheStage", stop: threading.Event, account: _Account
) -> int:
    """As many shards at once as there are workers; how many were made.

    A shard whose worker dies goes to another. One that keeps killing them is given up, and named
    when all others are made; so is the first other error, when those in flight are.
    """
    from flows.runners import engine_of

    assert recipe.workers is not None, "a recipe with workers"
    stage.close_teacher()  # a calibration had it; the memory is the workers' now
    text = resolved_json(recipe)
    lost: list[str] = []
    failures: list[_FailedShard] = []
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
                died = LostWorkersError(f"workers died of it: {error}")
                account.failed(failure_of(item.shard, died, kind="given up"))
                lost.append(item.shard)
            except Exception as error:  # raised below, when the shards in flight are committed
                failure = failure_of(item.shard, error)
                account.failed(failure)
                failures.append(_FailedShard(failure))
                failures[-1].__cause__ = error
            else:
                account.loaded(made)
                account.made(made, pace.after(made, item.most_views))
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
