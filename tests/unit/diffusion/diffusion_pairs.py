"""Pairs to draw noise for: random ones by hypothesis, and ones of n-token chunks by the number.

Axes: S student position, T teacher position, C aligned chunk.
"""

import numpy as np
from hypothesis import strategies as st

from storage_schemas.examples import Pair

MASK_ID = 999  # no token of any pair here

_lengths = st.integers(0, 3)
_chunk = st.tuples(st.integers(1, 4), st.integers(1, 4))  # teacher tokens, student tokens
_segments = st.lists(st.tuples(_chunk, st.tuples(_lengths, _lengths)), max_size=8)


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    """Prompts, then chunks with unaligned tokens between and after them, on both sides."""
    num_prompt, num_teacher = draw(_lengths), draw(_lengths)
    num_student = num_prompt
    chunks: list[tuple[int, int, int, int]] = []
    for (teacher, student), (teacher_gap, student_gap) in draw(_segments):
        t1, s1 = num_teacher + teacher, num_student + student
        chunks.append((num_teacher, t1, num_student, s1))
        num_teacher, num_student = t1 + teacher_gap, s1 + student_gap
    num_student += draw(_lengths)
    return Pair(
        record_id=draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=5)),
        student_ids_S=np.arange(num_student, dtype=np.int32),
        is_target_S=np.arange(num_student) >= num_prompt,
        teacher_ids_T=np.arange(num_teacher, dtype=np.int32),
        chunks_C4=np.array(chunks, dtype=np.int32).reshape(-1, 4),
    )


def pair_of_chunks(
    record_id: str, *, num_chunks: int, tokens_per_chunk: int, num_prompt: int = 0
) -> Pair:
    """Chunks of n tokens on each side, one after the other, behind a prompt."""
    start_C = num_prompt + tokens_per_chunk * np.arange(num_chunks, dtype=np.int32)
    num_tokens = num_prompt + num_chunks * tokens_per_chunk
    stop_C = start_C + tokens_per_chunk
    return Pair(
        record_id=record_id,
        student_ids_S=np.arange(num_tokens, dtype=np.int32),
        is_target_S=np.arange(num_tokens) >= num_prompt,
        teacher_ids_T=np.arange(num_tokens, dtype=np.int32),
        chunks_C4=np.stack([start_C, stop_C, start_C, stop_C], 1),
    )
