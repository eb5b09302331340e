"""A real S3 API on loopback: moto's server, which can be stopped and started on its port."""

from collections.abc import Mapping
from itertools import count

import httpx
from moto.server import ThreadedMotoServer


class S3Server:
    """Keeps its buckets over a stop, as a store does that is out of reach for a while."""

    def __init__(self) -> None:
        self._port = 0
        self._numbers = count()
        self.start()

    def start(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()
        _, self._port = self._server.get_host_and_port()

    def stop(self) -> None:
        self._server.stop()

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
