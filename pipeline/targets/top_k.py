"""Sparse top-k targets: the k largest logits, and exact normalizers.

Method, section 6. Axes: M position, V vocabulary, K kept logit, J temperature.
"""

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
