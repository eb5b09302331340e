"""Tiny real models, a recipe over them, and one Prefect server for the whole session."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

# Prefect reads these when it is first imported: a home of its own, and nothing sent anywhere.
os.environ |= {
    "PREFECT_HOME": tempfile.mkdtemp(prefix="prefect-tests-"),
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A student and a teacher with random weights and the bundled tokenizers."""
    from tests.tiny_recipe import save_models

    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def write_recipe(models: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe with a cache and a student of its own under this test's folder."""
    from tests.tiny_recipe import write_recipe_file

    return lambda name="tiny", **sizes: write_recipe_file(tmp_path / name, models, **sizes)


@pytest.fixture(scope="session")
def prefect_server():
    """One temporary server for all flow tests."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture
def tidecache(tmp_path: Path) -> Iterator[Callable[..., "Command"]]:
    """Starts the command in a process of its own, with no Prefect settings; ends what is left."""
    root = Path(__file__).parents[3]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    started: list[Command] = []

    def start(*arguments: str) -> Command:
        log = tmp_path / f"log-{len(started)}.txt"
        with log.open("wb") as output:
            process = psutil.Popen(
                [sys.executable, "-c", "from pipeline.cli import main; main()", *arguments],
                cwd=root,
                env=env | {"PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        started.append(Command(process=process, log=log))
        return started[-1]

    yield start
    for command in started:
        for process in [*command.children(), command.process]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        command.process.wait()


@dataclass(frozen=True)
class Command:
    """A running command and all that it printed so far."""

    process: psutil.Popen
    log: Path

    def children(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return self.process.children(recursive=True)
        return []

    def until(self, condition: Callable[[], object], *, seconds: float = 240) -> None:
        """Waits for a condition, as long as the command runs and the time lasts."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"it ended early:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"it took too long:\n{self.log.read_text()}"
            time.sleep(0.05)
