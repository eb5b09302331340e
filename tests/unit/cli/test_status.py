"""`tidecache status`: where a cache stands, read from outside and while it is made."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import pipeline.teacher_cache
from pipeline.cache.status import cache_status
from pipeline.cli.app import app
from pipeline.teacher_cache import run_teacher_cache
from storage_schemas.errors import CacheWriteError

Stage = pipeline.teacher_cache.TeacherCacheStage
NUM_SHARDS = 3


@pytest.fixture(scope="module")
def whole(make_recipe, tmp_path_factory):
    return run_teacher_cache(make_recipe("b", tmp_path_factory.mktemp("cache"))).address


@pytest.fixture
def cache(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.fixture
def fail_at(monkeypatch):
    """Makes the shards of a run fail from the n-th on, with an error."""
    real = Stage.make_shard

    def install(number: int, error: Exception) -> None:
        calls: list[str] = []

        def make_shard(self, item):
            calls.append(item.shard)
            if len(calls) >= number:
                raise error
            return real(self, item)

        monkeypatch.setattr(Stage, "make_shard", make_shard)

    return install


def run(*arguments: object):
    return CliRunner().invoke(app, [*map(str, arguments)])


def written(folder: Path) -> dict[Path, int]:
    """When each file and folder was last written."""
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def rows(output: str) -> dict[str, str]:
    """The table's lines, name -> value."""
    lines = [line.split("  ", 1) for line in output.splitlines() if "  " in line]
    return {name.strip(): value.strip() for name, value in lines}


def test_a_whole_cache_lacks_nothing(cache):
    before = written(cache)
    result = run("status", cache)
    assert result.exit_code == 0, result.output
    table = rows(result.stdout)
    assert table["shards"] == f"{NUM_SHARDS} of {NUM_SHARDS}"
    assert table["shards failed"] == table["writers at work"] == "0"
    counts = cache_status(cache).counts
    assert table["views"] == f"{counts.num_views:,}"
    assert table["teacher positions kept"] == f"{counts.num_token_rows:,}"
    shards = [path for path in (cache / "shards").rglob("*") if path.is_file()]
    assert table["bytes"] == f"{sum(path.stat().st_size for path in shards):,}"
    assert " s ago" in table["last commit"]
    assert "missing" not in result.stdout
    assert written(cache) == before


def test_a_shard_that_is_gone_from_the_ledger_is_missing_and_its_files_are_uncommitted(cache):
    (entry,) = (cache / "ledger").glob("p00001*")
    entry.unlink()
    status = json.loads(run("status", cache, "--json").stdout)
    assert status["shards"] == NUM_SHARDS - 1
    assert status["missing"] == status["uncommitted"] == [entry.stem]


def test_where_no_run_has_said_of_how_many_the_number_is_not_made_up(cache):
    (cache / "wanted.json").unlink()
    assert rows(run("status", cache).stdout)["shards"].startswith(f"{NUM_SHARDS} (no run has said")
    assert json.loads(run("status", cache, "--json").stdout)["missing"] is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [(CacheWriteError("the disk is full"), "the disk is full"), (KeyError("x"), "KeyError: 'x'")],
)
def test_a_failed_shard_has_its_reason_until_a_later_run_commits_it(
    make_recipe, tmp_path, fail_at, error, reason, monkeypatch
):
    recipe = make_recipe("a", tmp_path)
    fail_at(2, error)
    with pytest.raises(type(error)):
        run_teacher_cache(recipe)
    (failure,) = cache_status(recipe.cache.path).failures
    assert (failure.kind, failure.reason) == ("failed", reason)
    result = run("status", recipe.cache.path)
    assert rows(result.stdout)["shards"] == f"1 of {NUM_SHARDS}"
    assert rows(result.stdout)["shards failed"] == "1"
    assert f"failed {failure.shard} ({failure.at}): {reason}" in result.stdout
    monkeypatch.undo()
    run_teacher_cache(recipe)
    assert cache_status(recipe.cache.path).failures == ()


def test_more_views_are_missing_once_a_run_wants_them(make_recipe, tmp_path, fail_at):
    run_teacher_cache(make_recipe("a", tmp_path))
    fail_at(1, CacheWriteError("the disk is full"))
    more = make_recipe("a", tmp_path, **{"noise.views": 3})
    with pytest.raises(CacheWriteError):
        run_teacher_cache(more)
    status = cache_status(more.cache.path)
    assert status.missing == ("p00000-v0002-0003", "p00001-v0002-0003", "p00002-v0002-0003")


def test_a_living_writer_is_told_from_one_that_was_killed(cache):
    code = f"""
import signal
from pathlib import Path
from pipeline.cache.store import open_store
writer = open_store(Path({str(cache)!r})).open_writer()
print("open", flush=True)
signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"open\n"
        table = rows(run("status", cache).stdout)
        assert (table["writers at work"], table["writers that were killed"]) == ("1", "0")
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    table = rows(run("status", cache).stdout)
    assert (table["writers at work"], table["writers that were killed"]) == ("0", "1")


def test_in_an_object_store_it_says_the_same_but_not_who_writes(make_recipe, bucket, fail_at):
    recipe = make_recipe("a", Path("unused"), **{"cache.path": f"{bucket}/cache"})
    fail_at(3, CacheWriteError("the disk is full"))
    with pytest.raises(CacheWriteError):
        run_teacher_cache(recipe)
    result = run("status", recipe.cache.path)
    assert result.exit_code == 0, result.output
    table = rows(result.stdout)
    assert table["shards"] == f"2 of {NUM_SHARDS}"
    assert " s ago" in table["last commit"]
    assert "writers at work" not in table
    assert "the disk is full" in result.stdout


def test_what_is_no_cache_is_one_clear_error(tmp_path):
    result = run("status", tmp_path)
    assert result.exit_code == 2
    assert "expected a cache, got no manifest.json there" in result.stderr


def test_a_damaged_note_is_named_with_what_to_do(cache):
    (cache / "wanted.json").write_text("{}")
    result = run("status", cache)
    assert result.exit_code == 3
    assert "wanted.json: expected a run's note as it was written" in result.stderr
    assert "remove that file" in result.stderr


def test_the_command_loads_no_torch(cache):
    code = f"""
import sys
from typer.testing import CliRunner
from pipeline.cli.app import app
assert CliRunner().invoke(app, ["status", {str(cache)!r}]).exit_code == 0
print(sorted({{"torch", "transformers", "polars", "prefect"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
