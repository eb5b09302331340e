"""What is kept of a teacher's answer: one number a chunk, and what is known of each distribution.

Axes: C answered chunk, M answered teacher position, K kept logit, J cached temperature, R sketch
dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage_schemas.examples import Ints

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptTargets:
    """The k largest logits of each answered position, exact normalizers, and the sketch of the row.

    Everything here lives on the first `vocab_size` columns (the shared vocabulary; without one,
    the teacher's own). logsumexp_MJ[:, j] is logsumexp(z / temperatures[j]) over them, in nats.
    gold_logp_M is z[x] - logsumexp(z) of the true token over the teacher's WHOLE vocabulary.
    sketch_MR holds the integers that `pipeline.targets.sketch` decodes with the cache's basis;
    without a sketch R is 0, and without a top k K is 0.
    """

    ids_MK: Ints
    logits_MK: Floats
    logsumexp_MJ: Floats
    gold_logp_M: Floats
    sketch_MR: NDArray[np.int16]
    temperatures: tuple[float, ...]
    vocab_size: int

    def __post_init__(self) -> None:
        num_rows = len(self.gold_logp_M)
        assert self.ids_MK.shape == self.logits_MK.shape, "one id a logit"
        assert len(self.ids_MK) == num_rows, "one row of ids a position"
        assert len(self.sketch_MR) == num_rows, "one sketch a position"
        assert self.logsumexp_MJ.shape == (num_rows, len(self.temperatures)), (
            "one column a temperature"
        )

    def rows(self, start: int, stop: int) -> "KeptTargets":
        """The rows [start, stop)."""
        return KeptTargets(
            ids_MK=self.ids_MK[start:stop],
            logits_MK=self.logits_MK[start:stop],
            logsumexp_MJ=self.logsumexp_MJ[start:stop],
            gold_logp_M=self.gold_logp_M[start:stop],
            sketch_MR=self.sketch_MR[start:stop],
            temperatures=self.temperatures,
            vocab_size=self.vocab_size,
        )

    @staticmethod
    def joined(parts: Sequence["KeptTargets"]) -> "KeptTargets":
        """The rows of all parts, one after the other."""
        return KeptTargets(
            ids_MK=np.concatenate([one.ids_MK for one in parts]),
            logits_MK=np.concatenate([one.logits_MK for one in parts]),
            logsumexp_MJ=np.concatenate([one.logsumexp_MJ for one in parts]),
            gold_logp_M=np.concatenate([one.gold_logp_M for one in parts]),
            sketch_MR=np.concatenate([one.sketch_MR for one in parts]),
            temperatures=parts[0].temperatures,
            vocab_size=parts[0].vocab_size,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseTargets:
    """The teacher's logits in full: a live teacher's, and the oracle of every cached kind."""

    logits_MV: Floats

    @property
    def vocab_size(self) -> int:
        """Columns shared with the student."""
        return self.logits_MV.shape[1]


TokenTargets = KeptTargets | DenseTargets


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """All that one view of one example keeps of the teacher.

    logp_C: log-likelihood in nats of each answered chunk's own text, exact, over the teacher's
    whole vocabulary; chunks in the order of `chunk_C` (indices into Pair.chunks_C4, rising). pass_C
    says which teacher pass answered it. tokens has one row a teacher token of those chunks, in
    order; dense rows come from a live teacher only, and are never stored.
    """

    chunk_C: Ints
    pass_C: NDArray[np.int8]
    logp_C: Floats
    tokens: TokenTargets | None
