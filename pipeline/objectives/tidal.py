"""TIDAL: a target that moves from student to teacher with training, and away with noise.

TIDE's two-axis interpolation; method, section 4.

Axes: M masked aligned position (flattened over the batch), V vocabulary that both models share.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.objectives.divergence import kl_divergence
from pipeline.objectives.precision import Real, as_column, upcast
from pipeline.objectives.temperature import soften
from pipeline.objectives.term import LossTerm


def tidal_lambda(
    progress: Real | Float[Tensor, "..."],
    time: Real | Float[Tensor, "..."],
    *,
    init: Real = 0.1,
    max: Real = 0.9,
    growth: str = "cosine",
    axes: str = "both",
) -> float | Float[Tensor, "..."]:
    """The teacher's share of the target: a float of floats, a tensor if an argument is one.

    With p = progress in [0, 1] and t = time,

        lambda_train = init + (max - init) g(p),    g(p) = (1 - cos(pi p)) / 2  or  p,

    for growth "cosine" and "linear". By `axes`, "both" is lambda_train (1 - t), "training"
    is lambda_train, and "timestep" is max (1 - t).
    """
    if growth not in ("cosine", "linear"):
        raise ValueError(f"growth: expected 'cosine' or 'linear', got {growth!r}")
    if axes not in ("both", "training", "timestep"):
        raise ValueError(f"axes: expected 'both', 'training' or 'timestep', got {axes!r}")
    grown = (1 - _cos(math.pi * progress)) / 2 if growth == "cosine" else progress
    # an axis that is off still lends its shape: 0 * x
    train = max + 0.0 * progress if axes == "timestep" else init + (max - init) * grown
    return train + 0.0 * time if axes == "training" else train * (1.0 - time)


def midrange_weight(
    time: Real | Float[Tensor, "..."], *, center: Real = 0.5, width: Real = 0.15
) -> float | Float[Tensor, "..."]:
    """exp(-(t - center)^2 / (2 width^2)): 1 at mid noise, small where all or nothing is masked."""
    if not width > 0:
        raise ValueError(f"width: expected a positive number, got {width!r}")
    exponent = -((time - center) ** 2) / (2 * width**2)
    return exponent.exp() if isinstance(exponent, Tensor) else math.exp(exponent)


def tidal_kl(
    student_logits_MV: Float[Tensor, "M V"],
    teacher_logits_MV: Float[Tensor, "M V"],
    *,
    temperature: Real,
    lambda_M: Real | Float[Tensor, ""] | Float[Tensor, " M"],
    weight_M: Real | Float[Tensor, ""] | Float[Tensor, " M"],
) -> LossTerm:
    """w KL(r || softmax(z_s / T)) T^2 a position (nats), towards the interpolated target

        r = softmax(((1 - lambda) z_s + lambda z_t) / T),

    held constant: no gradient passes through it, to either model. The mean is over positions,
    not over weights. A teacher logit of -inf is a token outside r's support, unless lambda is
    0: then r is the student, whatever the teacher says.
    """
    student_logp_MV = soften(student_logits_MV, temperature).log_softmax(-1)
    with torch.no_grad():
        target_MV = _interpolate(student_logits_MV, teacher_logits_MV, lambda_M)
        target_logp_MV = soften(target_MV, temperature).log_softmax(-1)
    kl_M = temperature**2 * kl_divergence(target_logp_MV, student_logp_MV)
    return LossTerm.over_all(kl_M * as_column(weight_M, student_logp_MV).squeeze(-1))


def _interpolate(
    student_MV: Float[Tensor, "M V"],
    teacher_MV: Float[Tensor, "M V"],
    lambda_M: Real | Float[Tensor, ""] | Float[Tensor, " M"],
) -> Float[Tensor, "M V"]:
    """(1 - lambda) student + lambda teacher, where a share of nothing of -inf is nothing."""
    student_MV, teacher_MV = upcast(student_MV), upcast(teacher_MV)
    lambda_M1 = as_column(lambda_M, student_MV)
    # in place: at a real vocabulary every copy of the rows is felt
    mixed_MV = ((1 - lambda_M1) * student_MV).masked_fill_(lambda_M1 == 1, 0.0)
    return mixed_MV.add_((lambda_M1 * teacher_MV).masked_fill_(lambda_M1 == 0, 0.0))


def _cos(x: Real | Float[Tensor, "..."]) -> float | Float[Tensor, "..."]:
    return x.cos() if isinstance(x, Tensor) else math.cos(x)
