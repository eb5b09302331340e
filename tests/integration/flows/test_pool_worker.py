"""Stopping a worker with a run in flight, as `docker stop` and a service manager do."""

import signal
import sys

import pytest

from tests.operations import STUDENT, TEACHER, operations, processes_of
from tests.tiny_recipe import write_recipe_file


@pytest.fixture
def server(tmp_path):
    with operations(tmp_path / "operations") as server:
        yield server


def test_a_stopped_worker_lets_its_run_save_a_checkpoint_and_starts_no_other(
    server, models, tmp_path
):
    recipe = write_recipe_file(tmp_path / "stopped", models)
    server.deploy(recipe, "s3://nobody/commits-this")
    command = [sys.executable, "-m", "flows.pool_worker", "--pool", "tidecache", "--limit", "1"]
    worker = server.launch("pool-worker", command)
    made = server.run(TEACHER, recipe=str(recipe))
    server.ends(made, "COMPLETED")
    endless = ["train.max_steps=100000", "train.save_steps=100000"]
    run = server.run(STUDENT, recipe=str(recipe), overrides=endless)
    server.until(lambda: "step 2 of" in server.log(run))
    waiting = server.run(STUDENT, recipe=str(recipe))
    everything = processes_of([worker])

    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    assert not [one for one in everything if one.is_running()]
    assert server.state(run)["name"] == "Cancelled"
    assert "run again to go on" in server.state(run)["message"]
    assert list((recipe.parent / "student").glob("checkpoint-*"))
    assert server.state(waiting)["type"] == "SCHEDULED"
