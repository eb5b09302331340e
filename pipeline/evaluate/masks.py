"""The stored masks of held-out text: the same for every model, drawn independently (section 5).

In pipeline A chunk completion masks a token more often than its time says, so a loss under it
bounds no likelihood. Here nothing is completed: each maskable token is masked with probability t.

Axes: S student position, L noise level.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np

from pipeline.diffusion.corrupt import draw_mask, is_covered
from pipeline.text.pair import make_pair
from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.errors import CacheCorruptError, CacheMissingError, RecipeError, RecordError
from storage_schemas.examples import Bools, Ints, Record
from storage_schemas.parquet_layout import Ragged, Table, decode_table, encode_table
from storage_schemas.skips import Skip

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""The midpoints of five equal parts of [0, 1]: the mean over them is the midpoint rule."""

_FIELDS = {  # one row a record and level
    "record": "int32",
    "record_id": "string",
    "time": "float64",
    "student_ids": "list<int32>",
    "is_target": "list<bool>",
    "is_content": "list<bool>",
    "is_masked": "list<bool>",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutRecord:
    """One record as every model reads it, filled with EOS to whole blocks, and its masks.

    is_target_S: what training learns and the noise may mask, EOS filling included. is_content_S:
    the part of it that the response really has, its text and its end of turn.
    """

    record_id: str
    student_ids_S: Ints
    is_target_S: Bools
    is_content_S: Bools
    is_masked_LS: Bools

    def __post_init__(self) -> None:
        assert not (self.is_content_S & ~self.is_target_S).any(), "content is learned"
        assert not (self.is_masked_LS & ~self.is_target_S).any(), "a prompt token is masked"


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Held-out records under stored masks, one for each record and level of noise."""

    levels: tuple[float, ...]
    records: tuple[HeldOutRecord, ...]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything in it: two scores can be compared iff theirs are equal."""
        digest = hashlib.sha256(np.array(self.levels, dtype="<f8").tobytes())
        for record in self.records:
            digest.update(f"{record.record_id}\x1f{len(record.student_ids_S)}\x1f".encode())
            digest.update(record.student_ids_S.astype("<i4").tobytes())
            for flags in (record.is_target_S, record.is_content_S, record.is_masked_LS):
                digest.update(flags.tobytes())
        return digest.hexdigest()

    @property
    def num_content(self) -> int:
        """Content tokens in all records."""
        return sum(int(record.is_content_S.sum()) for record in self.records)

    def save(self, path: Path) -> None:
        """Write one Parquet file, one row a record and level; the same content, the same bytes."""
        rows = [(i, level) for i in range(len(self.records)) for level in range(len(self.levels))]
        records = [self.records[i] for i, _ in rows]
        no_flags = np.zeros(0, dtype=np.bool_)
        masks = [self.records[i].is_masked_LS[level] for i, level in rows]
        columns = {
            "record": np.array([i for i, _ in rows], dtype=np.int32),
            "record_id": [record.record_id for record in records],
            "time": np.array([self.levels[level] for _, level in rows], dtype=np.float64),
            "student_ids": Ragged.of([r.student_ids_S for r in records], np.zeros(0, np.int32)),
            "is_target": Ragged.of([r.is_target_S for r in records], no_flags),
            "is_content": Ragged.of([r.is_content_S for r in records], no_flags),
            "is_masked": Ragged.of(masks, no_flags),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.tmp")
        scratch.write_bytes(encode_table(_FIELDS, columns))
        scratch.replace(path)

    @classmethod
    def load(cls, path: Path) -> "HeldOut":
        """What `save` wrote."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CacheMissingError(
                f"expected stored held-out masks at {path}, got: {error}"
            ) from error
        try:
            return _from_table(decode_table(_FIELDS, data))
        except CacheCorruptError as error:
            raise CacheCorruptError(
                f"{path}: {error}; remove it, and draw the masks anew"
            ) from error


def draw_held_out(
    records: Iterable[Record],
    tokenizer: ChatTokenizer,
    *,
    length: int,
    block_size: int,
    seed: int = 0,
    levels: Sequence[float] = LEVELS,
    max_records: int | None = None,
    draw: int = 0,
) -> tuple[HeldOut, tuple[Skip, ...]]:
    """The masks of these records, and the records that cannot serve.

    A record is cut and filled as in training. Its masks depend on the seed, its id, the level's
    index, the number of the draw and nothing else; no draw of training has a key of theirs.
    `max_records` usable ones are enough: the first.
    """
    if not levels or not all(0 < level <= 1 for level in levels):
        raise RecipeError(f"expected noise levels in (0, 1], got {list(levels)}")
    drawn: list[HeldOutRecord] = []
    skips: list[Skip] = []
    for record in records:
        if len(drawn) == max_records:
            break
        try:
            drawn.append(_draw(record, tokenizer, length, block_size, seed, levels, draw))
        except RecordError as error:
            skips.append(
                Skip(
                    where=record.where,
                    record_id=record.id,
                    reason=error.reason,
                    message=str(error),
                )
            )
    if not drawn:
        reasons = ", ".join(sorted({skip.reason for skip in skips})) or "there were none at all"
        raise RecipeError(f"expected a usable held-out record or more, got none ({reasons})")
    return HeldOut(levels=tuple(levels), records=tuple(drawn)), tuple(skips)


def _draw(
    record: Record,
    tokenizer: ChatTokenizer,
    length: int,
    block_size: int,
    seed: int,
    levels: Sequence[float],
    draw: int,
) -> HeldOutRecord:
    pair = make_pair(  # the student on both sides: then the chunks are the content's own tokens
        record,
        tokenizer,
        tokenizer,
        student_length=length,
        teacher_length=length,
        block_size=block_size,
        teacher_block_size=None,
        is_shared_vocab=False,
    )
    spans_C2 = pair.chunks_C4[:, 2:]
    num_positions = len(pair.student_ids_S)
    is_content_S = is_covered(spans_C2, np.ones(len(spans_C2), dtype=np.bool_), num_positions)
    is_content_S[spans_C2[-1, 1] : spans_C2[-1, 1] + 1] = True  # the end of turn, unless cut off
    masks = [
        draw_mask(pair.is_target_S, level, seed=seed, record_id=record.id, view=key)
        for key, level in zip(_view_keys(draw, len(levels)), levels, strict=True)
    ]
    return HeldOutRecord(
        record_id=record.id,
        student_ids_S=pair.student_ids_S,
        is_target_S=pair.is_target_S,
        is_content_S=is_content_S,
        is_masked_LS=np.stack(masks),
    )


def _view_keys(draw: int, num_levels: int) -> range:
    """Views of training are numbered from 0: a negative one is a key that no training draw has."""
    first = -1 - draw * num_levels
    return range(first, first - num_levels, -1)


def _from_table(table: Table) -> HeldOut:
    index_of_row = table.arrays["record"].tolist()
    times = table.arrays["time"].tolist()
    columns = {name: column.rows() for name, column in table.lists.items()}
    records: list[HeldOutRecord] = []
    levels: set[tuple[float, ...]] = set()
    for _, group in groupby(range(len(times)), key=index_of_row.__getitem__):
        rows = list(group)
        levels.add(tuple(times[row] for row in rows))
        records.append(
            HeldOutRecord(
                record_id=table.texts["record_id"][rows[0]],
                student_ids_S=columns["student_ids"][rows[0]],
                is_target_S=columns["is_target"][rows[0]],
                is_content_S=columns["is_content"][rows[0]],
                is_masked_LS=np.stack([columns["is_masked"][row] for row in rows]),
            )
        )
    if len(levels) != 1:
        raise CacheCorruptError(
            f"expected the same noise levels for every record, got {sorted(levels)}"
        )
    return HeldOut(levels=levels.pop(), records=tuple(records))
