"""Sweeps over a recipe that is never trained."""

import tomllib
from pathlib import Path

import pytest

from pipeline.config.sweep import SweepConfig
from pipeline.sweep.expand import expand_sweep

RECIPE = """
pipeline = {type = "cross_tokenizer"}
records = {type = "files", paths = ["records.jsonl"]}
student = {model = "student"}
teacher = {model = "teacher", attention = {type = "full"}}
targets = {type = "chunks"}
cache = {path = "cache"}
objective = {type = "reverse_calm", temperature = 5.0}
train = {output = "student"}
"""


@pytest.fixture
def expand(tmp_path: Path):
    """`expand(text)`: the runs of a sweep, whose recipe and output are added."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)

    def make(text: str):
        fields = {"recipe": str(recipe), "output": str(tmp_path / "sweep")} | tomllib.loads(text)
        return expand_sweep(SweepConfig.model_validate(fields))

    return make
