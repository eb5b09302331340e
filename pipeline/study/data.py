"""The study's text: records of each seed, and two halves of the held-out files."""

from functools import cache
from hashlib import blake2b

from pipeline.demo.corpus import ASSETS, documented_functions
from pipeline.evaluate.heldout import HeldOut, draw_held_out
from pipeline.records.reserve import is_reserved
from pipeline.study.arms import Split
from pipeline.text.render import render
from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.errors import RecordError
from storage_schemas.examples import Record

LENGTH, BLOCK_SIZE = 128, 16
"""Tokens a record is cut to, on the student's side, and of a block: short, for many runs."""

TEACHER_LENGTH = 192
CALIBRATION_RECORDS = 48
HELD_OUT_RECORDS = 160
_LONGEST_PROMPT = 96


def training_records(seed: int, count: int, *, with_reserved: bool) -> list[Record]:
    """`count` records of this seed's own, and with them, if asked, those that calibrate its cache.

    The seed decides which functions of the training files they are. Which of a file's records a
    cache reserves follows from its noise seed, so those that it will reserve are known here.
    """
    kept: list[Record] = []
    reserved: list[Record] = []
    total = count + CALIBRATION_RECORDS
    for record in sorted(_that_fit(), key=lambda record: _hash(f"{seed} {record.id}")):
        for_calibration = is_reserved(
            record.id, seed=seed, count=CALIBRATION_RECORDS, num_records=total
        )
        if for_calibration and len(reserved) < CALIBRATION_RECORDS:
            reserved.append(record)
        elif not for_calibration and len(kept) < count:
            kept.append(record)
        if len(kept) == count and len(reserved) == CALIBRATION_RECORDS:
            return kept + reserved if with_reserved else kept
    raise ValueError(f"expected {total} records that fit, got {len(kept) + len(reserved)}")


def held_out(split: Split) -> HeldOut:
    """The masks of one half of the held-out files."""
    drawn, _ = draw_held_out(
        held_out_records(split), student_tokenizer(), length=LENGTH, block_size=BLOCK_SIZE
    )
    return drawn


def held_out_records(split: Split) -> list[Record]:
    """A fixed choice of the functions in every other held-out file, by hash; the rest is the other.

    The halves share no file. Settings are chosen on the one, and judged on the other.
    """
    records = documented_functions("held_out")
    files = sorted({file_of(record.id) for record in records}, key=_hash)
    mine = set(files[0 if split == "validation" else 1 :: 2])
    chosen = [r for r in records if file_of(r.id) in mine and _fits(r, student_tokenizer())]
    return sorted(chosen, key=lambda record: _hash(record.id))[:HELD_OUT_RECORDS]


def file_of(record_id: str) -> str:
    """The source file that a function stands in."""
    return record_id.partition("::")[0]


@cache
def student_tokenizer() -> ChatTokenizer:
    """The bundled student's."""
    return ChatTokenizer.load(str(ASSETS / "student"))


@cache
def _that_fit() -> tuple[Record, ...]:
    teacher = ChatTokenizer.load(str(ASSETS / "teacher-a"))
    return tuple(
        record
        for record in documented_functions("train")
        if _fits(record, student_tokenizer()) and _fits(record, teacher)
    )


def _fits(record: Record, tokenizer: ChatTokenizer) -> bool:
    """Whether the prompt leaves room for two blocks of response."""
    try:
        return len(render(record.messages, tokenizer).prompt_ids) <= _LONGEST_PROMPT
    except RecordError:
        return False


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
