"""The processes that train one student together: what they add up, agree on and wait for.

They talk over gloo, on the CPU, in a group of their own: no sum of counts waits for a GPU's queue.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed
from torch import Tensor

from storage_schemas.errors import RecipeError

_T = TypeVar("_T")
_DIST = cast("Any", torch.distributed)
# While one process uploads a checkpoint the others wait; that one has died ends them sooner.
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process's `rank` among `size`; `group` is None where it trains alone."""

    rank: int = 0
    size: int = 1
    group: Any = None

    @classmethod
    def join(cls, *, uses_cpu: bool) -> "Ranks":
        """Meets the processes that torchrun started with this one, if it did start this one."""
        if "WORLD_SIZE" not in os.environ:
            return cls()
        if not uses_cpu:
            _take_gpu()
        if not _DIST.is_initialized():
            backend = "gloo" if uses_cpu else "cuda:nccl,cpu:gloo"
            _DIST.init_process_group(backend, timeout=_PATIENCE)
        size = int(_DIST.get_world_size())
        if size == 1:
            return cls()
        group = _DIST.new_group(backend="gloo", timeout=_PATIENCE)
        return cls(rank=int(_DIST.get_rank()), size=size, group=group)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes what all have made."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of every process's values; they are on the CPU."""
        assert values.device.type == "cpu", "gloo adds on the CPU"
        if self.group is None:
            return values
        total = values.clone()
        _DIST.all_reduce(total, group=self.group)
        return total

    def any(self, is_so: bool) -> bool:
        """Whether it is so in any process; the same answer in all of them."""
        return bool(self.sum(torch.tensor(int(is_so))))

    def gather(self, value: _T) -> list[_T]:
        """Every process's value, in order of rank."""
        if self.group is None:
            return [value]
        values: list[_T] = [value] * self.size
        _DIST.all_gather_object(values, value, group=self.group)
        return values

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


def _take_gpu() -> None:
    num_gpus, wanted = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if wanted > num_gpus:
        raise RecipeError(
            f"expected a GPU for each of this machine's {wanted} training processes, got "
            f"{num_gpus}; lower launch.processes, or set train.device = 'cpu'"
        )
    torch.cuda.set_device(local_rank())
