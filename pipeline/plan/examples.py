"""The records of a recipe, or a sample of them, under both tokenizers."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config.recipe import Recipe
from pipeline.records.reserve import is_reserved
from pipeline.records.source import index_records, read_part
from pipeline.teacher.examples import load_tokenizers, pair_or_skip, reserved_skip
from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.examples import Pair, Record
from storage_schemas.skips import Skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """What became of one record; without `record`, which could be reserved, it was not parsed."""

    record: Record | None
    found: Pair | Skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Sampled records by what stage 1 does with them; a reserved one is a skip, usable or not."""

    cached: list[Pair]
    reserved: list[Pair]
    skips: list[Skip]


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """The sampled records in their order; the numbers are those of all the data."""

    sampled: tuple[Example, ...]
    num_records: int
    num_parts: int
    fingerprint: str
    student: ChatTokenizer
    teacher: ChatTokenizer

    @property
    def is_whole(self) -> bool:
        """Whether no record was left out."""
        return len(self.sampled) == self.num_records

    @property
    def scale(self) -> float:
        """Records that each sampled one stands for."""
        return self.num_records / len(self.sampled)

    def split(self, *, seed: int, reserved: int) -> Split:
        """As stage 1 does with that many records reserved."""
        split = Split(cached=[], reserved=[], skips=[])
        for one in self.sampled:
            record = one.record
            if record is not None and is_reserved(
                record.id, seed=seed, count=reserved, num_records=self.num_records
            ):
                split.skips.append(reserved_skip(record))
                if isinstance(one.found, Pair):
                    split.reserved.append(one.found)
            elif isinstance(one.found, Pair):
                split.cached.append(one.found)
            else:
                split.skips.append(one.found)
        return split


def read_examples(recipe: Recipe, *, most: int) -> Examples:
    """All records where there are at most `most`, else that many drawn evenly with noise.seed."""
    student, teacher = load_tokenizers(recipe)
    index = index_records(recipe.records, recipe.cache.records_per_part)
    chosen = _chosen(index.num_records, most=most, seed=recipe.noise.seed)
    sampled: list[Example] = []
    first = 0
    for part in index.parts:
        stop = first + part.span.num_records
        wanted = set(chosen[(chosen >= first) & (chosen < stop)].tolist())
        for number, record in enumerate(
            read_part(recipe.records, index, part.number) if wanted else (), start=first
        ):
            if number not in wanted:
                continue
            if isinstance(record, Skip):
                sampled.append(Example(record=None, found=record))
            else:
                found = pair_or_skip(record, recipe, student, teacher)
                sampled.append(Example(record=record, found=found))
        first = stop
    return Examples(
        sampled=tuple(sampled),
        num_records=index.num_records,
        num_parts=len(index.parts),
        fingerprint=index.fingerprint,
        student=student,
        teacher=teacher,
    )


def _chosen(num_records: int, *, most: int, seed: int) -> NDArray[np.int64]:
    """Numbers of the sampled records, rising."""
    if num_records <= most:
        return np.arange(num_records)
    return np.sort(np.random.default_rng(abs(seed)).choice(num_records, most, replace=False))
