"""CompDemo: two teacher passes, each shown one half of what is masked (TIDE section 2.2).

Axes: T teacher position, C aligned chunk.
"""

import numpy as np

from pipeline.diffusion.corrupt import is_covered
from pipeline.diffusion.rng import uniforms_for
from storage_schemas.examples import Bools, Pair
from storage_schemas.views import Corruption, TeacherPass


def split_mask(
    is_masked_C: Bools, *, ratio: float, seed: int, record_id: str, view: int
) -> tuple[Bools, Bools]:
    """The masked chunks as two disjoint halves (A, B); a chunk is in A with probability `ratio`."""
    uniform_C = uniforms_for(seed, record_id, view, "compdemo", len(is_masked_C))
    is_first_C = uniform_C < ratio
    return is_masked_C & is_first_C, is_masked_C & ~is_first_C


def teacher_passes(
    pair: Pair, corruption: Corruption, *, mask_id: int, seed: int, demo_ratio: float | None
) -> tuple[TeacherPass, ...]:
    """The teacher's inputs for one view: one pass, or with a `demo_ratio` the two of CompDemo.

    Pass 1 shows A and masks, hence answers, B; pass 2 the other way round. The answers partition
    the masked chunks. A pass may have nothing to answer.
    """
    halves = [corruption.is_masked_C]
    if demo_ratio is not None:
        is_in_a_C, is_in_b_C = split_mask(
            corruption.is_masked_C,
            ratio=demo_ratio,
            seed=seed,
            record_id=pair.record_id,
            view=corruption.view,
        )
        halves = [is_in_b_C, is_in_a_C]
    passes: list[TeacherPass] = []
    for is_answered_C in halves:
        is_answered_T = is_covered(pair.chunks_C4[:, :2], is_answered_C, len(pair.teacher_ids_T))
        noised_ids_T = np.where(is_answered_T, np.int32(mask_id), pair.teacher_ids_T)
        passes.append(
            TeacherPass(
                clean_ids_T=pair.teacher_ids_T,
                noised_ids_T=noised_ids_T,
                is_answered_T=is_answered_T,
                is_answered_C=is_answered_C,
            )
        )
    return tuple(passes)
