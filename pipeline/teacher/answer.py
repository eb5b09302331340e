"""Passes in, targets out: what is kept of the teacher for each view, row block by row block.

Axes: M answered teacher position of all views, C answered chunk, K kept logit, J temperature.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.diffusion.compdemo import teacher_passes
from pipeline.teacher.backend import RowBlock, TeacherBackend
from pipeline.teacher.keep import Keep, KeepHidden, KeepTokens
from storage_schemas.errors import TeacherError
from storage_schemas.examples import Pair
from storage_schemas.targets import DenseTargets, KeptTargets, Targets
from storage_schemas.views import Corruption, TeacherPass


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepDense:
    """Keep the first `vocab_size` logits as they are: a live teacher, for comparisons."""

    vocab_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NotFinite:
    """In place of a view's targets: at this teacher token the answer is NaN or infinite."""

    position: int


def answer_views(
    backend: TeacherBackend,
    views: Sequence[tuple[Pair, Corruption]],
    *,
    mask_id: int,
    seed: int,
    demo_ratio: float | None,
    keep: Keep | KeepDense,
) -> list[Targets | NotFinite]:
    """The teacher's targets for each view, in order; what one call computes is one shard's.

    A chunk's log-likelihood is the sum of its tokens' own, over the teacher's whole vocabulary.
    """
    passes_of = [
        teacher_passes(pair, corruption, mask_id=mask_id, seed=seed, demo_ratio=demo_ratio)
        for pair, corruption in views
    ]
    view_of_pass = np.repeat(np.arange(len(views)), [len(passes) for passes in passes_of])
    rows = _Rows(views, keep, backend)
    wanted = KeepHidden() if isinstance(keep, KeepDense) else keep
    for block in backend.rows([one for passes in passes_of for one in passes], wanted):
        rows.add(view_of_pass[block.pass_M], block)
    return [rows.targets(v, passes) for v, passes in enumerate(passes_of)]


def all_finite(
    views: Sequence[tuple[Pair, Corruption]], answers: Sequence[Targets | NotFinite]
) -> list[Targets]:
    """The answers, where all are targets; else the error that names the first record without."""
    targets: list[Targets] = []
    for (pair, _), answer in zip(views, answers, strict=True):
        if isinstance(answer, NotFinite):
            raise TeacherError(
                f"record {pair.record_id}: the teacher's answer at token {answer.position} is not "
                f"finite; try another dtype, or leave this record out"
            )
        targets.append(answer)
    return targets


class _Rows:
    """One row a masked teacher token of every view, filled in whatever order the blocks come."""

    def __init__(
        self,
        views: Sequence[tuple[Pair, Corruption]],
        keep: Keep | KeepDense,
        backend: TeacherBackend,
    ) -> None:
        self._views = views
        self._keep = keep
        self._backend = backend
        counts = [int(corruption.is_masked_T.sum()) for _, corruption in views]
        self._start = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        lengths = [len(pair.teacher_ids_T) for pair, _ in views]
        self._offset = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        is_masked = np.concatenate([np.zeros(0, bool), *(c.is_masked_T for _, c in views)])
        self._row = is_masked.cumsum() - 1  # of each teacher token of all views, end to end
        total = int(self._start[-1])
        self._gold_logp = np.zeros(total, np.float32)
        self._is_there = np.zeros(total, np.bool_)
        width = keep.k if isinstance(keep, KeepTokens) else 0
        num_temperatures = len(keep.temperatures) if isinstance(keep, KeepTokens) else 0
        self._ids = np.zeros((total, width), np.int32)
        self._logits = np.zeros((total, width), np.float32)
        self._logsumexp = np.zeros((total, num_temperatures), np.float32)
        basis = keep.basis if isinstance(keep, KeepTokens) else None
        rank = 0 if basis is None else basis.rank
        self._sketch = np.zeros((total, rank), np.int16)
        columns = keep.vocab_size if isinstance(keep, KeepDense) else 0
        self._dense = np.zeros((total, columns), np.float32)

    def add(self, view_M: NDArray[np.int64], block: RowBlock) -> None:
        """Put a block's rows where they belong."""
        row_M, kept = self._row[self._offset[view_M] + block.position_M], block.kept
        self._gold_logp[row_M] = kept.gold_logp_M
        self._is_there[row_M] = True
        if isinstance(self._keep, KeepTokens):
            self._ids[row_M] = kept.ids_MK
            self._logits[row_M] = kept.logits_MK
            self._logsumexp[row_M] = kept.logsumexp_MJ
            self._sketch[row_M] = kept.sketch_MR
        elif isinstance(self._keep, KeepDense):
            head = self._backend.head
            hidden_MH = torch.from_numpy(kept.hidden_MH).to(self._backend.device, head.weight.dtype)
            with torch.inference_mode():
                logits_MV = head(hidden_MH)[:, : self._keep.vocab_size].float()
            self._dense[row_M] = logits_MV.cpu().numpy()

    def targets(self, view: int, passes: Sequence[TeacherPass]) -> Targets | NotFinite:
        """What is kept of one view, or where the teacher's answer to it is not finite."""
        pair, corruption = self._views[view]
        rows = slice(int(self._start[view]), int(self._start[view + 1]))
        chunk_C = np.flatnonzero(corruption.is_masked_C).astype(np.int32)
        pass_C = np.full(len(chunk_C), -1, np.int8)
        for number, one in enumerate(passes):
            pass_C[one.is_answered_C[chunk_C]] = number
        assert (pass_C >= 0).all(), "every masked chunk is answered by a pass"
        gold_logp_M = self._gold_logp[rows]
        assert self._is_there[rows].all(), "the backend left an answered position out"
        if not np.isfinite(gold_logp_M).all():
            bad = int(np.flatnonzero(~np.isfinite(gold_logp_M))[0])
            return NotFinite(position=int(np.flatnonzero(corruption.is_masked_T)[bad]))
        size_C = pair.chunks_C4[chunk_C, 1] - pair.chunks_C4[chunk_C, 0]
        first_C = np.cumsum(size_C) - size_C
        sums = np.add.reduceat(gold_logp_M.astype(np.float64), first_C) if len(chunk_C) else ()
        return Targets(
            chunk_C=chunk_C,
            pass_C=pass_C,
            logp_C=np.asarray(sums, np.float32),
            tokens=self._tokens(rows),
        )

    def _tokens(self, rows: slice) -> KeptTargets | DenseTargets | None:
        if isinstance(self._keep, KeepTokens):
            return KeptTargets(
                ids_MK=self._ids[rows],
                logits_MK=self._logits[rows],
                logsumexp_MJ=self._logsumexp[rows],
                gold_logp_M=self._gold_logp[rows],
                sketch_MR=self._sketch[rows],
                temperatures=self._keep.temperatures,
                vocab_size=self._keep.vocab_size,
            )
        if isinstance(self._keep, KeepDense):
            return DenseTargets(logits_MV=self._dense[rows])
        return None
