"""Views to one padded batch, as NumPy arrays.

Axes: B row, S student position, E example, N masked position (flattened), C active chunk, M masked
aligned position (flattened).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.stream.pack import pack, side_by_side
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


def collate(views: Sequence[View], *, has_tokens: bool, capacity: int | None = None) -> Batch:
    """A batch of views, one a row, padded on the right to the longest.

    With `capacity` short views share rows of at most that many tokens; a batch's examples then
    stand in order of row and place, and no longer in that of `views`. With `has_tokens` each chunk
    must be one token on either side (a shared tokenizer), and the token targets come along; a
    cross-tokenizer cache's are for looking only.
    """
    lengths = [len(view.pair.student_ids_S) for view in views]
    packing = side_by_side(lengths) if capacity is None else pack(lengths, capacity)
    order = packing.order_E
    views = [views[e] for e in order]
    shape = (packing.num_rows, packing.row_length)
    ids_BS, chunk_BS = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
    example_BS = np.full(shape, -1, np.int32)
    is_target_BS, is_masked_BS = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    positions: list[Ints] = []  # of the chunks' tokens, among all cells
    num_chunks = 0
    for e, view in enumerate(views):
        row, start = int(packing.row_E[order[e]]), int(packing.start_E[order[e]])
        cells = row, slice(start, start + len(view.pair.student_ids_S))
        ids_BS[cells] = view.pair.student_ids_S
        example_BS[cells] = e
        is_target_BS[cells] = view.pair.is_target_S
        is_masked_BS[cells] = view.corruption.is_masked_S
        spans_C2 = view.pair.chunks_C4[view.targets.chunk_C, 2:]
        position = _positions(spans_C2) + np.int32(row * shape[1] + start)
        chunk_C = np.arange(num_chunks, num_chunks + len(spans_C2))
        chunk_BS.ravel()[position] = np.repeat(chunk_C, spans_C2[:, 1] - spans_C2[:, 0])
        num_chunks += len(spans_C2)
        positions.append(position)
    rank_P = is_masked_BS.ravel().cumsum(dtype=np.int32) - 1  # cell -> masked position
    return Batch(
        record_ids=tuple(view.pair.record_id for view in views),
        view_E=np.array([view.corruption.view for view in views], np.int32),
        time_E=np.array([view.corruption.time for view in views], np.float32),
        student_ids_BS=ids_BS,
        example_BS=example_BS,
        is_target_BS=is_target_BS,
        is_masked_BS=is_masked_BS,
        chunk_N=chunk_BS[is_masked_BS],
        teacher_logp_C=np.concatenate([view.targets.logp_C for view in views]),
        example_C=np.repeat(
            np.arange(len(views), dtype=np.int32), [len(view.targets.chunk_C) for view in views]
        ),
        row_M=rank_P[np.concatenate(positions)] if has_tokens else None,
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
