"""A loss term: a sum and the number of items in it, so that terms add before they are averaged.

The means of the method (section 5) run over a whole batch, however it was cut into parts.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from pipeline.objectives.precision import upcast


@dataclass(frozen=True, slots=True)
class LossTerm:
    """`total` over `count` items; the mean of a sum of terms is the mean over all their items."""

    total: Float[Tensor, ""]
    count: Num[Tensor, ""]

    @classmethod
    def over(cls, values: Float[Tensor, "*items"], mask: Bool[Tensor, "*items"]) -> "LossTerm":
        """The sum of the values where `mask` holds; what stands elsewhere, NaN too, is unseen.

        An empty mask gives a zero that still has a gradient, so that every rank runs backward.
        """
        seen = torch.where(mask, upcast(values), 0.0)
        return cls(seen.sum(), mask.sum())

    @classmethod
    def over_all(cls, values: Float[Tensor, "*items"]) -> "LossTerm":
        """The sum of all the values."""
        return cls(upcast(values).sum(), torch.tensor(values.numel(), device=values.device))

    def __add__(self, other: "LossTerm") -> "LossTerm":
        """The term of both sets of items together."""
        return LossTerm(self.total + other.total, self.count + other.count)

    def mean(self) -> Float[Tensor, ""]:
        """`total / count`; over no items a zero, with a zero gradient."""
        count = torch.as_tensor(self.count, device=self.total.device)
        has_items = count > 0
        # dividing by the count itself would put 0 / 0 into the gradient of the unused branch
        return torch.where(has_items, self.total / torch.where(has_items, count, 1), 0.0)
