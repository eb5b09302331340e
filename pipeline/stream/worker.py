"""What a process that reads ahead owes its run: to end with it, and to say what failed.

Started by 'spawn': a fork would copy a process with threads, where obstore's clients do not live
on; a fork server would be one more process to end, to save each worker a few seconds once.
"""

import os
import signal
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import wait
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from pipeline.stream.share import Share
from storage_schemas.errors import TidecacheError

START_METHOD = "spawn"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error on its way to the training process, in place of a batch.

    torch would raise another of its type there, with a traceback for a message.
    """

    error: TidecacheError


class ShareDataset(IterableDataset[Any]):
    """A process's share of the batches, in the form that a DataLoader takes."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self._own: Generator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        if worker is None:
            self._own = self._share.batches()
            return self._own
        return _with_failure(self._share.batches(worker=worker.id, num_workers=worker.num_workers))

    def close(self) -> None:
        """Ends what reads in this process."""
        if self._own is not None:
            self._own.close()


def start_worker(worker: int) -> None:
    """Leaves signals to the training process, and ends with it, however that ends.

    A terminal's Ctrl-C and an orchestrator's SIGTERM go to the whole process group of a run; the
    training process has a checkpoint to save first, and needs its batches until then.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of those who send it to each process
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()


def _with_failure(batches: Iterator[Any]) -> Iterator[Any]:
    """The batches, and at last the error that ended them, if it is one that a user can mend."""
    try:
        yield from batches
    except TidecacheError as error:
        yield Failure(error=error)


def _end_with_parent() -> None:
    """At once: torch's own watch looks every few seconds, then waits for a pipe nobody reads."""
    parent = parent_process()
    assert parent is not None, "a worker has a parent"
    wait([parent.sentinel])
    os._exit(1)
