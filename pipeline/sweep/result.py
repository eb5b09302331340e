"""What a run has come to, as its folder tells it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, cast

import polars as pl

from pipeline.sweep.expand import SweepRun
from pipeline.train.metrics_log import METRICS_FILE
from pipeline.train.output import TrainOutput, open_output
from pipeline.train.run_file import RUN_FILE, SUMMARY_FILE, recipe_identity

State = Literal["finished", "unfinished", "not begun", "failed", "another run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """steps and metrics of an unfinished run are those of its last log entry.

    curve: a row a log entry, `step` and what was logged; no columns where nothing was. error: why
    it failed.
    """

    run: SweepRun
    state: State
    steps: int
    seconds: float | None
    metrics: Mapping[str, float]
    curve: pl.DataFrame
    error: str | None = None


def read_results(runs: Iterable[SweepRun], failures: Mapping[str, str]) -> list[RunResult]:
    """In the runs' order; `failures` are the errors of runs that failed just now."""
    results = map(read_result, runs)
    return [
        replace(result, state="failed", error=failures[result.run.name])
        if result.run.name in failures
        else result
        for result in results
    ]


def read_result(run: SweepRun) -> RunResult:
    """Nothing is trained or changed; results of other settings are no results of this run."""
    with open_output(run.recipe.train.output) as output:
        output.fetch(RUN_FILE, SUMMARY_FILE, METRICS_FILE)
        begun = _json(output.folder / RUN_FILE)
        if begun is None:
            return _nothing(run, "not begun")
        if begun["recipe"] != recipe_identity(run.recipe):
            return _nothing(run, "another run")
        curve = _curve(output)
        summary = _json(output.folder / SUMMARY_FILE)
    if summary is None:
        return replace(
            _nothing(run, "unfinished"), curve=curve, metrics=_last(curve), steps=_last_step(curve)
        )
    return RunResult(
        run=run,
        state="finished",
        steps=summary["steps"],
        seconds=summary["seconds"],
        metrics=summary["metrics"],
        curve=curve,
    )


def _nothing(run: SweepRun, state: State) -> RunResult:
    return RunResult(run=run, state=state, steps=0, seconds=None, metrics={}, curve=pl.DataFrame())


def _curve(output: TrainOutput) -> pl.DataFrame:
    path = output.folder / METRICS_FILE
    return pl.read_parquet(BytesIO(path.read_bytes())) if path.exists() else pl.DataFrame()


def _last(curve: pl.DataFrame) -> dict[str, float]:
    """The last value of each column."""
    values = {name: curve[name].drop_nulls() for name in curve.columns if name != "step"}
    return {name: float(column[-1]) for name, column in values.items() if len(column)}


def _last_step(curve: pl.DataFrame) -> int:
    return int(curve["step"][-1]) if len(curve) else 0


def _json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    return cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
