"""Stage 1: records in, committed shards of teacher targets out; one plain function a shard."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from pipeline.cache.counts import total_counts
from pipeline.cache.ledger import read_ledger
from pipeline.cache.reader import CacheReader
from pipeline.cache.writer import CacheWriter, Calibrated, Vocabularies
from pipeline.config.recipe import Recipe, resolved_json
from pipeline.records.source import index_records
from pipeline.shards.failures import failure_of
from pipeline.shards.pace import Pace, Progress
from pipeline.shards.work import MadeShard, RecordsFound, WorkItem
from pipeline.teacher.calibrate import calibrate
from pipeline.teacher.examples import check_reserved, load_tokenizers, reserved_for
from pipeline.teacher.identity import cache_identity
from pipeline.teacher.shard import ShardMaker
from storage_schemas.errors import RecipeError, TidecacheError
from storage_schemas.manifest import Counts, Layout
from storage_schemas.run_notes import Failure, Wanted

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSummary:
    """What a run of stage 1 did, and what the cache holds now (`counts` over all its shards)."""

    address: str
    digest: str
    shards_made: int
    shards_found: int
    counts: Counts
    seconds: float
    is_complete: bool


class TeacherCacheStage:
    """A recipe made ready to run: tokenizers, index of the records, the cache open for writing.

    The teacher is loaded when it is first asked (by a new cache's calibration, or by the first
    shard) and kept from then on. Not for several threads.
    """

    def __init__(self, recipe: Recipe) -> None:
        tokenizers = load_tokenizers(recipe)
        student, self._teacher = tokenizers
        index = index_records(recipe.records, recipe.cache.records_per_part)
        if index.num_records == 0:
            raise RecipeError("expected a record or more in [records], got none")
        self._parts = index.parts
        self.found = RecordsFound(fingerprint=index.fingerprint, num_records=index.num_records)
        identity = cache_identity(recipe, *tokenizers, index.fingerprint)
        reserved = identity.kept.calibration_records
        check_reserved(reserved, index.num_records)
        self._maker = ShardMaker(recipe, tokenizers, identity, self.found)
        try:
            self._writer = CacheWriter.open(
                recipe.cache.path,
                identity,
                Layout(records_per_part=recipe.cache.records_per_part),
                Vocabularies(
                    student=dict(enumerate(student.vocabulary())),
                    teacher=dict(enumerate(self._teacher.vocabulary())),
                ),
                self._calibrate if reserved else None,
            )
        except BaseException:
            self._maker.close()
            raise
        self.address = self._writer.store.address
        self.digest = identity.digest
        try:
            self.work, self.num_committed = self._plan(recipe.noise.views)
            self._writer.write_recipe(resolved_json(recipe))
            self._writer.write_wanted(Wanted(num_parts=len(self._parts), views=recipe.noise.views))
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, recipe: Recipe) -> "TeacherCacheStage":
        """Make ready; every error that a recipe can cause comes here, before the teacher loads.

        Where the cache is new and its tail needs a basis, the teacher then calibrates it.
        """
        return cls(recipe)

    def __enter__(self) -> "TeacherCacheStage":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the teacher and of the cache's scratch folder."""
        self._maker.close()
        self._writer.close()

    def close_teacher(self) -> None:
        """Let go of the teacher alone: its memory is wanted by others."""
        self._maker.close()

    def make_shard(self, item: WorkItem) -> MadeShard:
        """Noise, teacher, targets and commit for one shard."""
        return self._maker.make(item, self._writer)

    def note_failure(self, failure: Failure) -> None:
        """Keep beside the cache why a shard was not made; where that fails, it is logged."""
        try:
            self._writer.note_failure(failure)
        except TidecacheError as error:
            _LOG.warning("shard %s: its failure could not be kept: %s", failure.shard, error)

    def _plan(self, views: int) -> tuple[tuple[WorkItem, ...], int]:
        parts = {part.number: part for part in self._parts}
        work = [
            WorkItem(part=parts[number], view_start=missing.start, view_stop=missing.stop)
            for number, missing in self._writer.missing(parts, views)
        ]
        return tuple(work), len(read_ledger(self._writer.store))

    def _calibrate(self) -> Calibrated:
        """The basis of a new cache, from the records that are reserved for it."""
        pairs = self._maker.reserved_pairs(self._parts)
        _LOG.info("calibration on %d reserved records", len(pairs))
        identity = self._maker.identity
        reserved = reserved_for(pairs, identity.noise, self._teacher.mask_id)
        return calibrate(self._maker.teacher(), reserved, identity.kept)


class JoinedCache:
    """A cache that another process has made, open for making shards of it.

    Every process reads the weights and tokenizers that it finds: where they are not those that the
    cache was made from, it refuses.
    """

    def __init__(self, recipe: Recipe, found: RecordsFound) -> None:
        tokenizers = load_tokenizers(recipe)
        identity = cache_identity(recipe, *tokenizers, found.fingerprint)
        layout = Layout(records_per_part=recipe.cache.records_per_part)
        self._maker = ShardMaker(recipe, tokenizers, identity, found)
        self._writer = CacheWriter.join(recipe.cache.path, identity, layout)

    def make_shard(self, item: WorkItem) -> MadeShard:
        """Noise, teacher, targets and commit for one shard."""
        return self._maker.make(item, self._writer)

    def close(self) -> None:
        """Lets go of the teacher and of the cache's scratch folder."""
        self._maker.close()
        self._writer.close()


def run_teacher_cache(
    recipe: Recipe,
    *,
    on_shard: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> CacheSummary:
    """Make every shard that the ledger lacks, in this process; after each, `on_shard(progress)`.

    A stop is honoured between shards: what was begun is committed.
    """
    began = time.monotonic()
    with TeacherCacheStage.open(recipe) as stage:
        pace = Pace(item.most_views for item in stage.work)
        for item in stage.work:
            if should_stop():
                break
            try:
                made = stage.make_shard(item)
            except Exception as error:
                failure = failure_of(item.shard, error)
                _LOG.error("shard %s failed: %s", item.shard, failure.reason)
                stage.note_failure(failure)
                raise
            on_shard(pace.after(made, item.most_views))
        return summarize(stage, shards_made=pace.done, seconds=time.monotonic() - began)


def summarize(stage: TeacherCacheStage, *, shards_made: int, seconds: float) -> CacheSummary:
    """What the cache holds after a run of a stage."""
    counts = total_counts(CacheReader.open(stage.address, allow_empty=True).entries)
    if counts.skips:
        _LOG.warning("records skipped: %s", counts.skips)
    return CacheSummary(
        address=stage.address,
        digest=stage.digest,
        shards_made=shards_made,
        shards_found=stage.num_committed,
        counts=counts,
        seconds=seconds,
        is_complete=shards_made == len(stage.work),
    )
