"""Chunks: the smallest pairs of token spans that cover the same bytes (TIDE section 2.3).

Axes: N tokens of one side, C aligned chunk.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from storage_schemas.examples import Ints

_Offsets = NDArray[np.int64]


def align_chunks(teacher_offsets: ArrayLike, student_offsets: ArrayLike) -> Ints:
    """Chunks [C, 4] of half-open token spans (t0, t1, s0, s1), in order; C = 0 if none is common.

    Offsets [N, 2] are the byte spans of each side's tokens over the same bytes, without gaps. A
    chunk lies between two consecutive token edges that both sides share, so none can be divided.
    What only one side covers, before the first or after the last shared edge, is in no chunk; all
    other tokens are in exactly one. A token of no width belongs to the chunk before it (the first
    one has none before).
    """
    teacher = _checked(teacher_offsets, "teacher")
    student = _checked(student_offsets, "student")
    shared_edges = np.intersect1d(teacher, student)
    if len(shared_edges) < 2:
        return np.zeros((0, 4), dtype=np.int32)
    cuts = [_cuts(side, shared_edges) for side in (teacher, student)]
    columns = [column for cut in cuts for column in (cut[:-1], cut[1:])]
    return np.stack(columns, axis=1).astype(np.int32)


def _cuts(offsets_N2: _Offsets, shared_edges: _Offsets) -> NDArray[np.int64]:
    """For each shared edge, how many tokens lie before it."""
    cuts = np.searchsorted(offsets_N2[:, 1], shared_edges, side="right")
    cuts[0] = np.searchsorted(offsets_N2[:, 0], shared_edges[0], side="left")
    return cuts


def _checked(offsets: ArrayLike, side: str) -> _Offsets:
    array = np.asarray(offsets)
    if array.size == 0:
        return np.zeros((0, 2), dtype=np.int64)
    if array.ndim != 2 or array.shape[1] != 2 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"expected {side} offsets as integers [n, 2], got {array.dtype} {list(array.shape)}"
        )
    offsets_N2 = array.astype(np.int64)
    is_wrong = offsets_N2[:, 0] > offsets_N2[:, 1]
    is_wrong[1:] |= offsets_N2[1:, 0] != offsets_N2[:-1, 1]
    if is_wrong.any():
        at = int(is_wrong.argmax())
        near = offsets_N2[max(at - 1, 0) : at + 1].tolist()
        raise ValueError(
            f"expected {side} offsets to be sorted and without gaps, got {near} at token {at}"
        )
    return offsets_N2
