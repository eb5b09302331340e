"""The seam between stage 1 and whatever runs the teacher."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.teacher.keep import Keep, KeptRows
from storage_schemas.views import TeacherPass


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """What is kept of the teacher's rows at some answered positions.

    pass_M and position_M say which pass (index in the sequence that was asked) and which teacher
    token each row answers. Row m PREDICTS token position_M[m], whatever the family's shift.
    """

    pass_M: NDArray[np.int64]
    position_M: NDArray[np.int64]
    kept: KeptRows


@runtime_checkable
class TeacherBackend(Protocol):
    """Scores passes. Every answered position comes exactly once, in blocks of bounded size.

    Blocks come in any order of passes, with a pass's positions rising. Equal calls give equal
    bits on one machine. A row that is not finite is given as it is: who asked decides.
    """

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the head lies."""
        ...

    @property
    def head(self) -> nn.Linear:
        """The linear map from hidden states to logits."""
        ...

    def rows(self, passes: Sequence[TeacherPass], keep: Keep) -> Iterator[RowBlock]:
        """What is kept of the answers to all passes."""
        ...

    def close(self) -> None:
        """Lets go of the teacher, and of whatever processes run it."""
        ...
