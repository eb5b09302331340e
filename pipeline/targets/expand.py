"""Stored targets as the dense rows that they stand for: one function a kind of tail.

Method, section 6. Axes: M position, K kept logit, R sketch dimension, V vocabulary.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.targets.sketch import SketchDecoder


def expand_even(
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
    outside_M = _outside(logits_MK, logsumexp_M, temperature)
    tail_M = temperature * (outside_M - math.log(vocab_size - num_kept))
    tail_M = torch.minimum(tail_M, logits_MK[:, -1])
    dense_MV = tail_M[:, None].expand(-1, vocab_size).clone()
    return dense_MV.scatter_(1, ids_MK, logits_MK)


def expand_mean_logit(
    ids_MK: Int[Tensor, "M K"],
    logits_MK: Float[Tensor, "M K"],
    logsumexp_M: Float[Tensor, " M"],
    base_V: Float[Tensor, " V"],
    *,
    temperature: float,
) -> Float[Tensor, "M V"]:
    """As `expand_even`, with the outside mass shaped like the mean logit m: m_v + c a token.

    c is such that the mass is right; no token gets more than the smallest kept logit.
    """
    if ids_MK.shape[1] == len(base_V):
        return torch.empty_like(logits_MK).scatter_(1, ids_MK, logits_MK)
    outside_M = _outside(logits_MK, logsumexp_M, temperature)
    dense_MV = base_V.expand(len(ids_MK), -1).scatter(1, ids_MK, -math.inf)
    shift_M = temperature * (outside_M - (dense_MV / temperature).logsumexp(-1))
    dense_MV = torch.minimum(dense_MV + shift_M[:, None], logits_MK[:, -1:])
    return dense_MV.scatter_(1, ids_MK, logits_MK)


def expand_sketch(
    decoder: SketchDecoder,
    sketch_MR: Int[Tensor, "M R"],
    logsumexp_M: Float[Tensor, " M"],
    gold_id_M: Int[Tensor, " M"],
    gold_logit_M: Float[Tensor, " M"],
    *,
    temperature: float,
) -> Float[Tensor, "M V"]:
    """The sketch's logits, moved so that logsumexp(z / T) is exact, and the true token's own logit.

    A true token outside the kept columns (gold_id >= V) is left alone.
    """
    dense_MV = decoder.rows(sketch_MR)
    shift_M = temperature * (logsumexp_M - (dense_MV / temperature).logsumexp(-1))
    dense_MV += shift_M[:, None]
    is_kept_M = gold_id_M < dense_MV.shape[1]
    row_M = torch.arange(len(gold_id_M), device=gold_id_M.device)[is_kept_M]
    dense_MV[row_M, gold_id_M[is_kept_M]] = gold_logit_M[is_kept_M]
    return dense_MV


def _outside(
    logits_MK: Float[Tensor, "M K"], logsumexp_M: Float[Tensor, " M"], temperature: float
) -> Float[Tensor, " M"]:
    """Log of the sum of exp(z / T) over all tokens that are not kept."""
    inside_M = (logits_MK / temperature).logsumexp(-1)
    # log(1 - share inside); rounding may bring the share to 1 or above, where nothing is left
    left_M = (-torch.expm1((inside_M - logsumexp_M).clamp(max=0.0))).clamp_min(1e-30)
    return logsumexp_M + left_M.log()
