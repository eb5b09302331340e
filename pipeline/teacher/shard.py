"""One shard of stage 1: a part's records read, noised, answered by the teacher, and committed.

Axes: C answered chunk, T teacher position.
"""

import logging
import os
import socket
import time
from collections.abc import Sequence

from pipeline.cache.writer import CacheWriter
from pipeline.config.recipe import Recipe
from pipeline.diffusion.corrupt import corrupt
from pipeline.records.part import Part
from pipeline.records.reserve import is_reserved
from pipeline.records.source import read_records
from pipeline.shards.work import MadeShard, RecordsFound, WorkItem
from pipeline.teacher.answer import NotFinite, answer_views
from pipeline.teacher.backend import TeacherBackend
from pipeline.teacher.examples import pair_or_skip, reserved_skip
from pipeline.teacher.keep import Keep, keep_of
from pipeline.teacher.load import load_backend
from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.errors import RecipeError, TeacherError
from storage_schemas.examples import Pair, Record
from storage_schemas.identity import CacheIdentity
from storage_schemas.shard import ShardContent, StoredView
from storage_schemas.skips import NOT_FINITE, Skip
from storage_schemas.targets import Targets
from storage_schemas.views import Corruption

_LOG = logging.getLogger(__name__)


class ShardMaker:
    """Makes any shard of one cache; the teacher is loaded when it is first asked, and kept.

    Not for several threads.
    """

    def __init__(
        self,
        recipe: Recipe,
        tokenizers: tuple[ChatTokenizer, ChatTokenizer],
        identity: CacheIdentity,
        found: RecordsFound,
    ) -> None:
        self.identity = identity
        self._recipe = recipe
        self._student, self._teacher = tokenizers
        self._found = found
        self._backend: TeacherBackend | None = None
        self._load_seconds = 0.0
        self._keep: Keep | None = None
        self._has_made = False

    def make(self, item: WorkItem, writer: CacheWriter) -> MadeShard:
        """Noise, teacher, targets and commit; a shard that the ledger has is not made again."""
        if (entry := writer.entry(item.shard)) is not None:
            return MadeShard(
                entry=entry,
                positions=0,
                teacher_tokens=0,
                seconds=0.0,
                load_seconds=0.0,
                not_finite=(),
                worker=_this_process(),
            )
        recipe = self._recipe
        backend = self.teacher()
        began = time.monotonic()
        placed, skips = self._read_pairs(item.part)
        pairs = [pair for _, pair in placed]
        noise = recipe.noise
        views = [
            (row, corrupt(pair, seed=noise.seed, view=view, eps=noise.eps, times=noise.times))
            for row, pair in enumerate(pairs)
            for view in range(item.view_start, item.view_stop)
        ]
        answers = answer_views(
            backend,
            [(pairs[row], corruption) for row, corruption in views],
            mask_id=self._teacher.mask_id,
            seed=noise.seed,
            demo_ratio=noise.compdemo.ratio if noise.compdemo is not None else None,
            keep=self._wanted(writer),
        )
        not_finite = self._not_finite(item, placed, views, answers)
        content = _content(item, pairs, views, answers, (*skips, *not_finite))
        entry = writer.commit(content)
        self._has_made = True
        load_seconds, self._load_seconds = self._load_seconds, 0.0
        return MadeShard(
            entry=entry,
            positions=sum(int(view.corruption.is_masked_T.sum()) for view in content.views),
            teacher_tokens=sum(self._tokens_read(content, view) for view in content.views),
            seconds=time.monotonic() - began,
            load_seconds=load_seconds,
            not_finite=not_finite,
            worker=_this_process(),
        )

    def reserved_pairs(self, parts: Sequence[Part]) -> list[Pair]:
        """The examples that are kept for the calibration of a new cache."""
        found = [
            self._pair(record)
            for part in parts
            for record in read_records(self._recipe.records, part)
            if isinstance(record, Record) and self._is_reserved(record)
        ]
        return [pair for pair in found if isinstance(pair, Pair)]

    def teacher(self) -> TeacherBackend:
        """The recipe's teacher, loaded."""
        if self._backend is None:
            began = time.monotonic()
            recipe, kept = self._recipe, self.identity.kept
            backend = load_backend(recipe.teacher, block_size=recipe.teacher_block_size)
            if backend.vocab_size < kept.vocab_size:
                backend.close()
                raise RecipeError(
                    f"expected a teacher with at least {kept.vocab_size} logits a position, got "
                    f"{backend.vocab_size}; check pipeline.vocab and the teacher's tokenizer"
                )
            self._backend = backend
            self._load_seconds = time.monotonic() - began
        return self._backend

    def close(self) -> None:
        """Lets go of the teacher."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def _read_pairs(self, part: Part) -> tuple[list[tuple[str, Pair]], list[Skip]]:
        """The examples of a part that are to be cached, each with its place; the rest are Skips."""
        placed: list[tuple[str, Pair]] = []
        skips: list[Skip] = []
        for record in read_records(self._recipe.records, part):
            if isinstance(record, Record) and self._is_reserved(record):
                record = reserved_skip(record)
            found = record if isinstance(record, Skip) else self._pair(record)
            if isinstance(found, Skip):
                skips.append(found)
            else:
                placed.append((record.where, found))
        return placed, skips

    def _is_reserved(self, record: Record) -> bool:
        return is_reserved(
            record.id,
            seed=self._recipe.noise.seed,
            count=self.identity.kept.calibration_records,
            num_records=self._found.num_records,
        )

    def _pair(self, record: Record) -> Pair | Skip:
        return pair_or_skip(record, self._recipe, self._student, self._teacher)

    def _wanted(self, writer: CacheWriter) -> Keep:
        """What is kept of each row; one object for all shards, so that it is made ready once."""
        if self._keep is None:
            self._keep = keep_of(self.identity.kept, writer.basis)
        return self._keep

    def _not_finite(
        self,
        item: WorkItem,
        placed: Sequence[tuple[str, Pair]],
        views: Sequence[tuple[int, Corruption]],
        answers: Sequence[Targets | NotFinite],
    ) -> tuple[Skip, ...]:
        """A Skip for each record with a view that the teacher cannot answer."""
        first: dict[int, tuple[int, int]] = {}
        for (row, corruption), answer in zip(views, answers, strict=True):
            if isinstance(answer, NotFinite):
                first.setdefault(row, (corruption.view, answer.position))
        num_bad, num_all = len(first), len(placed)
        is_everything = num_bad == num_all > 1
        if is_everything or (not self._has_made and 2 * num_bad > num_all):
            row, (view, position) = next(iter(first.items()))
            record = placed[row][1].record_id
            raise TeacherError(
                f"shard {item.shard}: expected finite answers of the teacher, got none for "
                f"{num_bad} of {num_all} records (the first: record {record}, view {view}, "
                f"token {position}): the teacher is broken in "
                f"{self._recipe.teacher.dtype}; try another teacher.dtype, and check its weights"
            )
        skips = tuple(
            Skip(
                where=placed[row][0],
                record_id=placed[row][1].record_id,
                reason=NOT_FINITE,
                message=(
                    f"left out of shard {item.shard}: the teacher's answer at token {position} of "
                    f"view {view} is not finite"
                ),
            )
            for row, (view, position) in first.items()
        )
        for skip in skips:
            _LOG.warning("record %s: %s", skip.record_id, skip.message)
        return skips

    def _tokens_read(self, content: ShardContent, view: StoredView) -> int:
        passes = len(set(view.targets.pass_C.tolist()))  # one that answers nothing is never run
        halves = 1 if self._recipe.teacher_block_size is None else 2
        return passes * halves * len(content.examples[view.example].teacher_ids_T)


def _this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _content(
    item: WorkItem,
    pairs: Sequence[Pair],
    views: Sequence[tuple[int, Corruption]],
    answers: Sequence[Targets | NotFinite],
    skips: tuple[Skip, ...],
) -> ShardContent:
    """The shard without the records that have an answer which is not finite."""
    bad = {
        row
        for (row, _), answer in zip(views, answers, strict=True)
        if isinstance(answer, NotFinite)
    }
    rows = [row for row in range(len(pairs)) if row not in bad]
    example_of = {row: example for example, row in enumerate(rows)}
    return ShardContent(
        part=item.part.number,
        view_start=item.view_start,
        view_stop=item.view_stop,
        examples=tuple(pairs[row] for row in rows),
        views=tuple(
            StoredView(example=example_of[row], corruption=corruption, targets=answer)
            for (row, corruption), answer in zip(views, answers, strict=True)
            if row in example_of and not isinstance(answer, NotFinite)
        ),
        skips=skips,
    )
