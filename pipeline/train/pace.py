"""How fast a student learns: tokens a second, and the share of the time that it waits for data.

Both are of the time since the last log entry. What evaluating and saving take is left out: neither
is a step.
"""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor

TIMINGS = ("tokens_per_s", "wait_share")
"""What a log entry says of time; no two runs agree on it."""


@runtime_checkable
class Counted(Protocol):
    """A batch that knows how many tokens its texts have."""

    @property
    def num_text_tokens(self) -> int:
        """Tokens of its texts, padding left out."""
        ...


_B = TypeVar("_B", bound=Counted)


class Pace:
    """Clocks one process from its first wait on; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began: float | None = None
        self._tokens, self._waited, self._paused = 0, 0.0, 0.0

    def take(self, batches: Iterator[_B], count: int) -> list[_B]:
        """The next `count` batches, or as many as there are; the time until they come is waiting.

        A batch counts with the tokens of its texts, prompts included and padding not. The student
        reads each of them twice, noised and clean.
        """
        asked = self._clock()
        if self._began is None:
            self._began = asked
        taken = [batch for _, batch in zip(range(count), batches, strict=False)]
        self._waited += self._clock() - asked
        self._tokens += sum(batch.num_text_tokens for batch in taken)
        return taken

    @contextmanager
    def paused(self) -> Generator[None]:
        """What happens in this context takes no time."""
        stopped = self._clock()
        yield
        self._paused += self._clock() - stopped

    def close(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The timings since the last call; `total` adds up over the processes.

        Tokens of all processes in a second of their mean time; the share is that of all their time.
        """
        assert self._began is not None, "a step was taken"
        now = self._clock()
        seconds = now - self._began - self._paused
        sums = torch.tensor([1.0, self._tokens, self._waited, seconds], dtype=torch.float64)
        processes, tokens, waited, spent = cast("list[float]", total(sums).tolist())
        self._began = now
        self._tokens, self._waited, self._paused = 0, 0.0, 0.0
        spent = max(spent, 1e-9)
        return dict(zip(TIMINGS, (tokens * processes / spent, waited / spent), strict=True))
