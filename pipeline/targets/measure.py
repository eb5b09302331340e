"""How far rebuilt logits are from the true ones, where it matters (method, sections 4 and 6).

Axes: M position, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

TEACHER_SHARE = 0.3  # lambda of the TIDAL gradient whose error is measured
_LEAST_GRADIENT = 0.1  # of the mean


def kl_at(
    true_MV: Float[Tensor, "M V"], rebuilt_MV: Float[Tensor, "M V"], temperature: float
) -> Float[Tensor, " M"]:
    """KL(true || rebuilt) of each row at a temperature, in nats."""
    true_logp_MV = (true_MV / temperature).log_softmax(-1)
    rebuilt_logp_MV = (rebuilt_MV / temperature).log_softmax(-1)
    return functional.kl_div(rebuilt_logp_MV, true_logp_MV, log_target=True, reduction="none").sum(
        -1
    )


@dataclass(frozen=True, slots=True)
class GradientError:
    """Norms of each row: of TIDAL's gradient in the student's logits, and of its error."""

    gradient_M: Float[Tensor, " M"]
    error_M: Float[Tensor, " M"]

    def relative(self) -> Float[Tensor, " M"]:
        """|g^ - g| / |g| of the rows with a gradient to speak of, a tenth of the mean or more.

        Where the student says what the teacher says nothing is taught, and the ratio means nothing.
        """
        is_taught_M = self.gradient_M > _LEAST_GRADIENT * self.gradient_M.mean()
        return self.error_M[is_taught_M] / self.gradient_M[is_taught_M]

    @classmethod
    def joined(cls, parts: Sequence["GradientError"]) -> "GradientError":
        """The rows of all parts."""
        return cls(
            torch.cat([part.gradient_M for part in parts]),
            torch.cat([part.error_M for part in parts]),
        )


def tidal_gradient_error(
    true_MV: Float[Tensor, "M V"],
    rebuilt_MV: Float[Tensor, "M V"],
    student_MV: Float[Tensor, "M V"],
    *,
    temperature: float,
    share: float = TEACHER_SHARE,
) -> GradientError:
    """The error of g = softmax(s / T) - r, the direction of TIDAL's gradient in the student's s.

    r = softmax(((1 - share) s + share z) / T) with the true logits z, r^ with the rebuilt ones.
    """

    def target(teacher_MV: Tensor) -> Tensor:
        return (((1 - share) * student_MV + share * teacher_MV) / temperature).softmax(-1)

    true_target_MV = target(true_MV)
    gradient_MV = (student_MV / temperature).softmax(-1) - true_target_MV
    return GradientError(_norm(gradient_MV), _norm(target(rebuilt_MV) - true_target_MV))


def _norm(rows_MV: Float[Tensor, "M V"]) -> Float[Tensor, " M"]:
    return (rows_MV**2).sum(-1).sqrt()
