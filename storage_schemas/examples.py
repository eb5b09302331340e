"""What is known of an example before any noise: its messages, its two tokenizations, its chunks.

Axes: S student position, T teacher position, C aligned chunk.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One conversation; its last message is the assistant's response that is learned.

    `where` says where it was read (`train.jsonl:17`), for messages to people only.
    """

    id: str
    messages: tuple[Message, ...]
    where: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One example under both tokenizers, cut to both length limits, with its aligned chunks.

    student_ids_S: the prompt, the response, and EOS up to a whole number of blocks.
    is_target_S: the maskable positions: response, end of turn, EOS filling; never the prompt.
    teacher_ids_T: ends at the last aligned token (block-wise teachers: EOS up to a whole block).
    chunks_C4: rows (t0, t1, s0, s1), half-open, in order and disjoint; a chunk covers the same
    bytes of the response on both sides and contains no prompt token.
    """

    record_id: str
    student_ids_S: Ints
    is_target_S: Bools
    teacher_ids_T: Ints
    chunks_C4: Ints

    def __post_init__(self) -> None:
        assert self.is_target_S.shape == self.student_ids_S.shape, "one target flag a student token"
        assert self.chunks_C4.shape == (len(self.chunks_C4), 4), "chunks are [C, 4]"
        if len(self.chunks_C4):
            _, t1, _, s1 = self.chunks_C4[-1].tolist()
            assert t1 <= len(self.teacher_ids_T), "a chunk ends after the teacher's last token"
            assert s1 <= len(self.student_ids_S), "a chunk ends after the student's last token"
