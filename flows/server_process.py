"""A Prefect server on loopback that ends with the process that started it, however that ends.

The parent holds the other end of standard input; when that closes, the server stops. The port is
the system's choice, and the first line of standard output.
"""

import os
import signal
import socket
import sys
import threading

import uvicorn


def main() -> None:
    """Serves until standard input is closed."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    config = uvicorn.Config(
        "prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on"
    )
    uvicorn.Server(config).run(sockets=[listener])


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
