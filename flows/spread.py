"""Work given out to others: a few items in flight at once, however many there are."""

from collections.abc import Callable, Generator, Iterable
from queue import SimpleQueue
from typing import Any, TypeVar

from prefect.futures import PrefectFuture

Item = TypeVar("Item")


def spread(
    items: Iterable[Item],
    submit: Callable[[Item], PrefectFuture[Any]],
    *,
    window: int,
    should_stop: Callable[[], bool],
) -> Generator[tuple[Item, PrefectFuture[Any]]]:
    """Each item with its finished future, in the order in which they finish.

    At most `window` items are in flight; once `should_stop()`, no other is given out, and those in
    flight are waited for. A future is let go of when its turn is over: a result that is still held
    would be made again should its worker die.
    """
    waiting = iter(items)
    in_flight: dict[int, tuple[Item, PrefectFuture[Any]]] = {}
    finished: SimpleQueue[int] = SimpleQueue()
    given = 0
    while True:
        while len(in_flight) < window and not should_stop():
            try:
                item = next(waiting)
            except StopIteration:
                break
            future = submit(item)
            in_flight[given] = (item, future)
            future.add_done_callback(lambda _, number=given: finished.put(number))
            given += 1
            del item, future
        if not in_flight:
            return
        yield in_flight.pop(finished.get())
