"""Killed at any moment, each stage goes on to exactly what it would have made undisturbed."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal
from tiny import files_of, lines, steps_of, write_lines

from pipeline.cache.reader import CacheReader
from pipeline.config.recipe import resolved_json
from pipeline.student_train import run_student_train
from pipeline.teacher_cache import run_teacher_cache
from pipeline.train.metrics_log import scan_metrics
from pipeline.train.pace import TIMINGS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and fork")

# where -> the function that is not left alive when it is called for the n-th time
STAGE_1_MOMENTS = {
    "while the teacher answers the second shard": ("pipeline.teacher.shard.answer_views", 2),
    "while the second shard's files are written": ("pipeline.cache.files.write_durably", 27),
    "with the second shard written, before it has its name": ("pipeline.cache.files.publish", 3),
    "after the second shard, before the third": ("pipeline.cache.writer.encode_shard", 3),
    "before the cache has a manifest": ("pipeline.cache.files.publish", 1),
}
STAGE_2_MOMENTS = {
    "while a checkpoint is written": ("pipeline.train.trainer.StudentTrainer._save_rng_state", 2),
    "between checkpoints": ("pipeline.train.loss.masked_hidden", 6),
    "between a checkpoint and its place as the best": ("pipeline.train.best._replace", 2),
    "before the summary is written": ("pipeline.student_train.write_summary", 1),
}

# Loads everything once, then forks a child for each moment and waits for its death.
VICTIM = """
import importlib, json, os, signal, sys
import torch
torch.set_num_threads(1)
from pipeline.config.recipe import parse_recipe
import pipeline.cache.files, pipeline.cache.local_store, pipeline.cache.writer
import pipeline.student_train, pipeline.teacher.shard, pipeline.teacher_cache

def die_at(name, call):
    *modules, attribute = name.split(".")
    try:
        owner = importlib.import_module(".".join(modules))
    except ModuleNotFoundError:
        owner = getattr(importlib.import_module(".".join(modules[:-1])), modules[-1])
    real, calls = getattr(owner, attribute), []
    def deadly(*args, **options):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    for module in [
        owner, pipeline.cache.local_store, pipeline.cache.writer,
        pipeline.teacher.shard, pipeline.student_train,
    ]:
        if getattr(module, attribute, None) is real:
            setattr(module, attribute, deadly)

ends = []
for stage, fields, name, call in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        recipe = parse_recipe(fields, where="victim")
        die_at(name, call)
        if stage == 1:
            pipeline.teacher_cache.run_teacher_cache(recipe)
        else:
            pipeline.student_train.run_student_train(recipe, shows_progress=False)
        os._exit(0)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ends))
"""


def kill_all(jobs: list[tuple[int, dict, str, int]]) -> None:
    """Runs a stage once a job, each killed at its moment."""
    done = subprocess.run(
        [sys.executable, "-c", VICTIM],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout.splitlines()[-1])
    assert ends == [-signal.SIGKILL] * len(jobs), done.stderr


def fields_of(recipe) -> dict:
    return json.loads(resolved_json(recipe))


@pytest.fixture(scope="module")
def make(make_recipe, tmp_path_factory):
    """Pipeline B, three shards; an evaluation and a checkpoint every second of six steps."""
    rows = [line | {"id": f"unseen/{i}"} for i, line in enumerate(lines())]
    path = write_lines(tmp_path_factory.mktemp("unseen") / "records.jsonl", rows)
    records = {"type": "files", "paths": [str(path)], "id_field": "id"}
    held_out = {"records": records, "max_records": 3, "every_steps": 2}

    def makes(folder: Path, **overrides):
        return make_recipe("b", folder, **{"train.save_steps": 2}, held_out=held_out, **overrides)

    return makes


@pytest.fixture(scope="module")
def undisturbed(make, tmp_path_factory):
    """Both stages, in one go."""
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe = make(folder)
    run_teacher_cache(recipe)
    run_student_train(recipe, shows_progress=False)
    return folder


@pytest.fixture(scope="module")
def killed(make, undisturbed, tmp_path_factory):
    """moment -> a recipe whose cache, or whose training, was killed at that moment."""
    recipes = {}
    jobs = []
    cache = {"cache.path": str(undisturbed / "cache")}
    for stage, moments, folders in ((1, STAGE_1_MOMENTS, {}), (2, STAGE_2_MOMENTS, cache)):
        for moment, where in moments.items():
            recipes[moment] = make(tmp_path_factory.mktemp("killed"), **folders)
            jobs.append((stage, fields_of(recipes[moment]), *where))
    kill_all(jobs)
    return recipes


@pytest.mark.parametrize("moment", STAGE_1_MOMENTS)
def test_a_cache_killed_at_any_moment_ends_byte_for_byte_as_if_undisturbed(
    moment, killed, undisturbed
):
    recipe = killed[moment]
    cache = Path(recipe.cache.path)
    committed = {path.stem for path in (cache / "ledger").glob("*.json")}
    assert len(committed) == (moment != "before the cache has a manifest") + ("third" in moment)
    before = {
        path: data for path, data in files_of(cache).items() if any(c in path for c in committed)
    }
    if committed:
        reader = CacheReader.open(cache)
        assert [entry.shard for entry in reader.entries] == sorted(committed)
        for entry in reader.entries:  # what is in the ledger is whole
            reader.read_shard(entry)
    summary = run_teacher_cache(recipe)
    assert (summary.shards_found, summary.shards_made) == (len(committed), 3 - len(committed))
    after = files_of(cache)
    assert {path: after[path] for path in before} == before
    assert after == files_of(undisturbed / "cache")
    assert [path.name for path in (cache / "tmp").iterdir()] == ["lock"]


@pytest.mark.parametrize("moment", STAGE_2_MOMENTS)
def test_training_killed_at_any_moment_ends_with_the_weights_of_the_undisturbed_run(
    moment, killed, undisturbed
):
    recipe = killed[moment]
    output = Path(recipe.train.output)
    assert not (output / "summary.json").exists()
    steps: list[float] = []
    summary = run_student_train(
        recipe, on_log=lambda logs: steps.append(logs["step"]), shows_progress=False
    )
    assert summary.is_complete
    assert summary.steps == 6
    first = {
        "while a checkpoint is written": 3,
        "between checkpoints": 5,
        "between a checkpoint and its place as the best": 5,
    }.get(moment)
    assert steps[:1] == ([] if first is None else [first])
    for name in ("final", "best"):
        got, want = (
            (folder / name / "model.safetensors").read_bytes()
            for folder in (output, undisturbed / "out")
        )
        assert got == want
    finished, stored = (
        json.loads((folder / "summary.json").read_text())
        for folder in (output, undisturbed / "out")
    )
    assert steps_of([finished["metrics"]]) == steps_of([stored["metrics"]])
    log, want_log = (
        scan_metrics(folder).collect().drop(TIMINGS) for folder in (output, undisturbed / "out")
    )
    assert_frame_equal(log, want_log)
