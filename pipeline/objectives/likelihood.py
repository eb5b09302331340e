"""Log-likelihood of the true text, of each token and of each chunk.

TIDE section 2.3; method, section 3.

Axes: N token, V vocabulary, C chunk (one aligned span of text, the same in both tokenizers).
"""

from jaxtyping import Float, Int
from torch import Tensor

from pipeline.objectives.precision import upcast


def gold_logp(logits_NV: Float[Tensor, "N V"], ids_N: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Natural log of the probability of each true token, `z[x] - logsumexp(z)`.

    Runs in float32 or wider. Subtracting the row's maximum first, as `log_softmax` does, keeps
    the digits that the literal difference loses when logits are large.
    """
    return upcast(logits_NV).log_softmax(-1).gather(-1, ids_N.unsqueeze(-1)).squeeze(-1)


def chunk_logp(
    logp_N: Float[Tensor, " N"], chunk_N: Int[Tensor, " N"], num_chunks: int
) -> Float[Tensor, " C"]:
    """The sum of its tokens' log-likelihoods, for each chunk; a chunk without tokens has 0.

    `chunk_N` is each token's chunk, or -1 for a token of no chunk, whose value is unseen. Sums
    run in float32 or wider. On CUDA, `index_add` adds in a fixed order only under
    `torch.use_deterministic_algorithms`.
    """
    logp_N = upcast(logp_N)
    # slot 0 takes the tokens of no chunk
    return logp_N.new_zeros(num_chunks + 1).index_add(0, chunk_N + 1, logp_N)[1:]
