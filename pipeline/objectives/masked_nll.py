"""Cross-entropy of the masked tokens under the linear noise schedule.

TIDE's student loss without distillation; method, section 5.

Axes: N masked token of the batch, in an aligned pair or not; V vocabulary.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.objectives.likelihood import gold_logp
from pipeline.objectives.precision import upcast
from pipeline.objectives.term import LossTerm

_TIME_EPS = 1e-6  # the authors'; times are at least 1e-3, so it moves a weight by 0.1 % at most


def masked_nll(
    student_logits_NV: Float[Tensor, "N V"],
    target_ids_N: Int[Tensor, " N"],
    time_N: Float[Tensor, " N"],
    num_maskable: int | Int[Tensor, ""],
) -> LossTerm:
    """Negative log-likelihood of the masked tokens, weighted by 1 / t, a maskable token (nats).

    The total is the sum over masked tokens of

        -log p(x) / (t + 1e-6),

    with `time_N` the diffusion time of each token's example. The count is the number of tokens
    that could have been masked: then the mean bounds the negative log-likelihood of a token.
    """
    return masked_nll_from_logp(gold_logp(student_logits_NV, target_ids_N), time_N, num_maskable)


def masked_nll_from_logp(
    logp_N: Float[Tensor, " N"], time_N: Float[Tensor, " N"], num_maskable: int | Int[Tensor, ""]
) -> LossTerm:
    """`masked_nll` of log-likelihoods at hand, so that chunks and CE share one `log_softmax`."""
    logp_N = upcast(logp_N)
    weight_N = (1 / (upcast(time_N) + _TIME_EPS)).to(logp_N.dtype)
    count = torch.as_tensor(num_maskable, device=logp_N.device)
    return LossTerm(-(logp_N * weight_N).sum(), count)
