"""Two real processes (gloo) train the student that one does: losses, gradient norms and weights."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import steps_of
from torch.testing import assert_close

from pipeline.student_train import run_student_train
from pipeline.teacher_cache import run_teacher_cache
from storage_schemas.errors import RecipeError

_TESTS = Path(__file__).parents[1]
_FIRST = 2e-6  # float32 sums in another order: the gradients of two processes are added once more
_NATS = 1e-6  # a KL of some thousandths is a difference of log-probabilities of some eight nats
_LATER = 2e-5  # Adam divides gradients by their size, and so makes small ones' rounding large
STEPS = 6
STOP_AT = 3  # entries; a step is logged after it has been asked whether to stop
DONE = STOP_AT + 1
RUNS = {
    "ddp-a": ("a", {}),
    "ddp-b": ("b", {}),
    "ddp-accumulated": ("b", {"train.accumulation": 4, "train.batch_size": 2}),
    "fsdp2-b": ("b", {"launch.sharding": "fsdp2"}),
    "fsdp2-bf16": ("b", {"launch.sharding": "fsdp2", "train.precision": "bf16"}),
    "ddp-bf16": ("b", {"train.precision": "bf16"}),
    "lora": ("b", {"train.lora": {"rank": 4, "dropout": 0.1}}),
    "fsdp2-lora": ("b", {"launch.sharding": "fsdp2", "train.lora": {"rank": 4}}),
    "checkpointed": ("b", {"train.gradient_checkpointing": True}),
    "fsdp2-checkpointed": (
        "b",
        {"launch.sharding": "fsdp2", "train.gradient_checkpointing": True},
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def recipe_of(tiny, folder):
    """`recipe_of(name, processes)`; the caches are made once."""
    for kind in "ab":
        run_teacher_cache(tiny.recipe(kind, folder / kind))

    def make(name, processes, **more):
        kind, overrides = RUNS[name]
        options = {"train.accumulation": 2, **overrides, **more}
        launch = {"processes": processes, "sharding": options.pop("launch.sharding", "ddp")}
        options.setdefault("train.output", str(folder / f"{name}-{processes}"))
        options["launch"] = launch if processes > 1 else {"processes": 1}
        return tiny.recipe(kind, folder / kind, **options)

    return make


def run_many(recipes, folder, name):
    """The log entries of every recipe, trained by two processes."""
    (folder / f"{name}.json").write_text(json.dumps(recipes))
    logs = folder / f"{name}-logs.json"
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, _TESTS / "many_runs.py", folder / f"{name}.json", logs],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(_TESTS.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    return json.loads(logs.read_text())


def train_here(recipe, stop_at=None):
    """What this process logs of the recipe alone."""
    entries = []
    run_student_train(
        recipe,
        on_log=entries.append,
        should_stop=lambda: len(entries) == stop_at,
        shows_progress=False,
    )
    return entries


@pytest.fixture(scope="module")
def two(recipe_of, folder):
    """What two processes logged: of every run, and of runs that are stopped and go on."""
    train_here(recipe_of("ddp-b", 1, **{"train.output": str(folder / "grows")}), STOP_AT)
    runs = {name: recipe_of(name, 2) for name in RUNS}
    grown, shrunk, sharded, odd = (
        recipe_of(base, 2, **{"train.output": str(folder / name), **more})
        for base, name, more in (
            ("ddp-b", "grows", {}),
            ("ddp-b", "shrinks", {}),
            ("fsdp2-b", "sharded", {}),
            ("ddp-b", "odd", {"train.accumulation": 3}),
        )
    )
    runs |= {"grows": grown, "shrinks": shrunk, "sharded": sharded, "sharded-on": sharded}
    runs |= {"odd": odd, "fsdp2-lora-end": runs["fsdp2-lora"], "fsdp2-end": runs["fsdp2-b"]}
    fields = {name: recipe.model_dump(mode="json") for name, recipe in runs.items()}
    for name in ("shrinks", "sharded"):
        fields[name]["stop_at"] = STOP_AT
    for name in ("fsdp2-lora-end", "fsdp2-end"):
        fields[name]["loses_its_end"] = True
    return run_many(fields, folder, "two")


@pytest.fixture(scope="module")
def one(recipe_of):
    """`one(name)`: what this process logs of the same recipe alone."""
    return cache(lambda name: train_here(recipe_of(name, 1)))


def assert_same_run(got, want):
    """Every term, measure and gradient norm of every step."""
    for entry, other in zip(steps_of(got), steps_of(want), strict=True):
        assert entry.keys() == other.keys()
        rel = _FIRST if entry["step"] == 1 else _LATER
        for key in other:
            assert entry[key] == pytest.approx(other[key], rel=rel, abs=_NATS), key


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_the_student_that_one_does(name, one, two, folder):
    assert len(two[name]) == STEPS
    assert two.get(f"{name}-end", []) == []  # trained no more when it had lost its final student
    assert_same_run(two[name], one(name))
    got, kept = (load_file(folder / f"{name}-{n}" / "final" / "model.safetensors") for n in (2, 1))
    assert_close(got, kept, rtol=1e-4, atol=1e-6)


def test_a_run_goes_on_in_more_processes_than_it_began_in(one, two):
    assert_same_run(two["grows"], one("ddp-b")[DONE:])


def test_a_run_stopped_by_one_of_two_processes_goes_on_in_a_single_one(recipe_of, one, two, folder):
    assert_same_run(two["shrinks"], one("ddp-b")[:DONE])  # the second was not asked to stop
    rest = train_here(recipe_of("ddp-b", 1, **{"train.output": str(folder / "shrinks")}))
    assert_same_run(rest, one("ddp-b")[DONE:])


def test_a_run_that_shares_its_weights_goes_on_where_it_stopped(one, two):
    assert_same_run(two["sharded"] + two["sharded-on"], one("fsdp2-b"))


def test_a_checkpoint_of_the_other_sharding_is_refused(recipe_of, two, folder):
    (folder / "sharded" / "summary.json").unlink()
    with pytest.raises(
        RecipeError, match=r"saved with sharding 'fsdp2'.*launch.sharding = 'fsdp2'"
    ):
        train_here(recipe_of("ddp-b", 1, **{"train.output": str(folder / "sharded")}))


def test_an_accumulation_that_does_not_divide_is_refused_with_what_to_do(two):
    assert "multiple of the 2 training processes" in two["odd"]
    assert "got 3; set train.accumulation = 4" in two["odd"]
