"""Passes in, targets out: what is kept of the teacher for each view, row block by row block.

Axes: M answered teacher position of all views, C answered chunk, K kept logit, J temperature.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.diffusion.compdemo import teacher_passes
from pipeline.objectives.likelihood import gold_logp
from pipeline.targets.sketch import SketchEncoder
from pipeline.targets.top_k import keep_top_k, logsumexp_at
from pipeline.teacher.backend import RowBlock, TeacherBackend
from storage_schemas.errors import TeacherError
from storage_schemas.examples import Pair
from storage_schemas.targets import DenseTargets, KeptTargets, Targets
from storage_schemas.views import Corruption, TeacherPass


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepChunks:
    """Keep one log-likelihood a chunk, and nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepTokens:
    """Of the first `vocab_size` logits: the k largest, logsumexps at `temperatures`, a sketch."""

    k: int
    temperatures: tuple[float, ...]
    vocab_size: int
    sketch: SketchEncoder | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepDense:
    """Keep the first `vocab_size` logits as they are: a live teacher, for comparisons."""

    vocab_size: int


Keep = KeepChunks | KeepTokens | KeepDense


def answer_views(
    backend: TeacherBackend,
    views: Sequence[tuple[Pair, Corruption]],
    *,
    mask_id: int,
    seed: int,
    demo_ratio: float | None,
    keep: Keep,
) -> list[Targets]:
    """The teacher's targets for each view, in order; what one call computes is one shard's.

    A chunk's log-likelihood is the sum of its tokens' own, over the teacher's whole vocabulary.
    """
    passes_of = [
        teacher_passes(pair, corruption, mask_id=mask_id, seed=seed, demo_ratio=demo_ratio)
        for pair, corruption in views
    ]
    view_of_pass = np.repeat(np.arange(len(views)), [len(passes) for passes in passes_of])
    rows = _Rows(views, keep)
    for block in backend.rows([one for passes in passes_of for one in passes]):
        rows.add(view_of_pass[block.pass_M], block)
    return [rows.targets(v, passes) for v, passes in enumerate(passes_of)]


class _Rows:
    """One row a masked teacher token of every view, filled in whatever order the blocks come."""

    def __init__(self, views: Sequence[tuple[Pair, Corruption]], keep: Keep) -> None:
        self._views = views
        self._keep = keep
        counts = [int(corruption.is_masked_T.sum()) for _, corruption in views]
        self._start = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        lengths = [len(pair.teacher_ids_T) for pair, _ in views]
        self._offset = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        nothing = np.zeros(0, np.int32)
        self._token_ids = np.concatenate([nothing, *(pair.teacher_ids_T for pair, _ in views)])
        is_masked = np.concatenate([np.zeros(0, bool), *(c.is_masked_T for _, c in views)])
        self._row = is_masked.cumsum() - 1  # of each teacher token of all views, end to end
        total = int(self._start[-1])
        self._gold_logp = np.full(total, np.nan, np.float32)
        width = keep.k if isinstance(keep, KeepTokens) else 0
        num_temperatures = len(keep.temperatures) if isinstance(keep, KeepTokens) else 0
        self._ids = np.zeros((total, width), np.int32)
        self._logits = np.zeros((total, width), np.float32)
        self._logsumexp = np.zeros((total, num_temperatures), np.float32)
        sketch = keep.sketch if isinstance(keep, KeepTokens) else None
        rank = 0 if sketch is None else sketch.encode_HR.shape[1]
        self._sketch = np.zeros((total, rank), np.int16)
        columns = keep.vocab_size if isinstance(keep, KeepDense) else 0
        self._dense = np.zeros((total, columns), np.float32)

    def add(self, view_M: NDArray[np.int64], block: RowBlock) -> None:
        """Keep what is wanted of a block of rows."""
        logits_MV = block.logits_MV
        token_M = self._offset[view_M] + block.position_M
        row_M = self._row[token_M]
        gold_M = torch.from_numpy(self._token_ids[token_M]).long()
        logp_M = gold_logp(logits_MV, gold_M.to(logits_MV.device))
        if not logp_M.isfinite().all():
            bad = int((~logp_M.isfinite()).nonzero()[0])
            raise TeacherError(
                f"record {self._views[view_M[bad]][0].record_id}: the teacher's answer at token "
                f"{block.position_M[bad]} is not finite; try another dtype, or leave this record "
                f"out"
            )
        self._gold_logp[row_M] = logp_M.cpu().numpy()
        if isinstance(self._keep, KeepTokens):
            shared_MV = logits_MV[:, : self._keep.vocab_size]
            ids_MK, kept_MK = keep_top_k(shared_MV, k=self._keep.k)
            self._ids[row_M] = ids_MK.cpu().numpy()
            self._logits[row_M] = kept_MK.cpu().numpy()
            self._logsumexp[row_M] = logsumexp_at(shared_MV, self._keep.temperatures).cpu().numpy()
            if self._keep.sketch is not None:
                sketch_MR = self._keep.sketch.encode(block.hidden_MH, shared_MV)
                self._sketch[row_M] = sketch_MR.cpu().numpy()
        elif isinstance(self._keep, KeepDense):
            self._dense[row_M] = logits_MV[:, : self._keep.vocab_size].cpu().numpy()

    def targets(self, view: int, passes: Sequence[TeacherPass]) -> Targets:
        """What is kept of one view."""
        pair, corruption = self._views[view]
        rows = slice(int(self._start[view]), int(self._start[view + 1]))
        chunk_C = np.flatnonzero(corruption.is_masked_C).astype(np.int32)
        pass_C = np.full(len(chunk_C), -1, np.int8)
        for number, one in enumerate(passes):
            pass_C[one.is_answered_C[chunk_C]] = number
        assert (pass_C >= 0).all(), "every masked chunk is answered by a pass"
        gold_logp_M = self._gold_logp[rows]
        assert np.isfinite(gold_logp_M).all(), "the backend left an answered position out"
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
