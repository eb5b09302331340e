"""Processes that score held-out text together: each takes its share, and all have the sum.

Sharded weights are gathered inside the model's call, where every process must take part: so each
makes the same number of calls, some of them only to keep the others company.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_T = TypeVar("_T")


def _as_it_is(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """That of process `rank` among `count`; `total` adds a CPU tensor up over all of them."""

    rank: int = 0
    count: int = 1
    total: Callable[[Tensor], Tensor] = _as_it_is

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.count, "a rank is one of those that are counted"

    def of(self, items: Sequence[_T]) -> Iterator[tuple[_T, bool]]:
        """Every count-th item from the rank's on; the last one, not to be counted, fills up."""
        rounds = -(-len(items) // self.count)
        for index in range(self.rank, rounds * self.count, self.count):
            is_there = index < len(items)
            yield items[index if is_there else -1], is_there

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum over all processes, in every one of them."""
        return self.total(torch.from_numpy(values)).cpu().numpy()


ALL = Share()
