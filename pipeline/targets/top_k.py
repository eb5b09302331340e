"""Sparse top-k targets: the k largest logits, exact normalisers, and the dense rows they stand for.

Method, section 6. Axes: M position, V vocabulary, K kept logit, J temperature.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def keep_top_k(
    logits_MV: Float[Tensor, "M V"], *, k: int
) -> tuple[Int[Tensor, "M K"], Float[Tensor, "M K"]]:
    """Ids and logits of the k largest, in rank order; k at most V."""
    values_MK, ids_MK = logits_MV.topk(min(k, logits_MV.shape[1]), dim=-1)
    return ids_MK, values_MK


def logsumexp_at(
    logits_MV: Float[Tensor, "M V"], temperatures: Sequence[float]
) -> Float[Tensor, "M J"]:
    """logsumexp(z / T) over the given columns, in nats, for each temperature."""
    return torch.stack([(logits_MV / t).logsumexp(-1) for t in temperatures], dim=1)


def expand_top_k(
    ids_MK: Int[Tensor, "M K"],
    logits_MK: Float[Tensor, "M K"],
    logsumexp_M: Float[Tensor, " M"],
    *,
    vocab_size: int,
    temperature: float,
) -> Float[Tensor, "M V"]:
    """Dense logits whose softmax at `temperature` T gives each kept token its exact probability.

    logsumexp_M is logsumexp(z / T). The mass outside the top k is spread evenly over the other
    tokens: each gets T log((exp(lse) - sum_k exp(z_k / T)) / (V - K)), but never more than the
    smallest kept logit, which bounds what was left out. With K = V the rows are the teacher's own.
    """
    num_kept = ids_MK.shape[1]
    if num_kept == vocab_size:
        return torch.empty_like(logits_MK).scatter_(1, ids_MK, logits_MK)
    inside_M = (logits_MK / temperature).logsumexp(-1)
    # log(1 - share inside); rounding may bring the share to 1 or above, where nothing is left
    outside_M = torch.log((-torch.expm1((inside_M - logsumexp_M).clamp(max=0.0))).clamp_min(1e-30))
    tail_M = temperature * (logsumexp_M + outside_M - math.log(vocab_size - num_kept))
    tail_M = torch.minimum(tail_M, logits_MK[:, -1])
    dense_MV = tail_M[:, None].expand(-1, vocab_size).clone()
    return dense_MV.scatter_(1, ids_MK, logits_MK)
