"""Masks for one view of one example, chunk-consistent over both tokenizers (TIDE section 2).

Axes: S student position, T teacher position, C aligned chunk.
"""

import numpy as np

from pipeline.diffusion.rng import uniforms_for
from pipeline.diffusion.schedule import Times, diffusion_time
from storage_schemas.examples import Bools, Ints, Pair
from storage_schemas.views import Corruption


def is_covered(spans_C2: Ints, is_chosen_C: Bools, length: int) -> Bools:
    """Positions inside any chosen half-open span [start, stop); spans are disjoint."""
    edges = np.zeros(length + 1, dtype=np.int32)
    np.add.at(edges, spans_C2[is_chosen_C, 0], 1)
    np.add.at(edges, spans_C2[is_chosen_C, 1], -1)
    return edges[:-1].cumsum() > 0


def has_any(spans_C2: Ints, is_set_S: Bools) -> Bools:
    """For each span, whether any position in it is set."""
    before = np.concatenate(([0], is_set_S.cumsum()))
    return before[spans_C2[:, 1]] > before[spans_C2[:, 0]]


def draw_mask(is_target_S: Bools, time: float, *, seed: int, record_id: str, view: int) -> Bools:
    """M[i] ~ Bernoulli(time), independently over the maskable positions."""
    uniform_S = uniforms_for(seed, record_id, view, "mask", len(is_target_S))
    return (uniform_S < time) & is_target_S


def corrupt(
    pair: Pair, *, seed: int, view: int, eps: float, times: Times = "stratified"
) -> Corruption:
    """The noise of one view: a time, independent masks, then chunks completed on both sides.

    A chunk with any masked student token has all its tokens masked, student's and teacher's. After
    completion a token of an n-token chunk is masked with probability 1 - (1 - t)^n.
    """
    time = diffusion_time(seed, pair.record_id, view, eps=eps, times=times)
    drawn_S = draw_mask(pair.is_target_S, time, seed=seed, record_id=pair.record_id, view=view)
    student_C2, teacher_C2 = pair.chunks_C4[:, 2:], pair.chunks_C4[:, :2]
    is_masked_C = has_any(student_C2, drawn_S)
    return Corruption(
        view=view,
        time=time,
        is_masked_S=drawn_S | is_covered(student_C2, is_masked_C, len(drawn_S)),
        is_masked_T=is_covered(teacher_C2, is_masked_C, len(pair.teacher_ids_T)),
        is_masked_C=is_masked_C,
    )
