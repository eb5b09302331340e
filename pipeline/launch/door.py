"""The launcher's end of the links to its training processes."""

import os
import selectors
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.launch.link import STOP
from pipeline.launch.messages import Failed, Finished, Hello, Message, decode, lost

_LONGEST_FOLDER = 64  # a socket's path has 107 bytes on Linux, 103 on macOS


@dataclass(slots=True)
class _Caller:
    """One connected process; `is_done` once it has said how it ended."""

    socket: socket.socket
    rank: int = -1
    pid: int | None = None
    is_done: bool = False
    unread: bytearray = field(default_factory=bytearray)


class Door:
    """A UNIX socket in a private folder, and whoever has connected to it."""

    def __init__(self) -> None:
        is_short = len(tempfile.gettempdir()) <= _LONGEST_FOLDER
        self.folder = Path(tempfile.mkdtemp(prefix="tidecache-", dir=None if is_short else "/tmp"))
        self.address = str(self.folder / "launcher")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._callers: list[_Caller] = []
        self._is_stop_asked = False

    @property
    def num_open(self) -> int:
        """Processes that are still connected."""
        return len(self._callers)

    def messages(self, *, seconds: float) -> Iterator[Message]:
        """What has come in, after waiting for it no longer than that.

        For a process that leaves without having said how it ended, it is said here.
        """
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                self._admit()
            else:
                yield from self._read(key.data)

    def ask_to_stop(self) -> None:
        """Tells everyone, and whoever connects later."""
        self._is_stop_asked = True
        for caller in self._callers:
            with suppress(OSError):  # it is leaving
                caller.socket.sendall(STOP)

    def close(self) -> None:
        """Ends the links, and by that every process at the other end."""
        self._listener.close()
        self._selector.close()
        for caller in self._callers:
            caller.socket.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """SIGKILL to every process that is still connected: its id is its own as long as it is."""
        for caller in self._callers:
            if caller.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(caller.pid, signal.SIGKILL)

    def _admit(self) -> None:
        caller = _Caller(self._listener.accept()[0])
        self._selector.register(caller.socket, selectors.EVENT_READ, caller)
        self._callers.append(caller)
        if self._is_stop_asked:
            caller.socket.sendall(STOP)

    def _read(self, caller: _Caller) -> Iterator[Message]:
        try:
            read = caller.socket.recv(1 << 16)
        except ConnectionError:
            read = b""
        if not read:
            self._dismiss(caller)
            if not caller.is_done:
                yield lost(caller.rank)
            return
        caller.unread += read
        *lines, rest = caller.unread.split(b"\n")
        caller.unread = rest
        for line in lines:
            message = decode(bytes(line))
            if isinstance(message, Hello):
                caller.rank, caller.pid = message.rank, message.pid
            caller.is_done |= isinstance(message, Finished | Failed)
            yield message

    def _dismiss(self, caller: _Caller) -> None:
        self._selector.unregister(caller.socket)
        caller.socket.close()
        self._callers.remove(caller)
