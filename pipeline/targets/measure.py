"""How far rebuilt logits are from the true ones, where it matters (method, sections 4 and 6).

Axes: M position, V vocabulary.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

TEACHER_SHARE = 0.3  # lambda of the TIDAL gradient whose error is measured


def kl_at(
    true_MV: Float[Tensor, "M V"], rebuilt_MV: Float[Tensor, "M V"], temperature: float
) -> Float[Tensor, " M"]:
    """KL(true || rebuilt) of each row at a temperature, in nats."""
    true_logp_MV = (true_MV / temperature).log_softmax(-1)
    rebuilt_logp_MV = (rebuilt_MV / temperature).log_softmax(-1)
    return functional.kl_div(rebuilt_logp_MV, true_logp_MV, log_target=True, reduction="none").sum(
        -1
    )


def tidal_gradient_error(
    true_MV: Float[Tensor, "M V"],
    rebuilt_MV: Float[Tensor, "M V"],
    student_MV: Float[Tensor, "M V"],
    *,
    temperature: float,
    share: float = TEACHER_SHARE,
) -> Float[Tensor, " M"]:
    """|g^ - g| / |g| of each row, g = softmax(s / T) - r the direction of TIDAL's gradient in s.

    r = softmax(((1 - share) s + share z) / T) with the true logits z, r^ with the rebuilt ones.
    """

    def target(teacher_MV: Tensor) -> Tensor:
        return (((1 - share) * student_MV + share * teacher_MV) / temperature).softmax(-1)

    true_target_MV = target(true_MV)
    gradient_MV = (student_MV / temperature).softmax(-1) - true_target_MV
    error_MV = target(rebuilt_MV) - true_target_MV
    return error_MV.norm(dim=-1) / gradient_MV.norm(dim=-1).clamp_min(1e-20)
