"""`tidecache verify`: tables, every fault, and exit codes."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.teacher_cache import run_teacher_cache


@pytest.fixture(scope="module")
def whole(make_recipe, tmp_path_factory):
    sketch = {"type": "sketch", "calibration_records": 4, "step": 0.1}
    folder = tmp_path_factory.mktemp("cache")
    return run_teacher_cache(make_recipe("b", folder, **{"targets.tail": sketch})).address


@pytest.fixture
def cache(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "cache"))


def run(*arguments: object):
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_a_sound_cache_is_exit_code_0_and_a_table(cache):
    result = run("verify", cache)
    assert result.exit_code == 0, result.output
    rows = dict(line.rsplit(maxsplit=1) for line in result.stdout.splitlines()[2:])
    assert rows["shards"] == rows["sound shards"] == "3"
    assert rows["faults"] == "0"
    assert int(rows["token rows"]) > 0


def test_every_fault_is_listed_and_the_exit_code_is_3(cache):
    shards = sorted(path.stem for path in (cache / "ledger").iterdir())
    for shard in shards[:2]:
        (cache / "shards" / shard / "views.parquet").write_bytes(b"")
    (cache / "shards" / "left-behind").mkdir()
    result = run("verify", cache, "--fidelity", "2")
    assert result.exit_code == 3
    for shard in shards[:2]:
        assert f"FAULT shard {shard}: expected shards/{shard}/views.parquet of" in result.stdout
        assert (
            f"remove ledger/{shard}.json and run 'tidecache teacher-cache' again" in result.stdout
        )
    assert "not listed, left by a kill or another writer: shards/left-behind" in result.stdout
    assert "fidelity was not measured: mend the faults first" in result.stdout
    assert "expected a sound cache, got the faults that are listed above" in result.stderr


def test_fidelity_is_shown_and_then_inspect_shows_it_with_the_calibration(cache):
    before = run("inspect", cache).stdout
    assert "gradient error" in before
    assert "TIDAL gradient" not in before
    result = run("verify", cache, "--fidelity", "3", "--set", "teacher.batch_tokens=300")
    assert result.exit_code == 0, result.output
    shown = [line for line in result.stdout.splitlines() if line.startswith(("KL", "TIDAL", "chu"))]
    assert len(shown) == 5  # the chunks' row of the first table among them
    after = run("inspect", cache).stdout
    assert all(line in after for line in shown if not line.startswith("chunks"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "teacher.device=cpu"), "--set needs --fidelity"),
        (("--fidelity", "0"), "greater than or equal to 1"),
        (("--fidelity", "2", "--set", "teacher.dtype=bfloat16"), "teacher.dtype: the cache has"),
    ],
)
def test_what_cannot_be_asked_is_exit_code_2(arguments, message, cache):
    result = run("verify", cache, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_what_is_no_cache_is_exit_code_2(tmp_path):
    result = run("verify", tmp_path)
    assert result.exit_code == 2
    assert "expected a cache, got no manifest.json" in result.stderr
