"""The comparison: a row a run, and a row for runs that differ in their seed alone."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

from pipeline.config.sweep import flat_settings
from pipeline.sweep.expand import SweepRun
from pipeline.sweep.names import shown
from pipeline.sweep.result import RunResult
from pipeline.train.standing import HELD_OUT_NLL

SEED = "train.seed"
HELD_OUT = (f"{HELD_OUT_NLL}_best", HELD_OUT_NLL)
"""What runs are sorted by: the first that one has."""


def varied_keys(runs: Iterable[SweepRun]) -> list[str]:
    """The sweep's settings, by dotted key, whose values are not the same in all runs."""
    runs = list(runs)
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    resolved = [_resolved(run) for run in runs]
    return [key for key in keys if len({shown(fields.get(key)) for fields in resolved}) > 1]


def run_table(results: Sequence[RunResult]) -> pl.DataFrame:
    """A row a run: what differs, state, steps, seconds, every metric; best held-out bound first.

    Runs without that bound keep their order.
    """
    keys = varied_keys(result.run for result in results)
    rows = [
        {
            "run": result.run.name,
            "state": result.state,
            **_values(result.run, keys),
            "steps": result.steps,
            "seconds": result.seconds,
            **{name: result.metrics.get(name) for name in _metric_names(results)},
            "error": result.error,
        }
        for result in results
    ]
    return _sorted(_frame(rows, keys))


def seed_table(results: Sequence[RunResult]) -> pl.DataFrame | None:
    """Mean and standard deviation of finished runs over seeds; None where seeds do not vary.

    A row a setting: what differs beside the seed, the number of seeds, then NAME and NAME_std. The
    deviation is the sample's; null of one run.
    """
    groups = seed_groups(results)
    if all(len(group) < 2 for group in groups):
        return None
    keys = [key for key in varied_keys(result.run for result in results) if key != SEED]
    names = _metric_names(results)
    rows: list[dict[str, Any]] = []
    for group in groups:
        finished = [each for each in group if each.state == "finished"]
        if not finished:
            continue
        row: dict[str, Any] = {
            "runs": group_label(group),
            **_values(group[0].run, keys),
            "seeds": len(finished),
        }
        for name in names:
            values = pl.Series([each.metrics.get(name) for each in finished], dtype=pl.Float64)
            row |= {name: values.mean(), f"{name}_std": values.std()}
        rows.append(row)
    return _sorted(_frame(rows, keys)) if rows else None


def seed_groups(results: Iterable[RunResult]) -> list[list[RunResult]]:
    """Runs whose recipes are the same but for train.seed, together; each in its order."""
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        fields = _resolved(result.run)
        del fields[SEED], fields["train.output"]
        groups.setdefault(json.dumps(fields, sort_keys=True), []).append(result)
    return list(groups.values())


def group_label(group: Sequence[RunResult]) -> str:
    """Its run's name, without the seed where it stands for several."""
    name = group[0].run.name
    if len(group) == 1:
        return name
    seeds = [f"seed={shown(result.run.recipe.train.seed)}" for result in group]
    parts = [part for part in name.split(",") if part not in seeds]
    return ",".join(parts) or "all seeds"


def held_out(result: RunResult) -> float | None:
    """The held-out bound that it is compared by."""
    found = [result.metrics[name] for name in HELD_OUT if name in result.metrics]
    return found[0] if found else None


def _resolved(run: SweepRun) -> dict[str, Any]:
    return flat_settings(run.recipe.model_dump(mode="json"))


def _values(run: SweepRun, keys: Iterable[str]) -> dict[str, Any]:
    fields = _resolved(run)
    return {key: fields.get(key) for key in keys}


def _metric_names(results: Iterable[RunResult]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.metrics))


def _frame(rows: list[dict[str, Any]], keys: Iterable[str]) -> pl.DataFrame:
    """Settings whose values are of several kinds become text."""
    for key in keys:
        kinds: set[type] = {type(row[key]) for row in rows if row[key] is not None}
        is_plain = kinds <= {int, float} or kinds in ({str}, {bool})
        if not is_plain:
            for row in rows:
                row[key] = None if row[key] is None else shown(row[key])
    floats = {"seconds": pl.Float64, "error": pl.String}
    schema = {name: floats[name] for name in rows[0] if name in floats} if rows else {}
    return pl.DataFrame(rows, schema_overrides=schema, infer_schema_length=None, strict=False)


def _sorted(frame: pl.DataFrame) -> pl.DataFrame:
    there = [pl.col(name) for name in HELD_OUT if name in frame.columns]
    if not there:
        return frame
    return frame.sort(pl.coalesce(there), nulls_last=True, maintain_order=True)
