"""Shards in memory: those in use, and the next one, which a thread reads meanwhile."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from pipeline.stream.order import Key, Step

S = TypeVar("S")
T = TypeVar("T")


class ReadAhead(Generic[S]):
    """Does a reader's steps with what each needs in memory; holds one shard more than those.

    `read` is called in one thread, for one shard after the other. What it raises comes out where
    the shard would have been used.
    """

    def __init__(self, steps: Iterator[Step], read: Callable[[Key], S]) -> None:
        self._steps = steps
        self._read = read
        self._seen: deque[Step] = deque()  # taken from `steps` in search of the next to open
        self._to_open: deque[Key] = deque()
        self._next: Future[S] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")

    def results(self, make: Callable[[Step, Mapping[Key, S]], T]) -> Generator[T]:
        """What `make` makes of each step. While one is looked at, the next shard is being read."""
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
        """Begins to read the next shard to be opened, unless that is done already."""
        self._look_ahead()
        if self._next is None:
            self._next = self._thread.submit(self._read, self._to_open[0])

    def _wait(self) -> S:
        assert self._next is not None, "it was started"
        content = self._next.result()
        self._next = None
        self._to_open.popleft()
        return content

    def _look_ahead(self) -> None:
        while not self._seen or not self._to_open:
            step = next(self._steps)
            self._seen.append(step)
            self._to_open += step.opens
