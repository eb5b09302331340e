"""What stage 2 feeds a student: clean tokens, the stored noise, and the teacher's stored answers.

The student reads rows of tokens; the loss reads the masked positions alone, end to end.

Axes: B row, S position in a row, E example (one view), N masked position, in order of row and
position, C active chunk, M masked aligned position (some of the N), J cached temperature.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage_schemas.examples import Bools, Ints
from storage_schemas.targets import Floats, TokenTargets


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch of views, replayed from a cache or drawn live; it draws no noise of its own.

    example_BS says to which example a token belongs, and is -1 on padding, which attention must not
    see; examples stand in order of row and position. A chunk is active if it is masked in this view
    and free of prompt tokens: chunk_N gives each masked token's chunk, or -1 if it is in none.
    row_M is the masked position (an index into N, rising) that each row of `tokens` is about;
    without token targets both are None.
    """

    record_ids: tuple[str, ...]
    view_E: Ints
    time_E: NDArray[np.float32]
    student_ids_BS: Ints
    example_BS: Ints
    is_target_BS: Bools
    is_masked_BS: Bools
    chunk_N: Ints
    teacher_logp_C: Floats
    example_C: Ints
    row_M: Ints | None
    tokens: TokenTargets | None

    def __post_init__(self) -> None:
        assert (self.row_M is None) == (self.tokens is None), "token rows need positions"
        assert not (self.is_masked_BS & ~self.is_target_BS).any(), "a prompt token is masked"
        assert len(self.chunk_N) == self.is_masked_BS.sum(), "one chunk, or none, a masked token"

    @property
    def num_maskable(self) -> int:
        """Tokens that the noise could have masked: the divisor of the cross-entropy."""
        return int(self.is_target_BS.sum())

    @property
    def example_N(self) -> Ints:
        """The example of each masked position."""
        return self.example_BS[self.is_masked_BS]
