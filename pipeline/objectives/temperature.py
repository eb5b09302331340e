"""Distillation temperature: logits and log-likelihoods divided by T.

Every distillation loss of TIDE reads its inputs so (method, sections 3 to 5).
"""

import math

from jaxtyping import Float
from torch import Tensor

from pipeline.objectives.precision import Real, upcast


def soften(x: Float[Tensor, "..."], temperature: Real) -> Float[Tensor, "..."]:
    """`x / temperature`, divided in float32 or wider."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: expected a positive finite number, got {temperature!r}")
    return upcast(x) / temperature
