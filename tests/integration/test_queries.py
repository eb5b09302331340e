"""Every block of docs/queries.md runs, on a cache of each kind that it can be asked of."""

import re
from pathlib import Path

import polars as pl
import pytest

from pipeline.teacher_cache import run_teacher_cache

PAGE = Path(__file__).parents[2] / "docs" / "queries.md"
QUERIES = re.findall(r"^## (\d+)\. .*?```python\n(.*?)```", PAGE.read_text("utf-8"), re.M | re.S)
OF_ANY = ("1", "8", "10")
COLUMNS = {
    "least": 5,
    "falls": 4,
    "tail": 4,
    "apart": 7,
    "held": 3,
    "softened": 3,
    "sizes": 4,
    "hard": 4,
    "masked": 4,
}


@pytest.fixture(scope="module")
def caches(make_recipe, tmp_path_factory):
    """One with all that the page asks for, and one of chunk likelihoods alone."""
    tail = {"type": "sketch", "step": 0.05, "calibration_records": 4}
    everything = {"targets": {"type": "tokens", "k": 8, "tail": tail}, "noise.views": 4}
    folders = [tmp_path_factory.mktemp(kind) for kind in ("a", "b")]
    return {
        "chunks alone": run_teacher_cache(make_recipe("a", folders[0])).address,
        "everything": run_teacher_cache(make_recipe("b", folders[1], **everything)).address,
    }


def ask(code: str, cache: str) -> dict[str, object]:
    names: dict[str, object] = {"cache": cache}
    exec(compile(code, PAGE.name, "exec"), names)
    return names


def test_the_page_has_ten_queries():
    assert [number for number, _ in QUERIES] == [str(n) for n in range(1, 11)]
    assert PAGE.read_text("utf-8").count("```python") == len(QUERIES)


@pytest.mark.parametrize(("number", "code"), QUERIES, ids=[number for number, _ in QUERIES])
def test_a_query_runs_and_gives_what_the_page_says(number, code, caches, capsys):
    names = ask(code, caches["everything"])
    assert capsys.readouterr().out, "it prints"
    frames = {name: value for name, value in names.items() if isinstance(value, pl.LazyFrame)}
    results = {name: frame.collect() for name, frame in frames.items() if name in COLUMNS}
    for name, result in results.items():
        assert len(result) > 0, f"{name} has rows"
        assert result.width == COLUMNS[name]
    assert results or number == "7"
    if number in OF_ANY:
        ask(code, caches["chunks alone"])
        assert capsys.readouterr().out
