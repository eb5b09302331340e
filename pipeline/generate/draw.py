"""A token for every masked position, and how certain the model is of it.

Axes: N masked position (flattened over the batch), V vocabulary.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.objectives.precision import Real, upcast


def draw_tokens(
    logits_NV: Float[Tensor, "N V"],
    uniform_N: Float[Tensor, " N"],
    *,
    temperature: Real,
    mask_id: int,
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """Token ids, and the probability that the model itself gives each, at temperature 1.

    Temperature 0 takes the likeliest token. Else the token is where the uniform number falls among
    the cumulated probabilities of `softmax(logits / temperature)`, summed in float64: one number a
    position, so that a draw can be keyed, and is the same on every device. The mask token has
    probability 0 throughout.
    """
    is_mask_V = torch.arange(logits_NV.shape[1], device=logits_NV.device) == mask_id
    logits_NV = upcast(logits_NV).masked_fill(is_mask_V, -torch.inf)
    if temperature == 0:
        ids_N = logits_NV.argmax(-1)
    else:
        ids_N = _where_it_falls((logits_NV.double() / temperature).softmax(-1), uniform_N)
    return ids_N, logits_NV.softmax(-1).gather(1, ids_N[:, None])[:, 0]


def _where_it_falls(
    p_NV: Float[Tensor, "N V"], uniform_N: Float[Tensor, " N"]
) -> Int[Tensor, " N"]:
    cumulated_NV = p_NV.cumsum(-1)
    total_N1 = cumulated_NV[:, -1:]
    # below the total, whatever rounding does: the token found then has a probability above 0
    at_N1 = torch.minimum(uniform_N[:, None] * total_N1, total_N1.nextafter(total_N1 * 0))
    return torch.searchsorted(cumulated_NV, at_N1, right=True)[:, 0]
