"""What is kept of a teacher's answer: one number a chunk, and the top of each distribution.

Axes: C answered chunk, M answered teacher position, K kept logit, J cached temperature.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage_schemas.examples import Ints

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopKTargets:
    """The k largest logits of each answered position, in rank order, with exact normalisers.

    Everything here lives on the first `vocab_size` columns (the shared vocabulary; without one,
    the teacher's own). logsumexp_MJ[:, j] is logsumexp(z / temperatures[j]) over them, in nats.
    gold_logp_M is z[x] - logsumexp(z) of the true token over the teacher's WHOLE vocabulary.
    """

    ids_MK: Ints
    logits_MK: Floats
    logsumexp_MJ: Floats
    gold_logp_M: Floats
    temperatures: tuple[float, ...]
    vocab_size: int

    def __post_init__(self) -> None:
        num_rows = len(self.gold_logp_M)
        assert self.ids_MK.shape == self.logits_MK.shape, "one id a logit"
        assert len(self.ids_MK) == num_rows, "one row of ids a position"
        assert self.logsumexp_MJ.shape == (num_rows, len(self.temperatures)), (
            "one column a temperature"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseTargets:
    """The teacher's logits in full: a live teacher's, and the oracle of every cached kind."""

    logits_MV: Floats

    @property
    def vocab_size(self) -> int:
        """Columns shared with the student."""
        return self.logits_MV.shape[1]


TokenTargets = TopKTargets | DenseTargets


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """All that one view of one example keeps of the teacher.

    logp_C: log-likelihood in nats of each answered chunk's own text, exact, over the teacher's
    whole vocabulary; chunks in the order of `chunk_C` (indices into Pair.chunks_C4, rising). pass_C
    says which teacher pass answered it. top_k has one row a teacher token of those chunks, in
    order; dense rows come from a live teacher only, and are never stored.
    """

    chunk_C: Ints
    pass_C: NDArray[np.int8]
    logp_C: Floats
    top_k: TokenTargets | None
