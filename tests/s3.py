"""A real S3 API on loopback: moto's server, which can be stopped, started again, and made to fail.

Where a real store decides conditional puts one at a time, moto looks first and then puts: so puts
go to it one at a time.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from threading import Lock, Thread
from typing import Any

import httpx
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

Answer = Iterable[bytes]


class S3Server:
    """Keeps its buckets over a stop, as a store does that is out of reach for a while.

    requests: how many came, by method. `before`, if set, is asked with (method, path) before each
    and gives a status with which it is refused, or None; `after` likewise once it is done.
    """

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.before: Callable[[str, str], int | None] | None = None
        self.after: Callable[[str, str], int | None] | None = None
        self._app = DomainDispatcherApplication(create_backend_app)
        self._puts = Lock()
        self._numbers = count()
        self._port = 0
        self.start()

    def start(self) -> None:
        """On the same port as before."""
        self._server = make_server(
            "127.0.0.1", self._port, self._answer, threaded=True, request_handler=MotoRequestHandler
        )
        self._port = self._server.server_address[1]
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """From then on a connection is refused."""
        self._server.shutdown()
        self._thread.join()

    @property
    def environment(self) -> Mapping[str, str]:
        """What tells a client of S3 to talk to this server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_REGION": "us-east-1",
        }

    def make_bucket(self) -> str:
        """A new bucket's URL."""
        name = f"bucket-{next(self._numbers)}"
        made = httpx.put(f"{self.environment['AWS_ENDPOINT_URL']}/{name}")
        assert made.status_code == 200, made.text
        return f"s3://{name}"

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Answer:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests[method] += 1
        status = self.before(method, path) if self.before is not None else None
        if status is None and method == "PUT":
            with self._puts:
                answer = list(self._app(environ, start_response))
        elif status is None:
            answer = list(self._app(environ, start_response))
        if status is None and self.after is not None:
            status = self.after(method, path)
        if status is None:
            return answer
        start_response(f"{status} Refused", [("Content-Length", "0")])
        return [b""]
