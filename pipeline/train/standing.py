"""Held-out likelihood over a run: which evaluation was the best, and whether to go on.

A function of the log, which every checkpoint holds: a resumed run stands where it stood.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

HELD_OUT_NLL = "held_out_nll"


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The evaluation with the lowest bound (nats a token): after which step."""

    step: int
    nll: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """After a run's evaluations so far: the best one, and how many came after it."""

    best: Best | None
    num_since: int

    @classmethod
    def of(cls, history: Iterable[Mapping[str, Any]]) -> "Standing":
        """Of a log's entries, in their order; an equal value is not a better one, nor is NaN."""
        best: Best | None = None
        num_since = 0
        for entry in history:
            if (nll := entry.get(HELD_OUT_NLL)) is None:
                continue
            if not math.isnan(nll) and (best is None or nll < best.nll):
                best, num_since = Best(step=int(entry["step"]), nll=float(nll)), 0
            else:
                num_since += 1
        return cls(best=best, num_since=num_since)

    def is_over(self, patience: int | None) -> bool:
        """Whether that many evaluations have gone by without a better one."""
        return patience is not None and self.num_since >= patience
