"""The objectives of TIDE as pure functions: tensors and numbers in, a `LossTerm` out."""

from pipeline.objectives.calm import calm, calm_tidal, is_clamped, reverse_calm
from pipeline.objectives.divergence import forward_kl, reverse_kl
from pipeline.objectives.likelihood import chunk_logp, gold_logp
from pipeline.objectives.masked_nll import masked_nll, masked_nll_from_logp
from pipeline.objectives.term import LossTerm
from pipeline.objectives.tidal import midrange_weight, tidal_kl, tidal_lambda

__all__ = [
    "LossTerm",
    "calm",
    "calm_tidal",
    "chunk_logp",
    "forward_kl",
    "gold_logp",
    "is_clamped",
    "masked_nll",
    "masked_nll_from_logp",
    "midrange_weight",
    "reverse_calm",
    "reverse_kl",
    "tidal_kl",
    "tidal_lambda",
]
