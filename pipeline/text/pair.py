"""Record -> Pair: one conversation under both tokenizers, cut to length and aligned (section 2).

Axes: S student position, T teacher position, R response token, C aligned chunk.
"""

import numpy as np

from pipeline.text.align import align_chunks
from pipeline.text.render import Rendered, render
from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.errors import RecipeError, RecordError
from storage_schemas.examples import Ints, Pair, Record


def make_pair(
    record: Record,
    student: ChatTokenizer,
    teacher: ChatTokenizer,
    *,
    student_length: int,
    teacher_length: int,
    block_size: int,
    teacher_block_size: int | None,
    is_shared_vocab: bool,
) -> Pair:
    """One example as both models will read it; a record that cannot serve is a RecordError.

    Both sides are cut to their length. The student's is filled with its EOS to a whole number of
    blocks, and that EOS is learned; the teacher's ends at its last aligned token, and with a
    `teacher_block_size` is filled likewise. A chunk that is not wholly inside both is dropped; with
    a shared vocabulary only chunks of one token and the same id on each side remain.
    """
    _check_length("student", student_length, block_size)
    if teacher_block_size is not None:
        _check_length("teacher", teacher_length, teacher_block_size)
    ours = _rendered(record, student, student_length, "student")
    theirs = _rendered(record, teacher, teacher_length, "teacher")
    student_ids = np.concatenate([ours.prompt_ids, ours.response_ids])[:student_length]
    teacher_ids = np.concatenate([theirs.prompt_ids, theirs.response_ids])[:teacher_length]
    chunks_C4 = _chunks(theirs, ours)
    is_whole_C = (chunks_C4[:, 1] <= len(teacher_ids)) & (chunks_C4[:, 3] <= len(student_ids))
    chunks_C4 = chunks_C4[is_whole_C]
    if is_shared_vocab:
        t0, t1, s0, s1 = chunks_C4.T
        is_same_C = (t1 - t0 == 1) & (s1 - s0 == 1) & (teacher_ids[t0] == student_ids[s0])
        chunks_C4 = chunks_C4[is_same_C]
    if not len(chunks_C4):
        raise RecordError(
            "no_chunk",
            f"record {record.id}: no span of the response is aligned inside both sequences "
            f"({len(student_ids)} student and {len(teacher_ids)} teacher tokens)",
        )
    student_ids_S = _fill_block(student_ids, block_size, student)
    teacher_ids_T = teacher_ids[: chunks_C4[-1, 1]]
    if teacher_block_size is not None:
        teacher_ids_T = _fill_block(teacher_ids_T, teacher_block_size, teacher)
    return Pair(
        record_id=record.id,
        student_ids_S=student_ids_S,
        is_target_S=np.arange(len(student_ids_S)) >= len(ours.prompt_ids),
        teacher_ids_T=teacher_ids_T,
        chunks_C4=chunks_C4,
    )


def _check_length(side: str, length: int, block_size: int) -> None:
    if block_size < 1 or length < 1 or length % block_size:
        raise RecipeError(
            f"expected the {side}'s length to be a positive multiple of its block size, got length "
            f"{length} and block size {block_size}"
        )


def _rendered(record: Record, tokenizer: ChatTokenizer, length: int, side: str) -> Rendered:
    """The record under one tokenizer; `length` must hold its prompt and a response token."""
    rendered = render(record.messages, tokenizer)
    num_prompt = len(rendered.prompt_ids)
    if num_prompt >= length:
        raise RecordError(
            "prompt_too_long",
            f"record {record.id}: the {side}'s prompt has {num_prompt} tokens, which leaves no "
            f"room for a response in {length}",
        )
    # A clean mask token cannot be told from a masked one.
    if (rendered.prompt_ids == tokenizer.mask_id).any() or (
        rendered.response_ids == tokenizer.mask_id
    ).any():
        raise RecordError(
            "mask_token_in_text",
            f"record {record.id}: its text contains the {side}'s mask token "
            f"{tokenizer.token_bytes(tokenizer.mask_id)!r}",
        )
    return rendered


def _chunks(theirs: Rendered, ours: Rendered) -> Ints:
    """Aligned chunks of the response's content, as positions in the two whole sequences."""
    inside_R = [np.flatnonzero(side.response_spans[:, 0] >= 0) for side in (theirs, ours)]
    spans = [side.response_spans[R] for side, R in zip((theirs, ours), inside_R, strict=True)]
    t, s = (
        len(side.prompt_ids) + (int(R[0]) if len(R) else 0)
        for side, R in zip((theirs, ours), inside_R, strict=True)
    )
    return align_chunks(*spans) + np.array([t, t, s, s], dtype=np.int32)


def _fill_block(ids: Ints, block_size: int, tokenizer: ChatTokenizer) -> Ints:
    return np.pad(ids, (0, -len(ids) % block_size), constant_values=tokenizer.eos_id)
