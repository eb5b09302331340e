"""The kill and damage harness of the benchmark, in short; and that it would notice."""

import importlib.util
import sys
from pathlib import Path

import pytest

from pipeline.teacher_cache import run_teacher_cache

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and fork")

_PATH = Path(__file__).parents[1] / "benchmarks" / "cache_faults.py"


@pytest.fixture(scope="module")
def harness():
    spec = importlib.util.spec_from_file_location("cache_faults", _PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_killed_in_any_phase_nothing_is_lost(harness):
    result = harness.run_kills(2)
    assert result == {
        "kills": 10,
        "kills_by_phase": dict.fromkeys(harness.PHASES, 2),
        "lost": 0,
    }


def test_damage_to_every_kind_of_file_is_told_by_verify_and_by_reading(harness):
    result = harness.run_flips(1)
    assert result["undetected"] == 0
    arrays = {"ids_low", "logit_max", "logit_step", "logsumexp", "gold_logp", "sketch"}
    tables = {f"{name}.parquet" for name in ("examples", "views", "chunks", "skips")}
    others = {"manifest.json", "ledger", "vocabulary", "basis decode", "basis coder_table"}
    assert arrays | tables | others <= result["flips_by_target"].keys()
    assert result["flips"] == sum(result["flips_by_target"].values())


def test_the_harness_counts_what_is_not_told_and_what_is_lost(harness, make_recipe, tmp_path):
    cache = Path(run_teacher_cache(make_recipe("a", tmp_path)).address)
    assert not harness._is_detected(cache, "manifest.json", ["manifest.json"])  # it is whole
    shard, other = sorted(path.stem for path in (cache / "ledger").iterdir())[:2]
    wanted = f"shards/{shard}/views.parquet"
    (cache / "shards" / other / "views.parquet").unlink()
    assert not harness._is_detected(cache, "views.parquet", [wanted])  # another shard is named
    assert harness._is_detected(cache, "views.parquet", [wanted.replace(shard, other)])
    assert harness._lost({wanted: b"1", "manifest.json": b"2"}, {wanted: b"3"}) == {
        f"shard {shard}",
        "manifest.json",
    }
