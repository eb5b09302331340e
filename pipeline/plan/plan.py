"""The plan of a recipe: what it and its neighbours will store, read and take."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.cache.counts import total_counts
from pipeline.cache.reader import CacheReader
from pipeline.config.recipe import Recipe
from pipeline.plan.counts import StageCounts, ViewCounts
from pipeline.plan.examples import Examples, Split, read_examples
from pipeline.plan.measure import Measured, measure_teacher
from pipeline.plan.settings import Setting, settings_of
from pipeline.plan.sizes import (
    ROW_KINDS,
    SHARD_KINDS,
    Rates,
    basis_bytes,
    kind_of,
    rates_of,
    sample_shard,
    sketch_rates,
)
from pipeline.plan.spectrum import SMOL, Anchor, estimate_sketch
from pipeline.student_train import num_steps
from pipeline.teacher.checkpoint import stored_config
from pipeline.teacher.examples import check_reserved
from pipeline.teacher.identity import kept_identity, noise_identity, teacher_identity
from storage_schemas.errors import CacheMissingError, RecipeError, TeacherError
from storage_schemas.identity import KeptIdentity, SketchTail, differences
from storage_schemas.manifest import Calibration, Counts, Layout, Manifest
from storage_schemas.parquet_layout import encode_vocabulary

_SECONDS_AN_HOUR = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """One setting. `sizes` are bytes by kind of file; `bytes_from` says where those of a row come.

    hours: of the teacher, all its passes with those of the calibration; None without a throughput.
    """

    name: str
    counts: StageCounts
    sizes: dict[str, int]
    bytes_from: str
    hours: float | None

    @property
    def num_bytes(self) -> int:
        """Bytes on disk, of everything."""
        return sum(self.sizes.values())

    @property
    def bytes_a_position(self) -> float:
        """Bytes of the shards, without what is kept once a cache, a masked student position."""
        shards = sum(self.sizes[kind] for kind in SHARD_KINDS)
        return shards / max(1, self.counts.stored.num_masked)

    @property
    def passes(self) -> int:
        """The teacher's, with those of the calibration."""
        return self.counts.passes + self.counts.calibration_passes

    @property
    def teacher_tokens(self) -> int:
        """What all passes read."""
        return self.counts.teacher_tokens + self.counts.calibration_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentPlan:
    """Stage 2: views trained on, tokens read (clean and noised half, no padding), steps."""

    views: float
    tokens: int
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What the cache at the recipe's address holds so far."""

    stored: Counts
    num_shards: int
    sizes: dict[str, int]

    @property
    def num_bytes(self) -> int:
        """Bytes on disk, of everything."""
        return sum(self.sizes.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The recipe's row first, then its neighbours'."""

    address: str
    num_records: int
    num_sampled: int
    rows: tuple[PlanRow, ...]
    student: StudentPlan
    used: Used | None
    tokens_per_second: float | None
    notes: tuple[str, ...]


def plan_recipe(
    recipe: Recipe,
    *,
    sample: int = 2000,
    tokens_per_second: float | None = None,
    measure: int = 0,
) -> Plan:
    """What the recipe and its neighbours will cost; no weights are read unless `measure` asks.

    sample: most records that are tokenized. measure: views for the live teacher to score, which
    gives the throughput, and the bytes of the recipe's own rows.
    """
    if sample < 1 or measure < 0 or (tokens_per_second is not None and tokens_per_second <= 0):
        raise RecipeError(
            f"expected a sample of 1 record or more, 0 or more views to measure and a throughput "
            f"above 0, got {sample}, {measure} and {tokens_per_second}"
        )
    return _Planner(recipe, sample).plan(tokens_per_second, measure)


def plan_json(plan: Plan) -> str:
    """The plan as one JSON object."""
    used = plan.used
    fields: dict[str, Any] = {
        "cache": plan.address,
        "records": plan.num_records,
        "records_sampled": plan.num_sampled,
        "is_exact": plan.num_records == plan.num_sampled,
        "tokens_per_second": plan.tokens_per_second,
        "settings": [_row_fields(row) for row in plan.rows],
        "student": {
            "views": plan.student.views,
            "tokens": plan.student.tokens,
            "steps": plan.student.steps,
        },
        "used": None
        if used is None
        else {
            **used.stored.model_dump(),
            "num_shards": used.num_shards,
            "bytes": used.num_bytes,
            "bytes_by_kind": used.sizes,
        },
        "notes": plan.notes,
    }
    return json.dumps(fields, indent=2)


def _row_fields(row: PlanRow) -> dict[str, Any]:
    return {
        "name": row.name,
        **row.counts.stored.model_dump(),
        "num_answered": row.counts.answered,
        "num_shards": row.counts.num_shards,
        "passes": row.counts.passes,
        "teacher_tokens": row.counts.teacher_tokens,
        "calibration_passes": row.counts.calibration_passes,
        "calibration_tokens": row.counts.calibration_tokens,
        "bytes": row.num_bytes,
        "bytes_a_position": row.bytes_a_position,
        "bytes_by_kind": row.sizes,
        "bytes_from": row.bytes_from,
        "hours": row.hours,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _RowBytes:
    """What a position's own files cost, where it is known from, and the basis that goes along."""

    rates: Rates
    source: str
    basis: int


class _Planner:
    """A recipe with its records read, and what its cache has used."""

    def __init__(self, recipe: Recipe, sample: int) -> None:
        self._recipe = recipe
        self._examples: Examples = read_examples(recipe, most=sample)
        self._views = ViewCounts(self._examples, recipe)
        self._vocabularies = sum(
            len(encode_vocabulary(dict(enumerate(one.vocabulary()))))
            for one in (self._examples.student, self._examples.teacher)
        )
        self._reader = _open_cache(recipe.cache.path)
        # what another teacher's cache has measured says nothing of this one
        self._known = self._reader if _is_of(self._reader, recipe) else None
        self._measured: Measured | None = None
        self._hidden: int | None = None

    def plan(self, tokens_per_second: float | None, measure: int) -> Plan:
        recipe = self._recipe
        kept = self._kept(recipe)
        check_reserved(kept.calibration_records, self._examples.num_records)
        split = self._split(recipe)
        if not split.cached:
            reasons = dict(Counter(skip.reason for skip in split.skips))
            raise RecipeError(f"expected a record that can be cached, got skips alone: {reasons}")
        if measure:
            self._measured = measure_teacher(recipe, self._examples, split, kept, num_views=measure)
            tokens_per_second = tokens_per_second or self._measured.tokens_per_second
        rows, notes = self._rows(tokens_per_second)
        return Plan(
            address=recipe.cache.path,
            num_records=self._examples.num_records,
            num_sampled=len(self._examples.sampled),
            rows=tuple(rows),
            student=_student(recipe, rows[0].counts),
            used=None if self._reader is None else _used(self._reader),
            tokens_per_second=tokens_per_second,
            notes=(*notes, *self._refusals(kept)),
        )

    def _rows(self, tokens_per_second: float | None) -> tuple[list[PlanRow], list[str]]:
        rows: list[PlanRow] = []
        notes: list[str] = []
        for setting in settings_of(self._recipe):
            reserved = self._kept(setting.recipe).calibration_records
            if reserved >= self._examples.num_records:
                notes.append(
                    f"left out: {setting.name}; it would reserve {reserved} of the "
                    f"{self._examples.num_records} records"
                )
                continue
            rows.append(self._row(setting, tokens_per_second))
        return rows, notes

    def _row(self, setting: Setting, tokens_per_second: float | None) -> PlanRow:
        recipe, kept = setting.recipe, self._kept(setting.recipe)
        split = self._split(recipe)
        counts = self._views.count(
            recipe, kept, split, self._hidden_size() if kept.calibration_records else None
        )
        of_rows = self._row_bytes(recipe, kept, split)
        sizes = of_rows.rates.total(counts.stored, counts.num_shards)
        sizes |= {"vocabularies": self._vocabularies, "basis": of_rows.basis}
        row = PlanRow(
            name=setting.name, counts=counts, sizes=sizes, bytes_from=of_rows.source, hours=None
        )
        if tokens_per_second is None:
            return row
        return replace(row, hours=row.teacher_tokens / tokens_per_second / _SECONDS_AN_HOUR)

    def _kept(self, recipe: Recipe) -> KeptIdentity:
        return kept_identity(recipe, self._examples.teacher)

    def _split(self, recipe: Recipe) -> Split:
        return self._examples.split(
            seed=recipe.noise.seed, reserved=self._kept(recipe).calibration_records
        )

    def _hidden_size(self) -> int:
        if self._hidden is None:
            self._hidden = _hidden_size(self._recipe)
        return self._hidden

    def _row_bytes(self, recipe: Recipe, kept: KeptIdentity, split: Split) -> _RowBytes:
        """From the ledger, else from the measured rows, else from random ones and an estimate."""
        shard = sample_shard(
            split.cached,
            split.skips,
            noise_identity(recipe),
            kept,
            num_views=recipe.noise.views,
            records_per_part=recipe.cache.records_per_part,
        )
        rates = rates_of(shard, kept, None)
        bare = kept.model_copy(update={"tail": None})
        for source, known, own, basis in self._known_rows():
            if known == kept:
                return _RowBytes(rates=_with_rows(rates, own), source=source, basis=basis)
            if known.model_copy(update={"tail": None}) == bare:  # all but the sketch is known
                rates = _with_rows(rates, own)
        if not isinstance(kept.tail, SketchTail):
            a_shard, a_row, rank, source = 0.0, 0.0, 0, "random rows"
        else:
            num_bytes, rank, source = self._sketch(kept, kept.tail)
            a_shard, a_row = sketch_rates(num_bytes)
        rates = Rates(
            a_shard={**rates.a_shard, "sketch": a_shard}, an_item={**rates.an_item, "sketch": a_row}
        )
        return _RowBytes(rates=rates, source=source, basis=self._basis(kept, rank))

    def _known_rows(self) -> Iterator[tuple[str, KeptIdentity, Rates, int]]:
        """What the cache, and a look at the teacher, tell of rows of one kind; and the basis."""
        if self._known is not None and self._known.entries:
            basis = sum(file.size for file in self._known.manifest.basis)
            yield "the cache", self._known.identity.kept, _stored_rates(self._known), basis
        if self._measured is not None:
            kept, measured = self._kept(self._recipe), self._measured
            rank = 0 if measured.basis is None else measured.basis.rank
            own = rates_of(measured.content, kept, measured.basis)
            yield "measured", kept, own, self._basis(kept, rank)

    def _sketch(self, kept: KeptIdentity, tail: SketchTail) -> tuple[float, int, str]:
        """Bytes a position, dimensions, and where they are known from."""
        hidden_size, anchor, source = self._hidden_size(), SMOL, "an estimate: SmolLM2-135M"
        for name, known, report in self._calibrations():
            if known == kept and report.bytes_per_position is not None:
                return report.bytes_per_position, report.rank, name
            if (found := _anchor(report)) is not None:
                anchor, source = found, f"an estimate: {name}"
        estimate = estimate_sketch(
            hidden_size, asks=tail.asks, amount=tail.amount, rank=tail.rank, anchor=anchor
        )
        source = "as asked" if tail.asks == "bytes" else source
        return estimate.num_bytes, estimate.rank, source

    def _calibrations(self) -> list[tuple[str, KeptIdentity, Calibration]]:
        """Those of this teacher, or what the cache says is it, the most trusted last."""
        found: list[tuple[str, KeptIdentity, Calibration | None]] = []
        if self._known is not None:
            manifest = self._known.manifest
            kept = manifest.identity.kept
            found.append(("the cache's own", kept, manifest.calibration))
        if self._measured is not None:
            kept = self._kept(self._recipe)
            found.append(("measured", kept, self._measured.calibration))
        return [(name, kept, report) for name, kept, report in found if report is not None]

    def _basis(self, kept: KeptIdentity, rank: int) -> int:
        if not kept.calibration_records:
            return 0
        return basis_bytes(self._hidden_size(), rank, kept.vocab_size)

    def _refusals(self, kept: KeptIdentity) -> list[str]:
        """In what the cache at this address differs, as far as that is known without weights."""
        if self._reader is None:
            return []
        cached, recipe = self._reader.identity, self._recipe
        lines = [f"kept.{line}" for line in differences(cached.kept, kept)]
        lines += [f"noise.{line}" for line in differences(cached.noise, noise_identity(recipe))]
        layout = Layout(records_per_part=recipe.cache.records_per_part)
        lines += [f"layout.{line}" for line in differences(self._reader.manifest.layout, layout)]
        if cached.records != self._examples.fingerprint:
            lines.append("records: the cache was made from other records, or other fields of them")
        if not lines:
            return []
        return ["the cache at this address was made from other inputs; a run will refuse", *lines]


def _open_cache(address: str) -> CacheReader | None:
    try:
        return CacheReader.open(address, allow_empty=True)
    except CacheMissingError:
        return None


def _is_of(reader: CacheReader | None, recipe: Recipe) -> bool:
    """Whether a cache is of the recipe's teacher: the same weights, read in the same way."""
    return reader is not None and reader.identity.teacher == teacher_identity(recipe)


def _hidden_size(recipe: Recipe) -> int:
    """The teacher's, read from its configuration alone."""
    fields = stored_config(recipe.teacher)
    fields = fields.get("text_config") or fields
    size = fields.get("hidden_size") or fields.get("d_model")
    if not isinstance(size, int):
        raise TeacherError(
            f"expected a teacher at {recipe.teacher.model!r} whose config.json names its "
            f"hidden_size, got {size!r}"
        )
    return size


def _used(reader: CacheReader) -> Used:
    sizes: Counter[str] = Counter()
    for entry in reader.entries:
        for file in entry.files:
            sizes[kind_of(entry.inner_path(file))] += file.size
    manifest: Manifest = reader.manifest
    sizes["vocabularies"] = sum(file.size for file in manifest.vocabularies)
    sizes["basis"] = sum(file.size for file in manifest.basis)
    return Used(
        stored=total_counts(reader.entries), num_shards=len(reader.entries), sizes=dict(sizes)
    )


def _stored_rates(reader: CacheReader) -> Rates:
    """What the cache's own rows took, whole shards counted."""
    used = _used(reader)
    rows = max(1, used.stored.num_token_rows)
    return Rates(
        a_shard=dict.fromkeys(ROW_KINDS, 0.0),
        an_item={kind: used.sizes.get(kind, 0) / rows for kind in ROW_KINDS},
    )


def _with_rows(rates: Rates, of_rows: Rates) -> Rates:
    """Tables as in `rates`, the arrays of the rows as in `of_rows`."""

    def chosen(all_of: Mapping[str, float], rows_of: Mapping[str, float]) -> dict[str, float]:
        return {**all_of, **{kind: rows_of[kind] for kind in ROW_KINDS}}

    return Rates(
        a_shard=chosen(rates.a_shard, of_rows.a_shard),
        an_item=chosen(rates.an_item, of_rows.an_item),
    )


def _anchor(report: Calibration) -> Anchor | None:
    if not report.step or not report.bytes_per_position or not report.grad_error:
        return None
    return Anchor(
        hidden_size=report.hidden_size,
        step=report.step,
        num_bytes=report.bytes_per_position,
        grad_error=report.grad_error,
    )


def _student(recipe: Recipe, counts: StageCounts) -> StudentPlan:
    num_views = counts.stored.num_views
    steps = num_steps(recipe, num_views)
    views = float(recipe.train.epochs * num_views)
    if recipe.train.max_steps is not None:
        views = min(views, float(steps * recipe.train.batch_size * recipe.train.accumulation))
    tokens = round(views / max(1, num_views) * counts.student_tokens)
    return StudentPlan(views=views, tokens=tokens, steps=steps)
