"""torchrun as a child: stage 2 on several processes of this machine, told of and stopped from here.

Asked to stop, every process finishes its step and a checkpoint is saved. When this process ends,
however it does, so do they.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.config.recipe import Recipe, resolved_json
from pipeline.launch.door import Door
from pipeline.launch.link import SOCKET_VARIABLE
from pipeline.launch.messages import Failed, Finished, Logged, first_cause
from pipeline.storage.address import is_remote
from pipeline.train.summary import TrainSummary
from storage_schemas.errors import LostProcessError

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 600.0  # for one optimizer step and a checkpoint
_END_SECONDS = 60.0  # for what trackers still send when a run has ended


def train_launched(
    recipe: Recipe,
    *,
    on_log: Callable[[dict[str, float]], None],
    should_stop: Callable[[], bool],
    grace_seconds: float = _GRACE_SECONDS,
) -> TrainSummary:
    """Train on `launch.processes` processes; their errors come out here as themselves."""
    assert recipe.launch is not None, "without [launch] a run trains in its own process"
    with _open_door() as door, _torchrun(recipe, door, grace_seconds) as child:
        watch = _Watch(door, child, on_log, should_stop, grace_seconds)
        while not watch.is_over():
            watch.look()
        return watch.result()


class _Watch:
    """Follows a run from outside until it has ended, or has to."""

    def __init__(
        self,
        door: Door,
        child: "_Child",
        on_log: Callable[[dict[str, float]], None],
        should_stop: Callable[[], bool],
        grace_seconds: float,
    ) -> None:
        self._door = door
        self._child = child
        self._on_log = on_log
        self._should_stop = should_stop
        self._grace_seconds = grace_seconds
        self._is_stop_asked = False
        self._deadline: float | None = None
        self._summary: TrainSummary | None = None
        self._failures: list[Failed] = []

    def is_over(self) -> bool:
        """Everyone has left, or the time that was left to them is up."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            return True
        return self._child.has_ended() and not self._door.num_open

    def look(self) -> None:
        """Wait a moment for messages, hand them on, and hand on a wish to stop."""
        for message in self._door.messages(seconds=_POLL_SECONDS):
            if isinstance(message, Logged):
                self._on_log(message.metrics)
            elif isinstance(message, Finished) and message.rank == 0:
                self._summary = _summary(message)
            elif isinstance(message, Failed):
                self._failures.append(message)
        if self._failures:  # the others wait in vain; what they have to say of it is on its way
            self._child.is_quiet = True
            self._end_within(_POLL_SECONDS)
        elif self._summary is not None:
            self._end_within(_END_SECONDS)
        elif not self._is_stop_asked and self._should_stop():
            self._is_stop_asked = True
            self._door.ask_to_stop()
            self._end_within(self._grace_seconds)

    def result(self) -> TrainSummary:
        """The summary; raises what went wrong."""
        if self._failures:
            raise first_cause(self._failures)
        if self._summary is not None:
            return self._summary
        if self._is_stop_asked:
            raise LostProcessError(
                f"expected the training processes to stop within {self._grace_seconds:g} s, got "
                f"some that did not, which were killed; run again to go on from the last checkpoint"
            )
        raise LostProcessError(
            f"expected torchrun to start {self._child.num_processes} training processes, got its "
            f"exit code {self._child.process.poll()}; what it printed says more"
        )

    def _end_within(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self._deadline = until if self._deadline is None else min(self._deadline, until)


class _Child:
    """torchrun, and what it and the processes print: passed on until a failure is known."""

    def __init__(self, process: "subprocess.Popen[bytes]", num_processes: int) -> None:
        self.process = process
        self.num_processes = num_processes
        self.is_quiet = False  # torchrun reports a failure by a page of its own
        assert process.stdout is not None, "its output is a pipe"
        self._printer = threading.Thread(target=self._print, args=(process.stdout,), daemon=True)
        self._printer.start()

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def end(self) -> None:
        """Ends torchrun, should it still run; its processes are in sessions of their own."""
        if not self.has_ended():
            self.is_quiet = True
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._printer.join(_POLL_SECONDS)  # what has not been printed by now is of a killed process

    def _print(self, lines: IO[bytes]) -> None:
        with lines:
            for line in lines:
                if not self.is_quiet:
                    sys.stderr.write(line.decode(errors="replace"))
                    sys.stderr.flush()


@contextmanager
def _open_door() -> Generator[Door]:
    door = Door()
    try:
        yield door
    finally:
        door.close()


@contextmanager
def _torchrun(recipe: Recipe, door: Door, grace_seconds: float) -> Generator[_Child]:
    """torchrun in a session of its own: a terminal's Ctrl-C is for this process to hand on."""
    assert recipe.launch is not None, "there is something to launch"
    num_processes = recipe.launch.processes
    file = door.folder / "recipe.json"
    file.write_text(resolved_json(recipe), encoding="utf-8")
    threads = max(1, (os.cpu_count() or 1) // num_processes)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(num_processes), "--log-dir", str(door.folder / "torchrun")),
        *("-m", "pipeline.launch", str(file)),
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"OMP_NUM_THREADS": str(threads)}
        | os.environ
        | {
            SOCKET_VARIABLE: door.address,
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(round(grace_seconds)),
        },
        start_new_session=True,
    )
    child = _Child(process, num_processes)
    try:
        yield child
    finally:
        door.kill()
        child.end()


def _summary(message: Finished) -> TrainSummary:
    fields = dict(message.summary)
    output = fields.pop("output")
    return TrainSummary(output=output if is_remote(output) else Path(output), **fields)
