"""A worker of a Prefect work pool that may be stopped: the run in flight ends in order, waited for.

Prefect's own worker kills its runs as soon as it hears SIGTERM, which is what `docker stop` sends:
a student would lose what it learned since its last checkpoint, and its run would stay Running.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import FrameType

import psutil

_POLL_SECONDS = 0.1


def main(arguments: list[str]) -> int:
    """`prefect worker start` with these arguments, until SIGTERM or Ctrl-C; its exit code."""
    command = [sys.executable, "-m", "prefect", "worker", "start", *arguments]
    worker = subprocess.Popen(command, start_new_session=True)  # Ctrl-C is for this process

    def stop(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_IGN)
        _stop(worker)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    return worker.wait()


def _stop(worker: "subprocess.Popen[bytes]") -> None:
    process = psutil.Process(worker.pid)
    process.suspend()  # it starts no other run, and reports none as crashed
    runs = process.children()
    for run in runs:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGTERM)
    while any(_is_at_work(run) for run in runs):
        time.sleep(_POLL_SECONDS)
    worker.send_signal(signal.SIGTERM)
    process.resume()


def _is_at_work(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE  # the worker is the one to reap it
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
