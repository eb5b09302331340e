"""Forward and reverse KL between token distributions at a temperature.

TIDE's baselines; method, section 5.

Axes: M masked aligned position (flattened over the batch), V vocabulary that both models share.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.objectives.precision import Real
from pipeline.objectives.temperature import soften
from pipeline.objectives.term import LossTerm


def forward_kl(
    student_logits_MV: Float[Tensor, "M V"],
    teacher_logits_MV: Float[Tensor, "M V"],
    *,
    temperature: Real,
) -> LossTerm:
    """KL(teacher || student) of the distributions softmax(z / T), times T^2, a position (nats).

    A teacher logit of -inf leaves the teacher's support: that token adds nothing to the sum,
    and still takes part in the student's normalisation.
    """
    student_logp_MV = soften(student_logits_MV, temperature).log_softmax(-1)
    teacher_logp_MV = soften(teacher_logits_MV, temperature).log_softmax(-1)
    return LossTerm.over_all(temperature**2 * kl_divergence(teacher_logp_MV, student_logp_MV))


def reverse_kl(
    student_logits_MV: Float[Tensor, "M V"],
    teacher_logits_MV: Float[Tensor, "M V"],
    *,
    temperature: Real,
) -> LossTerm:
    """KL(student || teacher) of the distributions softmax(z / T), times T^2, a position (nats).

    A teacher logit of -inf makes it infinite, as the definition has it, and without a usable
    gradient: it is the caller's to hand over a teacher with full support.
    """
    student_logp_MV = soften(student_logits_MV, temperature).log_softmax(-1)
    teacher_logp_MV = soften(teacher_logits_MV, temperature).log_softmax(-1)
    return LossTerm.over_all(temperature**2 * kl_divergence(student_logp_MV, teacher_logp_MV))


def kl_divergence(
    p_logp_MV: Float[Tensor, "M V"], q_logp_MV: Float[Tensor, "M V"]
) -> Float[Tensor, " M"]:
    """KL(p || q) of each row, from natural logs; 0 log 0 is 0."""
    # masking the difference, which is linear, keeps -inf - q out of value and gradient alike
    gap_MV = torch.where(p_logp_MV > -math.inf, p_logp_MV - q_logp_MV, 0.0)
    return (p_logp_MV.exp() * gap_MV).sum(-1)
