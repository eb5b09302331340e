"""CALM: chunk-level Bernoulli cross-entropy across tokenizers, forward, reverse, with TIDAL.

TIDE section 2.3; method, sections 3 and 4.

Axes: B batch, C chunk (one aligned span of text, the same in both tokenizers). The inputs are
natural logs of the probability of the chunk's own text, the teacher's one number a chunk.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.objectives.precision import Real, as_column
from pipeline.objectives.temperature import soften
from pipeline.objectives.term import LossTerm

_EPS = 1e-7  # the authors' clamp; float32 still tells 1 - 1e-7 from 1


def reverse_calm(
    student_logp_BC: Float[Tensor, "B C"],
    teacher_logp_BC: Float[Tensor, "B C"],
    is_active_BC: Bool[Tensor, "B C"],
    *,
    temperature: Real,
) -> LossTerm:
    """Cross-entropy H(s, t) of the student's chunk probability s under the teacher's t.

    With s = exp(student_logp / temperature), and t likewise, each active chunk adds

        -(s log t + (1 - s) log(1 - t)),

    whose derivative in s, log((1 - t) / t), depends on the teacher alone. It is bounded by the
    clamp of t, and a student chunk that is itself clamped gets none.
    """
    s_BC = _chunk_probability(student_logp_BC, is_active_BC, temperature)
    t_BC = _chunk_probability(teacher_logp_BC, is_active_BC, temperature)
    return LossTerm.over(_cross_entropy(s_BC, t_BC), is_active_BC)


def calm(
    student_logp_BC: Float[Tensor, "B C"],
    teacher_logp_BC: Float[Tensor, "B C"],
    is_active_BC: Bool[Tensor, "B C"],
    *,
    temperature: Real,
) -> LossTerm:
    """Cross-entropy H(t, s) of the teacher's chunk probability t under the student's s.

    With s and t as in `reverse_calm`, each active chunk adds

        -(t log s + (1 - t) log(1 - s)).
    """
    s_BC = _chunk_probability(student_logp_BC, is_active_BC, temperature)
    t_BC = _chunk_probability(teacher_logp_BC, is_active_BC, temperature)
    return LossTerm.over(_cross_entropy(t_BC, s_BC), is_active_BC)


def calm_tidal(
    student_logp_BC: Float[Tensor, "B C"],
    teacher_logp_BC: Float[Tensor, "B C"],
    is_active_BC: Bool[Tensor, "B C"],
    *,
    temperature: Real,
    lambda_B: Real | Float[Tensor, ""] | Float[Tensor, " B"],
    weight_B: Real | Float[Tensor, ""] | Float[Tensor, " B"],
) -> LossTerm:
    """`calm` towards (1 - lambda) s + lambda t, held constant, times the row's weight.

    The mean is over active chunks, not over weights.
    """
    s_BC = _chunk_probability(student_logp_BC, is_active_BC, temperature)
    t_BC = _chunk_probability(teacher_logp_BC, is_active_BC, temperature)
    lambda_B1 = as_column(lambda_B, s_BC)
    target_BC = ((1 - lambda_B1) * s_BC + lambda_B1 * t_BC).detach().clamp(_EPS, 1 - _EPS)
    value_BC = as_column(weight_B, s_BC) * _cross_entropy(target_BC, s_BC)
    return LossTerm.over(value_BC, is_active_BC)


def is_clamped(logp_BC: Float[Tensor, "B C"], *, temperature: Real) -> Bool[Tensor, "B C"]:
    """Whether a chunk's exp(logp / T) lies outside the clamp.

    A student's then gets no gradient, a teacher's gives the largest that there is.
    """
    p_BC = soften(logp_BC, temperature).exp()
    return (p_BC < _EPS) | (p_BC > 1 - _EPS)


def _chunk_probability(
    logp_BC: Float[Tensor, "B C"], is_active_BC: Bool[Tensor, "B C"], temperature: Real
) -> Float[Tensor, "B C"]:
    """exp(logp / T), clamped. What stands in an inactive chunk, NaN too, is read as logp = 0."""
    logp_BC = torch.where(is_active_BC, logp_BC, 0.0)
    return soften(logp_BC, temperature).exp().clamp(_EPS, 1 - _EPS)


def _cross_entropy(p_BC: Float[Tensor, "B C"], q_BC: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    """H(p, q) of two Bernoulli probabilities strictly inside (0, 1), in nats."""
    return -(p_BC * q_BC.log() + (1 - p_BC) * (-q_BC).log1p())
