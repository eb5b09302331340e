"""What stage 2 feeds a student: clean tokens, the stored noise, and the teacher's stored answers.

Axes: B example, S student position, C chunk (padded), M masked aligned position (flattened over the
batch, in order of example and position), K kept logit, V vocabulary, J cached temperature.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage_schemas.examples import Bools, Ints
from storage_schemas.targets import Floats, TokenTargets


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch of views, replayed from a cache or drawn live; it draws no noise of its own.

    is_real_BS is False on batch padding, which attention must not see. chunk_BS gives the chunk
    index (a column of is_active_BC) of each student token in an active chunk, else -1. Active =
    masked in this view, and free of prompt tokens. token_position_M = b * S + s of each row of
    `tokens`; without token targets both are None.
    """

    record_ids: tuple[str, ...]
    view_B: Ints
    student_ids_BS: Ints
    is_real_BS: Bools
    is_target_BS: Bools
    is_masked_BS: Bools
    time_B: NDArray[np.float32]
    chunk_BS: Ints
    is_active_BC: Bools
    teacher_logp_BC: Floats
    token_position_M: Ints | None
    tokens: TokenTargets | None

    def __post_init__(self) -> None:
        assert (self.token_position_M is None) == (self.tokens is None), "token rows need positions"
        assert not (self.is_masked_BS & ~self.is_target_BS).any(), "a prompt token is masked"

    @property
    def num_maskable(self) -> int:
        """Tokens that the noise could have masked: the divisor of the cross-entropy."""
        return int(self.is_target_BS.sum())
