"""Sweeps of real runs: one that cannot be trained, a stop amid another, and going on."""

import json
import logging
import re
import signal
import tomllib
from pathlib import Path

import polars as pl
import pytest
from prefect import get_client
from typer.testing import CliRunner

from pipeline.cli import app as cli
from pipeline.cli.sweep import train_runs
from pipeline.config.recipe import load_recipe
from pipeline.config.sweep import SweepConfig, load_sweep
from pipeline.sweep.expand import expand_sweep
from pipeline.teacher_cache import run_teacher_cache

ROOT = Path(__file__).parents[3]
FAILED, USER_ERROR, STOPPED = 1, 2, 143
BLOCKED, OTHER, LAST = "ce", "calm,temperature=2", "reverse"
SWEEP = """
recipe = "{recipe}"
output = "{folder}/sweep"
set = {{train.max_steps = 6}}

[[runs]]
name = "ce"
set = {{objective.type = "masked_nll"}}

[[runs]]
name = "calm"
set = {{objective.type = "calm"}}
grid = {{objective.temperature = [2.0]}}

[[runs]]
name = "reverse"
"""


@pytest.fixture
def write_sweep(write_recipe):
    """Writes a sweep of three runs over a cache that is there."""

    def write() -> Path:
        recipe = write_recipe()
        run_teacher_cache(load_recipe(recipe))
        sweep = recipe.parent / "sweep.toml"
        sweep.write_text(SWEEP.format(recipe=recipe, folder=recipe.parent))
        return sweep

    return write


@pytest.fixture
def run(caplog):
    """Runs the command in this process, with its log."""
    caplog.set_level(logging.INFO, "tidecache")
    runner = CliRunner()
    return lambda *arguments: runner.invoke(cli.app, ["sweep", *map(str, arguments)])


class SignalAt(logging.Handler):
    """Sends this process a signal, once, when a run has logged a step."""

    def __init__(self, number: int, run: str, step: str) -> None:
        super().__init__()
        self.is_in_run, self.is_sent = False, False
        self.number, self.run, self.step = number, run, step

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("run "):
            self.is_in_run = message.endswith(self.run)
        elif self.is_in_run and message.startswith(self.step) and not self.is_sent:
            self.is_sent = True
            signal.raise_signal(self.number)


@pytest.fixture
def signal_at():
    """`signal_at(SIGTERM, run, "step 3 ")`."""
    logger = logging.getLogger("tidecache")
    handlers: list[SignalAt] = []

    def add(number: int, run: str, step: str) -> SignalAt:
        handlers.append(SignalAt(number, run, step))
        logger.addHandler(handlers[-1])
        return handlers[-1]

    yield add
    for handler in handlers:
        logger.removeHandler(handler)


def student(folder: Path) -> bytes:
    return (folder / "final" / "model.safetensors").read_bytes()


def steps_in(messages: list[str]) -> list[int]:
    """The steps that were trained, as the log tells."""
    return [
        int(text.split()[1])
        for text in messages
        if text.startswith("step ") and "masked_nll" in text
    ]


def test_a_broken_run_costs_no_other_and_a_stopped_sweep_goes_on(
    write_sweep, run, signal_at, caplog
):
    sweep = write_sweep()
    runs = sweep.parent / "sweep" / "runs"
    runs.mkdir(parents=True)
    (runs / BLOCKED).write_text("not a folder")
    sent = signal_at(signal.SIGTERM, OTHER, "step 3 ")
    stopped = run(sweep, "--no-prefect")  # a step is logged when it is over: 4 is the last
    assert sent.is_sent
    assert stopped.exit_code == STOPPED, stopped.output
    assert f"stopped in run {OTHER}; run again to go on" in stopped.stderr
    assert (runs / OTHER / "checkpoint-4" / "trainer_state.json").exists()
    assert not (runs / LAST).exists()

    table = run(sweep, "--table")
    assert table.exit_code == 0, table.output
    frame = pl.read_parquet(sweep.parent / "sweep" / "table.parquet")
    assert frame["state"].to_list() == ["not begun", "unfinished", "not begun"]
    assert frame["steps"].to_list() == [0, 4, 0]

    caplog.clear()
    ended = run(sweep, "--no-prefect")
    assert ended.exit_code == FAILED, ended.output
    assert "1 of 3 runs failed:" in ended.stderr
    assert f"{BLOCKED}: train.output: cannot write to {runs / BLOCKED}" in ended.stderr
    assert steps_in(caplog.messages) == [5, 6, 1, 2, 3, 4, 5, 6]
    frame = pl.read_parquet(sweep.parent / "sweep" / "table.parquet")
    assert frame["run"].to_list() == [BLOCKED, OTHER, LAST]
    assert frame["state"].to_list() == ["failed", "finished", "finished"]
    assert frame["steps"].to_list() == [0, 6, 6]
    assert frame["objective.type"].to_list() == ["masked_nll", "calm", "reverse_calm"]
    assert "cannot write" in frame["error"][0]
    assert (sweep.parent / "sweep" / "plot.png").exists()

    (runs / BLOCKED).unlink()
    caplog.clear()
    whole = run(sweep, "--no-prefect")
    assert whole.exit_code == 0, whole.output
    assert steps_in(caplog.messages) == [1, 2, 3, 4, 5, 6]  # of the mended run alone
    table = pl.read_csv(sweep.parent / "sweep" / "table.csv")
    assert table["state"].to_list() == ["finished"] * 3
    summary = json.loads((runs / OTHER / "summary.json").read_text())
    assert table.row(1, named=True)["loss"] == pytest.approx(summary["metrics"]["loss"])


def test_ctrl_c_saves_a_checkpoint_too_and_the_handlers_are_put_back(write_sweep, run, signal_at):
    sweep = write_sweep()
    sent = signal_at(signal.SIGINT, BLOCKED, "step 2 ")
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    stopped = run(sweep, "--no-prefect")
    assert sent.is_sent
    assert stopped.exit_code == STOPPED, stopped.output
    assert (sweep.parent / "sweep" / "runs" / BLOCKED / "checkpoint-3").is_dir()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_run_of_a_sweep_is_the_same_as_student_train(write_sweep, run):
    sweep = write_sweep()
    assert run(sweep, "--no-prefect").exit_code == 0
    recipe = sweep.parent / "tiny.toml"
    alone = ["objective.type=calm", "objective.temperature=2.0", "train.max_steps=6"]
    options = [word for setting in alone for word in ("--set", setting)]
    done = CliRunner().invoke(cli.app, ["student-train", str(recipe), *options, "--no-prefect"])
    assert done.exit_code == 0, done.output
    assert student(sweep.parent / "sweep" / "runs" / OTHER) == student(sweep.parent / "student")


@pytest.mark.usefixtures("prefect_server")
def test_through_prefect_each_run_is_a_run_of_the_flow(write_sweep, caplog):
    sweep = write_sweep()
    config = load_sweep(sweep)
    runs = expand_sweep(config)
    blocked = sweep.parent / "sweep" / "runs" / BLOCKED
    blocked.parent.mkdir(parents=True)
    blocked.write_text("not a folder")
    end = train_runs(config, runs, through_prefect=True)
    with get_client(sync_client=True) as client:
        flow_runs = client.read_flow_runs()
    overrides = {tuple(each.parameters["overrides"]) for each in flow_runs}
    assert {run.overrides for run in runs} <= overrides
    assert list(end.failures) == [BLOCKED]
    assert end.stopped_in is None
    assert all((Path(run.recipe.train.output) / "final").is_dir() for run in runs[1:])
    assert [record for record in caplog.records if record.exc_info] == []


def test_what_the_cache_does_not_have_is_refused_for_all_runs_before_any_is_trained(
    write_sweep, run
):
    sweep = write_sweep()
    sweep.write_text(
        sweep.read_text()
        + """
[[runs]]
name = "longer"
set = {student.length = 128}

[[runs]]
name = "finer"
set = {student.block_size = 8}
"""
    )
    refused = run(sweep, "--no-prefect")
    assert refused.exit_code == USER_ERROR
    assert "longer: student.length: the cache has 64, the recipe asks for 128" in refused.stderr
    assert "finer: student.block_size: the cache has 16" in refused.stderr
    assert not (sweep.parent / "sweep").exists()


def test_a_folder_with_other_settings_is_not_taken_for_the_run(write_sweep, run):
    sweep = write_sweep()
    assert run(sweep, "--no-prefect").exit_code == 0
    sweep.write_text(sweep.read_text().replace("max_steps = 6", "max_steps = 5"))
    listed = run(sweep, "--dry-run")
    assert listed.exit_code == 0
    assert listed.output.count("another run") == 3
    refused = run(sweep, "--no-prefect")
    assert refused.exit_code == FAILED
    assert "holds another run: it differs in recipe.train.max_steps" in refused.stderr


def test_a_dry_run_lists_the_runs_and_writes_nothing(write_sweep, run):
    sweep = write_sweep()
    listed = run(sweep, "--dry-run")
    assert listed.exit_code == 0, listed.output
    for name in (BLOCKED, OTHER, LAST):
        assert name in listed.output
    assert listed.output.count("not begun") == 3
    assert not (sweep.parent / "sweep").exists()
    assert run(sweep, "--dry-run", "--table").exit_code == USER_ERROR


def test_the_example_of_the_page_runs(write_recipe, run, monkeypatch, tmp_path):
    """As it stands it expands; on this test's recipe, in fewer steps, it is trained."""
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "training.md").read_text("utf-8")
    (text,) = re.findall(r"## Sweeps\n.*?```toml\n(.*?)```", page, re.DOTALL)
    assert expand_sweep(SweepConfig.model_validate(tomllib.loads(text)))
    recipe = write_recipe()
    run_teacher_cache(load_recipe(recipe))
    changes = {
        "flows/recipes/demo_cross.toml": str(recipe),
        "demo-output/sweeps/objectives": str(tmp_path / "sweep"),
        "max_steps = 30": "max_steps = 2",
    }
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    sweep = tmp_path / "sweep.toml"
    sweep.write_text(text)
    done = run(sweep, "--no-prefect")
    assert done.exit_code == 0, done.output
    table = pl.read_csv(tmp_path / "sweep" / "table.csv")
    assert table["state"].to_list() == ["finished"] * 10
    seeds = pl.read_csv(tmp_path / "sweep" / "seeds.csv")
    assert seeds["seeds"].to_list() == [2] * 5
    assert "reverse-calm,temperature=5" in seeds["runs"].to_list()
    for place in ("table.parquet", "table.csv", "seeds.parquet", "seeds.csv", "plot.png"):
        assert str(tmp_path / "sweep" / place) in done.stdout.replace("\n", "")
