"""The precision of every formula here: float32, or float64 where the inputs are.

TIDE computes chunk probabilities in float32 (method, section 3); so does the rest.
"""

import torch
from jaxtyping import Float
from torch import Tensor

Real = float | int
"""A plain number. Runtime checkers, unlike static ones, refuse an `int` for a `float`."""


def upcast(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`x` in float32 if it was narrower, else `x` itself."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def as_column(
    number: Real | Float[Tensor, ""] | Float[Tensor, " N"], like: Float[Tensor, "N V"]
) -> Float[Tensor, "N 1"] | Float[Tensor, "1 1"]:
    """One number, or one a row, ready to multiply the rows of `like` in its own dtype."""
    return torch.as_tensor(number, dtype=like.dtype, device=like.device).reshape(-1, 1)
