"""What a Dask worker that we started does differently from one that Dask did."""

import logging
import signal

from distributed import Worker, WorkerPlugin


class HearsNoSigterm(WorkerPlugin):
    """SIGTERM to a worker is not heard: it finishes its shard, and the run's process ends it.

    A service manager sends it to every process of a run. A plugin, because this runs in the
    worker's main thread, and shards do not.
    """

    name = "tidecache-hears-no-sigterm"

    def setup(self, worker: Worker) -> None:
        """Called by Dask in every worker as it starts."""
        del worker
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        logging.getLogger("distributed").setLevel(logging.WARNING)
