"""Both stages wholly on an object store: records, cache and checkpoints, over a real S3 API."""

import json
import os
import subprocess
import sys
from pathlib import Path

import obstore
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from tiny import assert_same, files_of, lines, write_lines
from typer.testing import CliRunner

from flows.events import cache_address
from flows.results import cache_result, train_result
from flows.transient import TRANSIENT_ERRORS
from pipeline.cache.inspect import (
    scan_chunks,
    scan_examples,
    scan_top_k,
    scan_views,
    token_texts,
)
from pipeline.cache.reader import CacheReader
from pipeline.cli.app import app
from pipeline.config.held_out import HeldOutConfig
from pipeline.config.recipe import resolved_json
from pipeline.records.source import index_records
from pipeline.storage.connection import connect
from pipeline.student_train import run_student_train
from pipeline.teacher_cache import run_teacher_cache
from pipeline.train.metrics_log import scan_metrics
from storage_schemas.errors import (
    CacheMissingError,
    CacheWriteError,
    RecipeError,
    StoreConnectionError,
)

READER = """
import hashlib, sys
from pipeline.cache.reader import CacheReader
from pipeline.stream.loader import CacheStream
if __name__ == "__main__":
    reader = CacheReader.open(sys.argv[1])
    seed, workers = int(sys.argv[2]), int(sys.argv[3])
    digest = hashlib.sha256()
    with CacheStream(
        reader, batch_size=4, seed=seed, has_tokens=True, lanes=2, workers=workers
    ) as stream:
        for number, batch in zip(range(18), stream.batches()):  # three epochs
            digest.update(batch.student_ids_BS.tobytes())
    print(digest.hexdigest())
"""

WRITER = """
import json, sys
from pipeline.config.recipe import parse_recipe
from pipeline.teacher_cache import run_teacher_cache
from pipeline.train.metrics_log import scan_metrics
recipe = parse_recipe(json.loads(sys.argv[1]), where="test")
print("ready", flush=True)
sys.stdin.readline()
summary = run_teacher_cache(recipe)
print(summary.is_complete, summary.counts.num_views)
"""


def contents_of(address: str):
    reader = CacheReader.open(address)
    return [reader.read_shard(entry) for entry in reader.entries]


def objects_in(address: str) -> set[str]:
    return {meta["path"] for meta in obstore.list(connect(address)).collect()}


@pytest.fixture(scope="module")
def local(make_recipe, tmp_path_factory):
    """Both stages of pipeline B on a local disk, undisturbed."""
    folder = tmp_path_factory.mktemp("local")
    recipe = make_recipe("b", folder, **{"train.save_steps": 2})
    run_teacher_cache(recipe)
    run_student_train(recipe, shows_progress=False)
    return recipe


@pytest.fixture
def remote(make_recipe, tiny, bucket, tmp_path):
    """The same recipe with everything but the models in a bucket."""
    obstore.put(connect(f"{bucket}/data"), "records.jsonl", tiny.records.read_bytes())
    return make_recipe(
        "b",
        tmp_path,
        **{
            "records.paths": [f"{bucket}/data/*.jsonl"],
            "cache.path": f"{bucket}/caches/one",
            "train.output": f"{bucket}/students/one",
            "train.save_steps": 2,
        },
    )


def test_both_stages_run_wholly_on_an_object_store_as_on_a_disk(remote, local, tmp_path):
    logs: list[dict[str, float]] = []
    made = run_teacher_cache(remote)
    assert (made.shards_made, made.is_complete) == (3, True)
    assert cache_result(made)["address"] == cache_address(remote) == remote.cache.path
    assert_same(contents_of(remote.cache.path), contents_of(local.cache.path))
    again = run_teacher_cache(remote)
    assert (again.shards_made, again.shards_found, again.digest) == (0, 3, made.digest)

    trained = run_student_train(remote, on_log=logs.append, shows_progress=False)
    assert trained.is_complete
    assert train_result(trained)["output"] == f"{remote.train.output}/final"
    store = connect(remote.train.output)
    got = obstore.get(store, "final/model.safetensors").bytes().to_bytes()
    assert got == (Path(local.train.output) / "final" / "model.safetensors").read_bytes()
    assert {path.split("/")[0] for path in objects_in(remote.train.output)} == {
        "run.json", "summary.json", "metrics.parquet", "final", "checkpoint-4", "checkpoint-6",
    }  # fmt: skip
    log = scan_metrics(remote.train.output).select("step", "loss").collect()
    assert log.rows() == [(entry["step"], entry["loss"]) for entry in logs]
    found = run_student_train(remote, on_log=lambda logs: pytest.fail("no step"))
    assert (found.steps, found.metrics, found.output) == (6, trained.metrics, trained.output)
    assert not list(tmp_path.iterdir())  # nothing went to the disk


def test_looking_at_a_remote_cache_shows_what_a_local_one_shows(remote, local, s3_server):
    run_teacher_cache(remote)
    near, far = local.cache.path, remote.cache.path
    for scan in (scan_examples, scan_views, scan_chunks, scan_top_k):
        assert_frame_equal(scan(far).collect(), scan(near).collect())
    for side in ("student", "teacher"):
        assert_frame_equal(token_texts(far, side).collect(), token_texts(near, side).collect())
    texts = [scan_chunks(path, with_text=True).collect() for path in (far, near)]
    assert_frame_equal(*texts)
    some = pl.col("logp") < -1
    queries = [
        scan_chunks(path).filter(some).select("chunk", "logp").head(5) for path in (far, near)
    ]
    assert_frame_equal(*[query.collect() for query in queries])
    lazy = scan_chunks(far)
    s3_server.requests.clear()
    lazy.select("logp")
    assert not s3_server.requests  # a scan that is not collected reads nothing


def test_the_command_line_takes_a_url(remote, s3_server):
    run_teacher_cache(remote)
    shown = CliRunner().invoke(app, ["inspect", remote.cache.path])
    assert shown.exit_code == 0, shown.output
    assert remote.cache.path in shown.stdout
    s3_server.before = lambda method, path: 503
    refused = CliRunner().invoke(app, ["inspect", remote.cache.path])
    assert refused.exit_code == 2
    assert "expected the object store to answer" in refused.stderr


def test_a_lost_connection_is_a_clear_error_and_a_later_run_completes(remote, local, s3_server):
    def stop(progress):
        s3_server.stop()

    try:
        with pytest.raises(StoreConnectionError, match="expected the object store to answer") as e:
            run_teacher_cache(remote, on_shard=stop)
        assert isinstance(e.value, TRANSIENT_ERRORS)
        assert "what is committed is kept: run again" in str(e.value)
        assert "Debug" not in str(e.value)
        with pytest.raises(StoreConnectionError):
            run_teacher_cache(remote)
        with pytest.raises(StoreConnectionError):
            index_records(remote.records, 5)
    finally:
        s3_server.start()
    assert len(CacheReader.open(remote.cache.path).entries) == 1
    summary = run_teacher_cache(remote)
    assert (summary.shards_found, summary.shards_made, summary.is_complete) == (1, 2, True)
    assert_same(contents_of(remote.cache.path), contents_of(local.cache.path))


def test_a_connection_lost_amid_a_shards_files_leaves_nothing_that_counts(remote, local, s3_server):
    puts: list[str] = []

    def lose(method: str, path: str) -> int | None:
        if method == "PUT" and "/shards/p00001" in path:
            puts.append(path)
            return 503 if len(puts) > 5 else None
        return None

    s3_server.before = lose
    with pytest.raises(StoreConnectionError):
        run_teacher_cache(remote)
    s3_server.before = None
    assert [entry.part for entry in CacheReader.open(remote.cache.path).entries] == [0]
    assert run_teacher_cache(remote).is_complete
    assert_same(contents_of(remote.cache.path), contents_of(local.cache.path))


def test_training_that_loses_the_store_goes_on_from_the_last_whole_checkpoint(
    remote, local, s3_server
):
    run_teacher_cache(remote)
    puts: list[str] = []

    def lose(method: str, path: str) -> int | None:
        if method == "PUT" and "checkpoint-4" in path:
            puts.append(path)
            return 503 if len(puts) > 3 else None
        return None

    s3_server.before = lose
    with pytest.raises(StoreConnectionError):
        run_student_train(remote, shows_progress=False)
    s3_server.before = None
    there = objects_in(remote.train.output)
    assert "checkpoint-2/trainer_state.json" in there
    assert [path for path in there if path.startswith("checkpoint-4/")]  # a part of it
    assert "checkpoint-4/trainer_state.json" not in there
    steps: list[float] = []
    summary = run_student_train(
        remote, on_log=lambda logs: steps.append(logs["step"]), shows_progress=False
    )
    assert summary.is_complete
    assert steps[0] == 3
    got = obstore.get(connect(remote.train.output), "final/model.safetensors").bytes().to_bytes()
    assert got == (Path(local.train.output) / "final" / "model.safetensors").read_bytes()


def test_a_watched_run_in_a_store_goes_on_with_its_best_student_and_its_log(remote, tmp_path):
    rows = [line | {"id": f"unseen/{i}"} for i, line in enumerate(lines())]
    path = write_lines(tmp_path / "unseen.jsonl", rows)
    held_out = {
        "records": {"type": "files", "paths": [str(path)], "id_field": "id"},
        "every_steps": 2,
        "max_records": 4,
    }
    run_teacher_cache(remote)
    config = HeldOutConfig.model_validate(held_out)
    watched = remote.model_copy(update={"held_out": config})
    steps = iter(range(1, 100))
    stopped = run_student_train(watched, should_stop=lambda: next(steps) == 3, shows_progress=False)
    assert not stopped.is_complete
    path.unlink()  # the masks are kept: nothing of the records is needed to go on
    summary = run_student_train(watched, shows_progress=False)
    address = remote.train.output
    log = scan_metrics(address).select("step", "held_out_nll").collect()
    assert log["step"].to_list() == [1, 2, 3, 4, 5, 6]
    evaluated = log.drop_nulls()
    assert evaluated["step"].to_list() == [2, 4, 6]
    assert summary.metrics["held_out_nll_best"] == evaluated["held_out_nll"].min()
    store = connect(address)
    stamp = json.loads(obstore.get(store, "best/tidecache.json").bytes().to_bytes())
    assert stamp["step"] == summary.best_step
    kept = obstore.get(store, f"checkpoint-{summary.best_step}/model.safetensors").bytes()
    best = obstore.get(store, "best/model.safetensors").bytes()
    assert best.to_bytes() == kept.to_bytes()


def test_another_run_in_the_same_place_is_refused(remote):
    run_teacher_cache(remote)
    run_student_train(remote, shows_progress=False)
    train = remote.train.model_copy(update={"learning_rate": 0.5})
    other = remote.model_copy(update={"train": train})
    with pytest.raises(RecipeError, match=r"s3://.*holds another run: .*learning_rate"):
        run_student_train(other, shows_progress=False)


def run_twice_at_once(recipe) -> None:
    """In two processes, for two models cannot be loaded at once in one."""
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, resolved_json(recipe)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for run in runs:
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        run.stdin.write("go\n")
        run.stdin.flush()
    said = [run.communicate()[0] for run in runs]
    assert [line.strip() for line in said] == ["True 24", "True 24"]


def test_two_runs_on_one_local_cache_at_once_make_what_one_makes(make_recipe, local, tmp_path):
    recipe = make_recipe("b", tmp_path)
    run_twice_at_once(recipe)
    assert files_of(tmp_path / "cache") == files_of(Path(local.cache.path))


def test_two_runs_on_one_remote_cache_at_once_make_what_one_makes(remote, local):
    run_twice_at_once(remote)
    assert_same(contents_of(remote.cache.path), contents_of(local.cache.path))
    reader = CacheReader.open(remote.cache.path)
    listed = {file.path for entry in reader.entries for file in entry.files}
    there = {path for path in objects_in(remote.cache.path) if path.startswith("shards/")}
    assert there == listed  # what the second one made of a shard is gone again


def test_several_processes_stream_from_one_remote_cache_at_once(remote, local):
    run_teacher_cache(remote)
    near, far = local.cache.path, remote.cache.path
    jobs = [(far, 0, 2), (near, 0, 0), (far, 1, 0), (near, 1, 1)]  # address, seed, workers
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, address, str(seed), str(num_workers)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for address, seed, num_workers in jobs
    ]
    said = [worker.communicate()[0].strip() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * len(jobs)
    assert said[0] == said[1]
    assert said[2] == said[3]
    assert said[0] != said[2]


def test_opening_a_cache_lists_it_instead_of_asking_for_each_file(remote, s3_server):
    run_teacher_cache(remote)
    s3_server.requests.clear()
    reader = CacheReader.open(remote.cache.path)
    num_files = sum(len(entry.files) for entry in reader.entries)
    # manifest, two vocabularies, the entries; the lists of ledger/ and shards/
    assert s3_server.requests == {"GET": 3 + len(reader.entries) + 2}
    assert num_files > 3 * sum(s3_server.requests.values())


def test_a_bucket_that_is_not_there_is_refused_with_advice(remote, local):
    def with_field(recipe, table: str, **fields):
        changed = getattr(recipe, table).model_copy(update=fields)
        return recipe.model_copy(update={table: changed})

    with pytest.raises(CacheWriteError, match="make it first, or check its name"):
        run_teacher_cache(with_field(remote, "cache", path="s3://nowhere/cache"))
    with pytest.raises(CacheMissingError, match="expected a cache, got no"):
        run_student_train(with_field(remote, "cache", path="s3://nowhere/cache"))
    with pytest.raises(RecipeError, match=r"NoSuchBucket.*check the address"):
        run_student_train(with_field(local, "train", output="s3://nowhere/out"))
    with pytest.raises(RecipeError, match=r"NoSuchBucket.*check the address"):
        run_teacher_cache(with_field(remote, "records", paths=("s3://nowhere/records.jsonl",)))
