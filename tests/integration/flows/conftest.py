"""Tiny real models, a recipe over them, and one Prefect server for the whole session."""

import json
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

NUM_RECORDS = 6
MODEL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
RECIPE = """
[pipeline]
type = "cross_tokenizer"

[records]
type = "files"
paths = ["{records}"]
id_field = "id"

[student]
model = "{models}/student"
length = 64
block_size = 16

[teacher]
model = "{models}/teacher"
length = 64
dtype = "float32"
device = "cpu"
batch_tokens = 256
attention = {{ type = "full" }}

[noise]
views = 2

[targets]
type = "chunks"

[cache]
path = "{folder}/cache"
records_per_part = {records_per_part}

[objective]
type = "reverse_calm"

[train]
output = "{folder}/student"
max_steps = 2
batch_size = 2
precision = "fp32"
device = "cpu"
log_steps = 1
trackers = []
loader_workers = 0
"""


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A student and a teacher with random weights and the bundled tokenizers."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("models")
    assets = Path(__file__).parents[3] / "pipeline" / "demo" / "assets"
    tokenizers = {"student": "tokenizer-student", "teacher": "tokenizer-teacher-a"}
    for name, tokenizer_name in tokenizers.items():
        tokenizer = AutoTokenizer.from_pretrained(assets / tokenizer_name)
        tokenizer.save_pretrained(folder / name)
        config = Qwen3Config(vocab_size=len(tokenizer), tie_word_embeddings=True, **MODEL)
        Qwen3ForCausalLM(config).save_pretrained(folder / name)
    return folder


@pytest.fixture
def write_recipe(models: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe with a cache and a student of its own under this test's folder."""

    def write(name: str = "tiny", *, records: int = NUM_RECORDS, records_per_part: int = 2) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        lines = [
            {
                "id": f"r{i}",
                "messages": [
                    {"role": "user", "content": f"Write a function that adds {i}."},
                    {"role": "assistant", "content": f"def add(x):\n    return x + {i}\n"},
                ],
            }
            for i in range(records)
        ]
        data = folder / "records.jsonl"
        data.write_text("".join(json.dumps(line) + "\n" for line in lines))
        recipe = folder / f"{name}.toml"
        recipe.write_text(
            RECIPE.format(
                records=data, models=models, folder=folder, records_per_part=records_per_part
            )
        )
        return recipe

    return write


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

    def until(self, condition: Callable[[], object], *, seconds: float = 120) -> None:
        """Waits for a condition, as long as the command runs and the time lasts."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"it ended early:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"it took too long:\n{self.log.read_text()}"
            time.sleep(0.05)
