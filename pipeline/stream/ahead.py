"""Shards in memory: those in use, and the next ones, which a thread reads meanwhile."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

from pipeline.stream.order import Key, Step

S = TypeVar("S")
T = TypeVar("T")


class ReadAhead(Generic[S]):
    """Does a reader's steps with what each needs in memory; holds `depth` shards more than those.

    As many as are open at a time, since all may be used up at about the same time, as they are at
    the end of an epoch. `read` is called in one thread, for one shard after the other. What it
    raises comes out where the shard would have been used.
    """

    def __init__(self, steps: Iterator[Step], read: Callable[[Key], S], *, depth: int) -> None:
        assert depth > 0, "one shard is read before it is used"
        self._steps = steps
        self._read = read
        self._depth = depth
        self._seen: deque[Step] = deque()  # taken from `steps` in search of the next to open
        self._to_open: deque[Key] = deque()
        self._reading: deque[Future[S]] = deque()  # the first of `to_open`
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")

    def results(self, make: Callable[[Step, Mapping[Key, S]], T]) -> Generator[T]:
        """What `make` makes of each step; while one is looked at, the next shards are read."""
        held: dict[Key, S] = {}
        try:
            while True:
                self._look_ahead()
                step = self._seen.popleft()
                for key in step.opens:
                    self._start()
                    held[key] = self._wait()
                made = make(step, held)
                for key in step.closes:
                    del held[key]
                self._start()
                yield made
        finally:  # not in the midst of a read: zarr's own threads may be gone before it ends
            self._thread.shutdown(cancel_futures=True)

    def _start(self) -> None:
        """Begins to read the next shards to be opened, as far as that is not done already."""
        self._look_ahead()
        for key in islice(self._to_open, len(self._reading), self._depth):
            self._reading.append(self._thread.submit(self._read, key))

    def _wait(self) -> S:
        content = self._reading.popleft().result()
        self._to_open.popleft()
        return content

    def _look_ahead(self) -> None:
        while not self._seen or len(self._to_open) < self._depth:
            step = next(self._steps)
            self._seen.append(step)
            self._to_open += step.opens
