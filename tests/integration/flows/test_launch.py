"""Two training processes behind the command: told of, stopped, killed, and gone when it is."""

import re

import psutil
import pytest

from pipeline.config.recipe import load_recipe
from pipeline.teacher_cache import run_teacher_cache

STOPPED, USER_ERROR = 143, 2
TWO = ("--set", "launch.processes=2", "--set", "train.accumulation=2", "--no-prefect")
STEPS = ("--set", "train.max_steps=3000", "--set", "train.epochs=6000")


@pytest.fixture
def recipe(write_recipe):
    """Over a cache that is there."""
    made = write_recipe()
    run_teacher_cache(load_recipe(made))
    return made


def rank_of(process):
    """Which training process it is; None for what is none."""
    command = process.cmdline()
    is_one = "pipeline.launch" in command and "torch.distributed.run" not in command
    return int(process.environ()["RANK"]) if is_one else None


def test_two_processes_stop_go_on_and_never_outlive_the_command(recipe, tidecache):
    command = tidecache("student-train", str(recipe), *STEPS, *TWO)
    command.until(lambda: "step 3 " in command.log.read_text())
    children = command.children()
    assert {0, 1} <= {rank_of(child) for child in children}
    command.process.terminate()
    assert command.process.wait(120) == STOPPED, command.log.read_text()
    assert psutil.wait_procs(children, timeout=20)[1] == []
    (checkpoint,) = (recipe.parent / "student").glob("checkpoint-*")
    done = int(checkpoint.name.removeprefix("checkpoint-"))
    assert f"stopped at step {done}; run again to go on" in command.log.read_text()

    command = tidecache("student-train", str(recipe), *STEPS, *TWO)
    command.until(lambda: " loss " in command.log.read_text())
    assert f"step {done + 1} " in command.log.read_text()
    children = command.children()
    command.process.kill()
    assert psutil.wait_procs(children, timeout=20)[1] == []


def test_a_killed_training_process_ends_the_run_with_one_clear_message(recipe, tidecache):
    command = tidecache("student-train", str(recipe), *STEPS, *TWO)
    command.until(lambda: "step 3 " in command.log.read_text())
    children = command.children()
    (second,) = (child for child in children if rank_of(child) == 1)
    second.kill()
    assert command.process.wait(60) == USER_ERROR, command.log.read_text()
    assert psutil.wait_procs(children, timeout=20)[1] == []
    log = command.log.read_text()
    assert re.search(r"got the end of process [01] without a word", log)
    assert "Traceback" not in log
    assert "ChildFailedError" not in log


def test_what_a_process_refuses_is_told_as_if_there_were_one(recipe, tidecache):
    command = tidecache("student-train", str(recipe), *TWO, "--set", "train.accumulation=1")
    assert command.process.wait(120) == USER_ERROR
    log = command.log.read_text()
    assert "multiple of the 2 training processes" in log
    assert "Traceback" not in log
    assert "ChildFailedError" not in log
    assert not (recipe.parent / "student" / "run.json").exists()
