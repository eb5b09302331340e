"""SIGTERM as a request: the unit of work in flight is finished, and no other starts."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_on_sigterm() -> Generator[threading.Event]:
    """An event that the first SIGTERM sets; a second one acts as if nobody had asked politely.

    Only the main thread may handle signals; elsewhere the event is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.getsignal(signal.SIGTERM)

    def ask(signum: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGTERM, previous)

    signal.signal(signal.SIGTERM, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def ctrl_c_as_sigterm() -> Generator[None]:
    """The first Ctrl-C asks to stop, as a SIGTERM does; a second one interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)

    def ask(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, previous)
        signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def go_deaf_to_sigterm() -> None:
    """From now on this process hears no SIGTERM, if called in its main thread.

    For workers: a service manager sends it to every process of a run, but a worker is to finish
    its shard, and is ended by the engine that started it.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
