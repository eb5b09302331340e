"""A real Prefect server, a work pool and a worker on loopback, as an operator has them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import psutil

from flows.local import answers

ROOT = Path(__file__).parents[1]
PREFECT = (sys.executable, "-m", "prefect")
TEACHER, STUDENT = "teacher-cache/nightly", "student-train/on-commit"
# Overrides of a training that goes on until it is stopped, with a loader's process beside it.
LONG = ["train.max_steps=100000", "train.epochs=100000", "train.loader_workers=1"]
_ATTEMPTS = 5
TERMINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass(frozen=True)
class Operations:
    """What an operator does, and sees."""

    url: str
    folder: Path
    environment: dict[str, str]
    processes: list[psutil.Popen] = field(default_factory=list)

    def prefect(self, *arguments: str, **variables: str) -> str:
        """Prefect's command in the repository's root, and what it prints."""
        done = subprocess.run(
            [*PREFECT, *arguments],
            cwd=ROOT,
            env=self.environment | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{arguments}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, *arguments: str, **variables: str) -> psutil.Popen:
        """Prefect's command as a process that goes on; it is killed when the context ends."""
        command = [*PREFECT, *arguments]
        return self.launch(arguments[0], command, folder=self.folder, **variables)

    def launch(
        self, name: str, command: list[str], *, folder: Path = ROOT, **variables: str
    ) -> psutil.Popen:
        """The same of any command; `name` is its log's."""
        log = self.folder / f"{len(self.processes)}-{name}.log"
        with log.open("wb") as output:
            process = psutil.Popen(
                command,
                cwd=folder,
                env=self.environment | variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def api(self, method: str, path: str, body: object = None) -> Any:
        """The server's REST API; as Prefect's own client, it asks again while SQLite is busy."""
        request = urllib.request.Request(
            f"{self.url}/{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
            method=method,
        )
        for attempt in range(_ATTEMPTS):
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    text = response.read()
            except urllib.error.HTTPError as error:
                if error.code != HTTPStatus.SERVICE_UNAVAILABLE or attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(2)
            else:
                return json.loads(text) if text else None
        raise AssertionError("unreachable: the last attempt returns or raises")

    def deploy(self, recipe: Path, cache: str) -> None:
        """As the head of flows/prefect.yaml says."""
        self.prefect("work-pool", "create", "--type", "process", "tidecache", "--overwrite")
        self.prefect(
            "--no-prompt",
            "deploy",
            "--all",
            "--prefect-file",
            "flows/prefect.yaml",
            TIDECACHE_RECIPE=str(recipe),
            TIDECACHE_CACHE=cache,
        )

    def worker(self, *queues: str, **variables: str) -> psutil.Popen:
        """A worker that runs one stage at a time: of these queues, or of both stages'."""
        chosen = [word for queue in queues for word in ("--work-queue", queue)]
        arguments = ("worker", "start", "--pool", "tidecache", "--type", "process", "--limit", "1")
        return self.start(*arguments, *chosen, **variables)

    def deployment(self, name: str) -> dict[str, Any]:
        """The deployment FLOW/NAME."""
        return self.api("GET", f"deployments/name/{name}")

    def run(self, deployment: str, *, queue: str | None = None, **parameters: object) -> str:
        """A run by hand, with other parameters, in another queue if one is named; its id."""
        number = self.deployment(deployment)["id"]
        body: dict[str, object] = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        if queue is not None:
            body["work_queue_name"] = queue
        return self.api("POST", f"deployments/{number}/create_flow_run", body)["id"]

    def runs(self, flow: str, recipe: Path) -> list[dict[str, Any]]:
        """A flow's runs with this recipe, the oldest first."""
        body = {"flows": {"name": {"any_": [flow]}}, "sort": "EXPECTED_START_TIME_ASC"}
        runs = self.api("POST", "flow_runs/filter", body)
        return [run for run in runs if run["parameters"]["recipe"] == str(recipe)]

    def chained(self, recipe: Path) -> dict[str, Any]:
        """The run of stage 2 that stage 1's event starts."""
        self.until(lambda: self.runs("student-train", recipe))
        return self.runs("student-train", recipe)[0]

    def state(self, run: str) -> dict[str, Any]:
        """Type, name and message of a run's state."""
        return self.api("GET", f"flow_runs/{run}")["state"]

    def log(self, run: str) -> str:
        """The run's log, as a form shows it."""
        body = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"}
        return "\n".join(entry["message"] for entry in self.api("POST", "logs/filter", body))

    def end_of(self, run: str, *, seconds: float = 180) -> dict[str, Any]:
        """The state that a run ends in."""
        self.until(lambda: self.state(run)["type"] in TERMINAL, seconds=seconds)
        return self.state(run)

    def ends(self, run: str, state: str) -> None:
        """Waits for a run's end, which is to be of this type."""
        assert self.end_of(run)["type"] == state, self.log(run)

    def until(self, condition: Callable[[], object], *, seconds: float = 180) -> None:
        """Waits for a condition; what the worker and the server printed tells why it never came."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"it took too long:\n{self._printed()}"
            time.sleep(0.1)

    def flow_process(self, run: str) -> psutil.Process:
        """The process that a run's flow is in."""
        found: list[psutil.Process] = []

        def is_there() -> bool:
            found[:] = [one for one in processes_of(self.processes) if _runs(one, run)]
            return bool(found)

        self.until(is_there)
        return found[0]

    def family_at_step(self, run: str, step: int) -> list[psutil.Process]:
        """A training's process and those that it started, once its log tells of a step."""
        process = self.flow_process(run)
        self.until(lambda: f"step {step} of" in self.log(run))
        family = [process, *process.children(recursive=True)]
        assert any("spawn_main" in " ".join(one.cmdline()) for one in family), "a loader's process"
        return family

    def cancel(self, run: str) -> None:
        """As the button in the UI and `prefect flow-run cancel` do."""
        body = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
        self.api("POST", f"flow_runs/{run}/set_state", body)

    def _printed(self) -> str:
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text()[-6000:]}" for log in logs)


@contextmanager
def operations(folder: Path, **variables: str) -> Iterator[Operations]:
    """A server with a database of its own under `folder`; everything ends with the context."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = kept | {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_UI_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PYTHONUNBUFFERED": "1",
        **variables,
    }
    made = Operations(url=url, folder=folder, environment=environment)
    try:
        made.start("server", "start", "--host", "127.0.0.1", "--port", str(port))
        made.until(lambda: answers(f"{url}/health"))
        yield made
    finally:
        for process in reversed(made.processes):
            for one in processes_of([process]):
                with suppress(psutil.NoSuchProcess):
                    one.send_signal(signal.SIGKILL)
            process.wait()


def processes_of(roots: list[psutil.Popen]) -> list[psutil.Process]:
    """These processes and all that they started and that still run."""
    found: list[psutil.Process] = []
    for root in roots:
        with suppress(psutil.NoSuchProcess):
            found += [root, *root.children(recursive=True)]
    return found


def _runs(process: psutil.Process, run: str) -> bool:
    with suppress(psutil.Error):
        return (
            process.environ().get("PREFECT__FLOW_RUN_ID") == run
            and "prefect.engine" in process.cmdline()[-1]
        )
    return False


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def ledger_of(recipe: Path) -> dict[str, int]:
    """Each shard's ledger entry, and when it was written."""
    entries = (recipe.parent / "cache" / "ledger").glob("*.json")
    return {entry.name: entry.stat().st_mtime_ns for entry in entries}


def last_saved(output: Path) -> int:
    """The step of a training's last checkpoint."""
    return max(int(path.name.removeprefix("checkpoint-")) for path in output.glob("checkpoint-*"))
