"""Stage 1: records in, committed shards of teacher targets out; one plain function a shard."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from pipeline.cache.ledger import read_ledger
from pipeline.cache.reader import CacheReader
from pipeline.cache.writer import CacheWriter, Calibrated, Vocabularies
from pipeline.config.recipe import Recipe, resolved_json
from pipeline.diffusion.corrupt import corrupt
from pipeline.records.reserve import is_reserved
from pipeline.records.source import index_records, read_part
from pipeline.teacher.answer import all_finite, answer_views
from pipeline.teacher.backend import TeacherBackend
from pipeline.teacher.calibrate import calibrate
from pipeline.teacher.examples import (
    check_reserved,
    load_tokenizers,
    pair_or_skip,
    reserved_for,
    reserved_skip,
)
from pipeline.teacher.identity import cache_identity
from pipeline.teacher.keep import Keep, KeepChunks, KeepTokens
from pipeline.teacher.load import load_backend
from storage_schemas.errors import RecipeError
from storage_schemas.examples import Pair, Record
from storage_schemas.manifest import Counts, Layout, LedgerEntry, shard_name
from storage_schemas.shard import ShardContent, StoredView
from storage_schemas.skips import Skip

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkItem:
    """One shard to make: views [view_start, view_stop) of one part of the records."""

    part: int
    view_start: int
    view_stop: int

    @property
    def shard(self) -> str:
        """The shard's name."""
        return shard_name(self.part, self.view_start, self.view_stop)


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
        self._recipe = recipe
        self._student, self._teacher = load_tokenizers(recipe)
        self._index = index_records(recipe.records, recipe.cache.records_per_part)
        if self._index.num_records == 0:
            raise RecipeError("expected a record or more in [records], got none")
        self._backend: TeacherBackend | None = None
        self._keep: Keep | None = None
        identity = cache_identity(recipe, self._student, self._teacher, self._index.fingerprint)
        self._identity = identity
        reserved = identity.kept.calibration_records
        check_reserved(reserved, self._index.num_records)
        self._writer = CacheWriter.open(
            recipe.cache.path,
            identity,
            Layout(records_per_part=recipe.cache.records_per_part),
            Vocabularies(
                student=dict(enumerate(self._student.vocabulary())),
                teacher=dict(enumerate(self._teacher.vocabulary())),
            ),
            self._calibrate if reserved else None,
        )
        self.address = self._writer.store.address
        self.digest = identity.digest
        try:
            self.work, self.num_committed = self._plan()
            self._writer.write_recipe(resolved_json(recipe))
        except BaseException:
            self._writer.close()
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
        if self._backend is not None:
            self._backend.close()
            self._backend = None
        self._writer.close()

    def make_shard(self, item: WorkItem) -> LedgerEntry:
        """Noise, teacher, targets and commit for one shard."""
        recipe = self._recipe
        pairs, skips = self._read_pairs(item.part)
        views = [
            (row, corrupt(pair, seed=recipe.noise.seed, view=view, eps=recipe.noise.eps))
            for row, pair in enumerate(pairs)
            for view in range(item.view_start, item.view_stop)
        ]
        compdemo = recipe.noise.compdemo
        asked = [(pairs[row], corruption) for row, corruption in views]
        answers = answer_views(
            self._teacher_backend(),
            asked,
            mask_id=self._teacher.mask_id,
            seed=recipe.noise.seed,
            demo_ratio=compdemo.ratio if compdemo is not None else None,
            keep=self._wanted(),
        )
        targets = all_finite(asked, answers)
        content = ShardContent(
            part=item.part,
            view_start=item.view_start,
            view_stop=item.view_stop,
            examples=tuple(pairs),
            views=tuple(
                StoredView(example=row, corruption=corruption, targets=answer)
                for (row, corruption), answer in zip(views, targets, strict=True)
            ),
            skips=tuple(skips),
        )
        return self._writer.commit(content)

    def _plan(self) -> tuple[tuple[WorkItem, ...], int]:
        parts = [part.number for part in self._index.parts]
        work = [
            WorkItem(part=part, view_start=views.start, view_stop=views.stop)
            for part, views in self._writer.missing(parts, self._recipe.noise.views)
        ]
        return tuple(work), len(read_ledger(self._writer.store))

    def _read_pairs(self, part: int) -> tuple[list[Pair], list[Skip]]:
        """The examples of a part that are to be cached; what is not is a Skip."""
        pairs: list[Pair] = []
        skips: list[Skip] = []
        for record in read_part(self._recipe.records, self._index, part):
            if isinstance(record, Record) and self._is_reserved(record):
                record = reserved_skip(record)
            found = record if isinstance(record, Skip) else self._pair(record)
            if isinstance(found, Skip):
                skips.append(found)
            else:
                pairs.append(found)
        return pairs, skips

    def _is_reserved(self, record: Record) -> bool:
        return is_reserved(
            record.id,
            seed=self._recipe.noise.seed,
            count=self._identity.kept.calibration_records,
            num_records=self._index.num_records,
        )

    def _pair(self, record: Record) -> Pair | Skip:
        return pair_or_skip(record, self._recipe, self._student, self._teacher)

    def _calibrate(self) -> Calibrated:
        """The basis of a new cache, from the records that are reserved for it."""
        pairs: list[Pair] = []
        for part in self._index.parts:
            for record in read_part(self._recipe.records, self._index, part.number):
                if isinstance(record, Record) and self._is_reserved(record):
                    pair = self._pair(record)
                    pairs += [pair] if isinstance(pair, Pair) else []
        _LOG.info("calibration on %d reserved records", len(pairs))
        reserved = reserved_for(pairs, self._identity.noise, self._teacher.mask_id)
        return calibrate(self._teacher_backend(), reserved, self._identity.kept)

    def _wanted(self) -> Keep:
        """What is kept of each row; one object for all shards, so that it is made ready once."""
        if self._keep is None:
            kept = self._identity.kept
            self._keep = (
                KeepTokens(
                    k=kept.top_k,
                    temperatures=kept.temperatures,
                    vocab_size=kept.vocab_size,
                    basis=self._writer.basis,
                )
                if kept.has_tokens
                else KeepChunks()
            )
        return self._keep

    def _teacher_backend(self) -> TeacherBackend:
        if self._backend is None:
            backend = load_backend(self._recipe.teacher, block_size=self._recipe.teacher_block_size)
            if backend.vocab_size < self._identity.kept.vocab_size:
                raise RecipeError(
                    f"expected a teacher with at least {self._identity.kept.vocab_size} logits a "
                    f"position, got {backend.vocab_size}; check pipeline.vocab and the teacher's "
                    f"tokenizer"
                )
            self._backend = backend
        return self._backend


def run_teacher_cache(
    recipe: Recipe,
    *,
    on_shard: Callable[[LedgerEntry, int, int], None] = lambda entry, done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> CacheSummary:
    """Make every shard that the ledger lacks; after each, `on_shard(entry, done, total)`.

    A stop is honoured between shards: what was begun is committed.
    """
    began = time.monotonic()
    made = 0
    with TeacherCacheStage.open(recipe) as stage:
        for item in stage.work:
            if should_stop():
                break
            entry = stage.make_shard(item)
            made += 1
            on_shard(entry, made, len(stage.work))
        return summarize(stage, shards_made=made, seconds=time.monotonic() - began)


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


def total_counts(entries: Sequence[LedgerEntry]) -> Counts:
    """The counts of a whole cache; a part's records count once, however many shards it has."""
    skips: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    seen: set[int] = set()
    for entry in entries:
        counts = entry.counts.model_dump(exclude={"skips"})
        if entry.part in seen:
            counts |= {"num_records": 0, "num_examples": 0}
        else:
            skips.update(entry.counts.skips)
        seen.add(entry.part)
        totals.update(counts)
    return Counts(
        **{name: totals[name] for name in Counts.model_fields if name != "skips"}, skips=skips
    )
