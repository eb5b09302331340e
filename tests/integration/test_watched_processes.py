"""Two real processes (gloo) score held-out text, end early, and keep the best, as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import lines, steps_of, write_lines
from transformers import AutoModelForCausalLM

from pipeline.evaluate.heldout import HeldOut, evaluate_held_out
from pipeline.student_train import run_student_train
from pipeline.teacher_cache import run_teacher_cache
from pipeline.train.metrics_log import scan_metrics

_TESTS = Path(__file__).parents[1]
_CLOSE = 1e-5  # float32 sums in another order
_LATER = 1e-3  # the same after steps at a rate that makes much of such differences
STOP_AT = 2  # entries; a step is logged after it has been asked whether to stop
LORA = {"train.lora": {"rank": 4}, "train.learning_rate": 5.0}
RUNS = {
    "ddp": {},
    "fsdp2": {"launch.sharding": "fsdp2"},
    "lora": LORA,
    "fsdp2-lora": {"launch.sharding": "fsdp2", **LORA},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("watched")


@pytest.fixture(scope="module")
def recipe_of(tiny, folder):
    run_teacher_cache(tiny.recipe("b", folder))
    rows = [line | {"id": f"unseen/{i}"} for i, line in enumerate(lines())]
    path = write_lines(folder / "unseen.jsonl", rows)
    records = {"type": "files", "paths": [str(path)], "id_field": "id"}
    held_out = {"records": records, "every_steps": 1, "patience": 2, "max_records": 5}
    ruinous = {  # nothing after the first steps is better
        "train.max_steps": 12,
        "train.learning_rate": 0.3,
        "train.warmup_share": 0.0,
        "train.accumulation": 2,
        "train.keep_checkpoints": 1,
    }

    def make(name, processes, **more):
        options = {**ruinous, **more, "train.output": str(folder / name), "held_out": held_out}
        sharding = options.pop("launch.sharding", "ddp")
        launch = {"processes": processes, "sharding": sharding}
        return tiny.recipe("b", folder, **options, launch=launch)

    return make


@pytest.fixture(scope="module")
def two(recipe_of, folder):
    """What two processes logged, also of a run that is stopped and goes on."""
    runs = {name: recipe_of(name, 2, **more) for name, more in RUNS.items()}
    runs |= {"stopped": recipe_of("stopped", 2), "goes-on": recipe_of("stopped", 2)}
    fields = {name: recipe.model_dump(mode="json") for name, recipe in runs.items()}
    fields["stopped"]["stop_at"] = STOP_AT
    recipes, logs = folder / "recipes.json", folder / "logs.json"
    recipes.write_text(json.dumps(fields))
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, _TESTS / "many_runs.py", recipes, logs],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(_TESTS.parent)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    return {name: steps_of(entries) for name, entries in json.loads(logs.read_text()).items()}


@pytest.fixture(scope="module")
def one(recipe_of):
    """What this process logs alone, and its summary."""
    entries: list[dict[str, float]] = []
    summary = run_student_train(recipe_of("alone", 1), on_log=entries.append, shows_progress=False)
    return steps_of(entries), summary


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_two_processes_score_and_end_as_one_does(name, one, two, folder):
    entries, summary = one
    stored = json.loads((folder / name / "summary.json").read_text())
    assert stored["stopped_early"]
    assert (stored["steps"], stored["best_step"]) == (summary.steps, summary.best_step)
    for key in (key for key in entries[0] if key.startswith("held_out")):
        assert two[name][0][key] == pytest.approx(entries[0][key], rel=_CLOSE), key
    for got, want in zip(two[name], entries, strict=True):
        assert got["held_out_nll"] == pytest.approx(want["held_out_nll"], rel=_LATER)


@pytest.mark.parametrize("name", RUNS)
def test_the_best_student_is_whole_and_says_what_made_it(name, two, folder):
    out = folder / name
    model = AutoModelForCausalLM.from_pretrained(out / "best", dtype=torch.float32)
    masks = HeldOut.load(out / "held-out.parquet")
    scores = evaluate_held_out(model, masks, mask_id=4095, block_size=16)
    best = min(entry["held_out_nll"] for entry in two[name])
    assert scores.content.nll_bound == pytest.approx(best, rel=_CLOSE)
    step = json.loads((out / "best" / "tidecache.json").read_text())["step"]
    assert step == json.loads((out / "summary.json").read_text())["best_step"]
    assert (out / "best" / "recipe.json").exists()


def test_the_log_is_written_once_and_its_pace_is_that_of_both(two, folder):
    log = scan_metrics(folder / "ddp").collect()
    assert log["step"].to_list() == [entry["step"] for entry in two["ddp"]]
    assert log["held_out_nll"].to_list() == [entry["held_out_nll"] for entry in two["ddp"]]
    assert log["wait_share"].is_between(0, 1).all()
    assert (log["tokens_per_s"] > 0).all()


def test_a_stopped_run_of_two_processes_ends_early_where_the_undisturbed_one_does(two):
    assert two["stopped"] + two["goes-on"] == two["ddp"]
