"""The processes that train one student together: what they add up, agree on and wait for.

They talk over gloo, on the CPU, in a group of their own: no sum of counts waits for a GPU's queue.
"""

import os
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from storage_schemas.errors import RecipeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process's `rank` among `size`; `group` is None where it trains alone."""

    rank: int
    size: int
    group: Any

    @classmethod
    def here(cls) -> "Ranks":
        """As torchrun has arranged it; every process must ask, and once a process group is there."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return cls(rank=0, size=1, group=None)
        group = cast("Any", dist.new_group)(backend="gloo")
        return cls(rank=dist.get_rank(), size=dist.get_world_size(), group=group)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes what all have made."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of every process's values, exact for integers."""
        assert values.device.type == "cpu", "gloo's sums are made on the CPU"
        if self.group is None:
            return values
        total = values.clone()
        cast("Any", dist.all_reduce)(total, group=self.group)
        return total

    def any(self, is_so: bool) -> bool:
        """Whether it is so in any process; the same answer in all of them."""
        return bool(self.sum(torch.tensor(int(is_so))))

    def wait(self) -> None:
        """Until every process has come here."""
        self.any(False)

    def share_of(self, accumulation: int) -> int:
        """Micro-batches of a step that are this process's: number m is process m mod size's."""
        if accumulation % self.size:
            more = accumulation + self.size - accumulation % self.size
            raise RecipeError(
                f"expected train.accumulation to be a multiple of the {self.size} training "
                f"processes, which share a step's micro-batches evenly, got {accumulation}; set "
                f"train.accumulation = {more}, and train.batch_size to what keeps the views a step"
            )
        return accumulation // self.size


def local_rank() -> int:
    """Which of this machine's training processes this is, and so which GPU is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))
