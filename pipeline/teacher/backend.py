"""The seam between stage 1 and whatever runs the teacher."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from storage_schemas.views import TeacherPass


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """Logits, float32, over the teacher's whole vocabulary at some answered positions.

    They are the head's of hidden_MH, the last hidden states after the final norm.

    pass_M and position_M say which pass (index in the sequence that was asked) and which teacher
    token each row answers. Row m of the logits PREDICTS token position_M[m], whatever the family's
    shift.
    """

    pass_M: NDArray[np.int64]
    position_M: NDArray[np.int64]
    hidden_MH: Float[Tensor, "M H"]
    logits_MV: Float[Tensor, "M V"]


@runtime_checkable
class TeacherBackend(Protocol):
    """Scores passes. Every answered position comes exactly once, in blocks of bounded size.

    Blocks come in any order of passes, with a pass's positions rising. Equal calls give equal
    bits on one machine.
    """

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the rows come to lie."""
        ...

    @property
    def head(self) -> nn.Linear:
        """The linear map from hidden states to logits."""
        ...

    def rows(self, passes: Sequence[TeacherPass]) -> Iterator[RowBlock]:
        """The answers to all passes."""
        ...
