"""The training stream: shards read from a cache ahead of use, as batches in a seeded order."""

import logging
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, TypeVar, cast, overload

import torch
from torch.utils.data import DataLoader

from pipeline.cache.reader import CacheReader
from pipeline.stream.collate import View
from pipeline.stream.collate import collate as collate_rows
from pipeline.stream.order import ViewOrder
from pipeline.stream.share import Share
from pipeline.stream.worker import START_METHOD, Failure, ShareDataset, start_worker
from storage_schemas.basis import Basis
from storage_schemas.batch import Batch
from storage_schemas.errors import CacheMissingError, LoaderError

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_PREFETCH = 4  # batches that each worker makes ahead


class CacheStream:
    """Endless micro-batches of `batch_size` views; they run on over the ends of epochs.

    Its workers end when it is closed, or its `with` block left.
    """

    def __init__(
        self,
        reader: CacheReader,
        *,
        batch_size: int,
        seed: int,
        has_tokens: bool,
        basis: Basis | None = None,
        lanes: int = 4,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        pins: bool = False,
        has_buckets: bool = False,
        collate: Callable[[Sequence[View]], Batch] | None = None,
    ) -> None:
        """The share of process `rank`: every `world_size`-th micro-batch.

        `has_tokens` brings the token targets along, their sketches decoded with the basis. Up to
        `lanes` shards are open at once, among all processes and their `workers`; without workers
        this process reads, in a thread. With `pins` tensors come in pinned memory, with
        `has_buckets` views of like length in one micro-batch.
        """
        counts = [entry.counts.num_views for entry in reader.entries]
        self.num_views = sum(counts)
        if self.num_views == 0:
            raise CacheMissingError(
                f"{reader.address}: expected views to train on, got a cache whose records were all "
                f"skipped; 'tidecache inspect' tells why"
            )
        order = ViewOrder(counts, seed=seed, batch_size=batch_size, num_lanes=lanes)
        if order.num_lanes == lanes:
            _warn_of_shared_shards(reader, lanes, num_readers=world_size * max(1, workers))
        self._share = Share(
            reader=reader,
            order=order,
            has_tokens=has_tokens,
            # a worker needs the coder alone: the basis's matrices can be gigabytes
            coder=basis.coder if has_tokens and basis is not None else None,
            collate=collate or partial(collate_rows, has_tokens=has_tokens),
            rank=rank,
            world_size=world_size,
            has_buckets=has_buckets,
        )
        self._workers = workers
        self._pins = pins
        self._open: list[_Source] = []

    @overload
    def batches(self, *, skip: int = 0) -> Iterator[Batch]: ...

    @overload
    def batches(self, *, then: Callable[[Batch], T], skip: int = 0) -> Iterator[T]: ...

    def batches(
        self, *, then: Callable[[Batch], Any] | None = None, skip: int = 0
    ) -> Iterator[Any]:
        """This process's share of the micro-batches from number `skip` of all on.

        What lies wholly before it is not read. Workers begin now, and make the first batches ahead.
        `then` is done to each batch where it is read: with workers it must be a function that can
        be sent to them.
        """
        source = _Source(replace(self._share, skip=skip, then=then), self._workers, pins=self._pins)
        self._open.append(source)
        return source

    def close(self) -> None:
        """Ends all that reads for it."""
        while self._open:
            self._open.pop().close()

    def __enter__(self) -> "CacheStream":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Source(Iterator[Any]):
    """A process's batches: a worker's error as itself, a killed worker as a LoaderError."""

    def __init__(self, share: Share, workers: int, *, pins: bool) -> None:
        self._address = share.reader.address
        self._dataset = ShareDataset(share)
        self._has_workers = workers > 0
        loader = DataLoader(
            self._dataset,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            multiprocessing_context=START_METHOD if workers else None,
            prefetch_factor=_PREFETCH if workers else None,
            worker_init_fn=start_worker,
            pin_memory=pins,
            generator=torch.Generator(),  # else it draws from the one that dropout draws from
        )
        with _own_child_signals():
            self._loader = cast("Any", iter(loader))  # its workers start here

    def __next__(self) -> Any:
        try:
            batch = _next(self._loader, self._address)
            if isinstance(batch, Failure):
                raise batch.error
        except BaseException:
            self.close()  # dropping them would not be enough: a traceback may hold them
            raise
        return batch

    def close(self) -> None:
        """Ends what reads for it, at once and for good."""
        with suppress(ValueError):  # it is being advanced, in another thread
            self._dataset.close()
        if self._has_workers:
            self._loader._shutdown_workers()


def _warn_of_shared_shards(reader: CacheReader, lanes: int, *, num_readers: int) -> None:
    if lanes % num_readers:
        _LOG.warning(
            "%s: %d processes and workers read from %d open shards: some read the same ones; "
            "make train.open_shards a multiple of train.loader_workers times the processes",
            reader.address,
            num_readers,
            lanes,
        )


def _as_it_is(batch: T) -> T:
    """In place of torch's own, which would turn arrays into tensors."""
    return batch


def _next(source: Iterator[Any], address: str) -> Any:
    try:
        return next(source)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or "exited unexpectedly" not in str(error):
            raise
        raise LoaderError(
            f"{address}: expected the processes that read it to live as long as the run, got: "
            f"{error}; if memory or /dev/shm is short, lower train.loader_workers or "
            f"train.open_shards, then run again: it goes on from the last checkpoint"
        ) from error


@contextmanager
def _own_child_signals() -> Generator[None]:
    """Keeps torch from raising in whatever line the main thread is in when a worker dies.

    `next` finds a dead worker too, within seconds, and where it can be told what to do.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None:  # None: a handler that was not set from Python
            signal.signal(signal.SIGCHLD, before)
