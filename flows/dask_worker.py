"""What a Dask worker that we started does differently from one that Dask did."""

import logging

from distributed import Worker, WorkerPlugin

from flows.stop import go_deaf_to_sigterm


class HearsNoSigterm(WorkerPlugin):
    """`go_deaf_to_sigterm`, as a plugin: it runs in the main thread, and shards do not."""

    name = "tidecache-hears-no-sigterm"

    def setup(self, worker: Worker) -> None:
        """Called by Dask in every worker as it starts."""
        del worker
        go_deaf_to_sigterm()
        logging.getLogger("distributed").setLevel(logging.WARNING)
