"""`tidecache inspect` on a small real cache of each pipeline."""

import re
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from pipeline.cache.inspect import scan_chunks, scan_views
from pipeline.cache.reader import CacheReader
from pipeline.cli.app import app
from pipeline.teacher_cache import run_teacher_cache

SKETCH = {
    "type": "tokens",
    "k": 0,
    "tail": {"type": "sketch", "step": 0.05, "calibration_records": 6},
}


@pytest.fixture(scope="module", params=["a", "b", "sketches alone"])
def cache(request, make_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    if request.param in ("a", "b"):
        return run_teacher_cache(make_recipe(request.param, folder)).address
    return run_teacher_cache(make_recipe("b", folder, targets=SKETCH)).address


def look(*arguments: object):
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


def test_the_summary_adds_up(cache):
    result = look(cache)
    assert result.exit_code == 0, result.output
    reader = CacheReader.open(cache)
    assert reader.manifest.digest in result.stdout
    rows = dict(re.findall(r"^(\S.*?)  +(\S+)", result.stdout, flags=re.MULTILINE))
    counts = [entry.counts for entry in reader.entries]
    assert rows["records"] == "12"
    assert rows["views of every record"] == "2"
    assert rows["shards"] == str(len(counts))
    assert rows["views"] == f"{sum(count.num_views for count in counts):,}"
    assert rows["bytes"] == f"{sum(entry.num_bytes for entry in reader.entries):,}"
    bins = re.findall(r"^0\.\d to \d\.\d +([\d,]+)", result.stdout, flags=re.MULTILINE)
    assert len(bins) == 10
    total = sum(int(size.replace(",", "")) for size in bins)
    assert total == sum(count.num_chunks for count in counts) > 0


def test_a_view_stands_beside_the_text(cache):
    chunks = scan_chunks(cache, with_text=True).filter(pl.col("view") == 1).collect()
    shard, example = chunks.select("shard", "example").row(0)
    of_view = (pl.col("shard") == shard) & (pl.col("example") == example) & (pl.col("view") == 1)
    record = scan_views(cache).filter(of_view).collect()["record_id"].item()
    result = look(cache, "--record", record, "--view", 1)
    assert result.exit_code == 0, result.output
    assert f"record {record}  view 1" in result.stdout
    assert "\u27e6" in result.stdout  # something is masked
    for text, logp in chunks.filter(of_view).select("text", "logp").iter_rows():
        assert f"{logp:.3f}" in result.stdout
        assert repr(text) in result.stdout
    has_tokens = CacheReader.open(cache).identity.kept.has_tokens
    assert ("the teacher's likeliest tokens" in result.stdout) is has_tokens


def test_what_is_not_there_is_said(cache, tmp_path):
    for arguments, message in (
        ((cache, "--record", "nobody"), "ids look like"),
        ((cache, "--record", "lib/mean.py::mean", "--view", 9), "there are views [0, 1]"),
        ((cache, "--view", 1), "--view needs --record"),
        ((tmp_path,), "expected a cache, got no"),
    ):
        result = look(*arguments)
        assert result.exit_code == 2
        assert message in result.stderr


def test_a_damaged_cache_exits_3(make_recipe, tmp_path):
    path = run_teacher_cache(make_recipe("a", tmp_path)).address
    next(Path(path).glob("shards/*/chunks.parquet")).unlink()
    result = look(path)
    assert result.exit_code == 3
    assert "it makes this shard anew" in result.stderr
    assert "Traceback" not in result.output
