"""Which of a step's tokens stay: the others are masked again, and drawn anew in the next step.

Axes: N position of one block that is still masked.
"""

import numpy as np
from jaxtyping import Bool, Float

from pipeline.objectives.precision import Real


def tokens_per_step(num_masked: int, *, block_size: int, steps_per_block: int) -> tuple[int, ...]:
    """How many tokens each step of a block takes, as evenly as can be, larger shares first.

    A whole block takes `steps_per_block` steps. One with fewer masked tokens keeps that pace, so it
    takes fewer steps: their share of the whole block's, rounded up.
    """
    num_steps = -(-num_masked * steps_per_block // block_size)
    if num_steps == 0:
        return ()
    share, rest = divmod(num_masked, num_steps)
    return (share + 1,) * rest + (share,) * (num_steps - rest)


def choose(
    score_N: Float[np.ndarray, " N"],
    confidence_N: Float[np.ndarray, " N"],
    *,
    quota: int,
    threshold: Real | None,
) -> Bool[np.ndarray, " N"]:
    """True for the `quota` tokens of the highest score, and for each one as certain as `threshold`.

    The score is the confidence itself (low-confidence remasking) or random numbers (random
    remasking). Of equal scores the earlier position comes first.
    """
    is_taken_N = np.zeros(len(score_N), dtype=np.bool_)
    is_taken_N[np.argsort(-score_N, kind="stable")[:quota]] = True
    return is_taken_N if threshold is None else is_taken_N | (confidence_N >= threshold)
