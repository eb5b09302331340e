"""Processes that score held-out text together: each takes its share, and all have the sum.

Sharded weights are gathered inside the model's call, where every process must take part: so each
makes the same number of calls, some of them only to keep the others company.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among those that work together, whose sums are made on `device`."""

    rank: int = 0
    count: int = 1
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.count, "a rank is one of those that are counted"

    def share(self, items: Sequence[_T]) -> Iterator[tuple[_T, bool]]:
        """Every count-th item from the rank's on; the last one, not to be counted, fills up."""
        rounds = -(-len(items) // self.count)
        for index in range(self.rank, rounds * self.count, self.count):
            is_there = index < len(items)
            yield items[index if is_there else -1], is_there

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum over all processes, in every one of them."""
        if self.count == 1:
            return values
        total = torch.from_numpy(values).to(self.device)
        torch.distributed.all_reduce(total)
        return total.cpu().numpy()


ALONE = Ranks()
