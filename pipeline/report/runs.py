"""A finished run of stage 2, as its folder tells it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import polars as pl

from pipeline.config.recipe import Recipe, load_recipe
from pipeline.storage.address import is_remote
from pipeline.train.metrics_log import scan_metrics
from pipeline.train.run_file import FINAL_FOLDER, RECIPE_FILE, RUN_FILE, STAMP_FILE, SUMMARY_FILE
from storage_schemas.errors import RecipeError


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """identity: what run.json says it is. cache: where its cache was when it was trained."""

    folder: Path
    recipe: Recipe
    identity: dict[str, Any]
    cache: str
    steps: int
    seconds: float
    curve: pl.DataFrame

    @property
    def seed(self) -> int:
        """What the order of its views was drawn from."""
        return self.recipe.train.seed

    @property
    def student(self) -> Path:
        """The student after the last step."""
        return self.folder / FINAL_FOLDER


def read_runs(folders: Sequence[str | Path]) -> tuple[FinishedRun, ...]:
    """The runs in the order of their folders; each has to be finished, and is there once."""
    if not folders:
        raise RecipeError("expected the folder of a run or more, got none")
    runs = tuple(read_run(folder) for folder in folders)
    places = [run.folder.resolve() for run in runs]
    twice = sorted({str(place) for place in places if places.count(place) > 1})
    if twice:
        raise RecipeError(f"expected each run once, got {', '.join(twice)} more than once")
    return runs


def read_run(folder: str | Path) -> FinishedRun:
    """The run whose train.output this local folder is."""
    if is_remote(folder):
        raise RecipeError(
            f"expected the folder of a run on this machine, got {folder}: its students are run "
            "here; copy the folder first"
        )
    path = Path(folder)
    identity, summary = _json(path / RUN_FILE), _json(path / SUMMARY_FILE)
    if not summary["is_complete"]:
        raise RecipeError(f"expected a finished run at {path}, got one that was stopped")
    stamp = _json(path / FINAL_FOLDER / STAMP_FILE)
    return FinishedRun(
        folder=path,
        recipe=load_recipe(path / FINAL_FOLDER / RECIPE_FILE),
        identity=identity,
        cache=stamp["cache"]["address"],
        steps=summary["steps"],
        seconds=summary["seconds"],
        curve=scan_metrics(path).collect(),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        return cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"expected a finished run of 'tidecache student-train' (its {path.name} at {path}), "
            f"got: {error}; name its train.output, or train it to its end first"
        ) from error
