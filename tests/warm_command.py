"""`tidecache` many times over, at the price of its imports once: each call is a fork.

As a script it imports what the commands need, and then answers lines of JSON: a command's
`arguments`, the `folder` that it runs in, the `log` for all that it prints, and after how many
seconds it is ended. An answer is the exit code; a signal's number is negative.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


class WarmCommand:
    """The process that forks. All calls have its environment; `end()` it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(environment),
        )

    def __call__(self, arguments: Sequence[str], *, folder: Path, log: Path, limit_s: int) -> int:
        """The exit code of `tidecache ARGUMENTS`."""
        question = {"arguments": arguments, "folder": str(folder), "log": str(log)}
        assert self._process.stdin is not None, "its input is a pipe"
        assert self._process.stdout is not None, "its output is a pipe"
        self._process.stdin.write(json.dumps({**question, "limit_s": limit_s}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def end(self) -> None:
        """Ends the process."""
        self._process.communicate()


def _main() -> None:
    import pipeline.cli.app
    import pipeline.launch.start
    import pipeline.plan.plan
    import pipeline.teacher_cache
    import pipeline.train.make

    for line in sys.stdin:
        question = json.loads(line)
        child = os.fork()
        if child == 0:
            break  # and ends as the console script does, with what is registered for the end
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code, flush=True)
    else:
        return
    output = os.open(question["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, file in ((0, nothing), (1, output), (2, output)):
        os.dup2(file, descriptor)
    os.chdir(question["folder"])
    signal.alarm(question["limit_s"])
    sys.argv = ["tidecache", *question["arguments"]]
    pipeline.cli.app.main()


if __name__ == "__main__":
    _main()
