"""Views to one padded batch, as NumPy arrays.

Axes: B example, S student position, C chunk, M masked aligned position (flattened).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from storage_schemas.batch import Batch
from storage_schemas.examples import Ints, Pair
from storage_schemas.targets import DenseTargets, KeptTargets, Targets, TokenTargets
from storage_schemas.views import Corruption


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One training example: text, noise, and the teacher's answer to it."""

    pair: Pair
    corruption: Corruption
    targets: Targets


def collate(views: Sequence[View], *, has_tokens: bool) -> Batch:
    """A batch of views, padded on the right to the longest.

    With `has_tokens` each chunk must be one token on either side (a shared tokenizer), and the
    token targets come along; a cross-tokenizer cache's are for looking only.
    """
    shape = (len(views), max(len(view.pair.student_ids_S) for view in views))
    num_active = max(1, *(len(view.targets.chunk_C) for view in views), 1)
    ids_BS = np.zeros(shape, np.int32)
    is_real_BS, is_target_BS, is_masked_BS = (np.zeros(shape, np.bool_) for _ in range(3))
    chunk_BS = np.full(shape, -1, np.int32)
    is_active_BC = np.zeros((len(views), num_active), np.bool_)
    logp_BC = np.zeros((len(views), num_active), np.float32)
    positions: list[Ints] = []
    for b, view in enumerate(views):
        pair, answered_C = view.pair, view.targets.chunk_C
        length = len(pair.student_ids_S)
        ids_BS[b, :length] = pair.student_ids_S
        is_real_BS[b, :length] = True
        is_target_BS[b, :length] = pair.is_target_S
        is_masked_BS[b, :length] = view.corruption.is_masked_S
        spans_C2 = pair.chunks_C4[answered_C, 2:]
        size_C = spans_C2[:, 1] - spans_C2[:, 0]
        position = _positions(spans_C2)
        chunk_BS[b, position] = np.repeat(np.arange(len(answered_C)), size_C)
        is_active_BC[b, : len(answered_C)] = True
        logp_BC[b, : len(answered_C)] = view.targets.logp_C
        positions.append(np.int32(b * shape[1]) + position)
    return Batch(
        record_ids=tuple(view.pair.record_id for view in views),
        view_B=np.array([view.corruption.view for view in views], np.int32),
        student_ids_BS=ids_BS,
        is_real_BS=is_real_BS,
        is_target_BS=is_target_BS,
        is_masked_BS=is_masked_BS,
        time_B=np.array([view.corruption.time for view in views], np.float32),
        chunk_BS=chunk_BS,
        is_active_BC=is_active_BC,
        teacher_logp_BC=logp_BC,
        token_position_M=np.concatenate(positions).astype(np.int32) if has_tokens else None,
        tokens=_joined([view.targets.tokens for view in views]) if has_tokens else None,
    )


def _positions(spans_C2: Ints) -> Ints:
    """Every position of half-open spans, one span after the other."""
    size_C = spans_C2[:, 1] - spans_C2[:, 0]
    stop_C = size_C.cumsum()  # where each span ends among all positions
    total = int(stop_C[-1]) if len(stop_C) else 0
    return np.arange(total, dtype=np.int32) + np.repeat(
        (spans_C2[:, 1] - stop_C).astype(np.int32), size_C
    )


def _joined(targets: Sequence[TokenTargets | None]) -> TokenTargets:
    """The rows of all views, one after the other."""
    kept = [one for one in targets if isinstance(one, KeptTargets)]
    dense = [one for one in targets if isinstance(one, DenseTargets)]
    assert len(targets) in (len(kept), len(dense)), "every view needs token targets of one kind"
    if dense:
        return DenseTargets(logits_MV=np.concatenate([one.logits_MV for one in dense]))
    return KeptTargets.joined(kept)
