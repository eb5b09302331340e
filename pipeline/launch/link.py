"""A training process's end of the link to the process that launched it.

The link is also the lifeline: when the other end closes, by whatever death, this process ends too,
even while its main thread waits in a collective for a process that is gone.
"""

import os
import socket
import threading
from contextlib import suppress

from pipeline.launch.messages import Hello, Message, encode

SOCKET_VARIABLE = "TIDECACHE_LAUNCHER"
"""Names the launcher's socket in the environment of the processes that it started."""
STOP = b"stop\n"


class Link:
    """Sends messages; sets `stop` when the launcher asks for it."""

    def __init__(self, address: str, *, rank: int, stop: threading.Event) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(address)
        self._stop = stop
        self._is_closing = threading.Event()
        self.send(Hello(rank=rank, pid=os.getpid()))
        self._listener = threading.Thread(target=self._listen, name="launcher", daemon=True)
        self._listener.start()

    def send(self, message: Message) -> None:
        """Blocks until it is on its way."""
        self._socket.sendall(encode(message))

    def close(self) -> None:
        """No lifeline any more: what is left of this process ends by itself."""
        self._is_closing.set()
        with suppress(OSError):  # the other end may have closed before
            self._socket.shutdown(socket.SHUT_WR)

    def _listen(self) -> None:
        with self._socket, suppress(OSError):  # a connection that breaks is one that ends
            while self._socket.recv(len(STOP)):
                self._stop.set()  # that is all that a launcher ever says
        if not self._is_closing.is_set():
            os._exit(1)
