"""From a sweep to its runs; whatever is wrong with any of them is said before one is trained."""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pipeline.config.read import read_fields
from pipeline.config.recipe import Recipe, parse_recipe, resolved_json
from pipeline.config.sweep import (
    Settings,
    SweepConfig,
    SweepRunsConfig,
    flat_settings,
)
from pipeline.sweep.names import name_of
from storage_schemas.errors import RecipeError

_STAGE_1 = ("pipeline", "records", "teacher", "noise", "targets", "cache", "workers")
_NAMED = 4  # runs that an error names; of the others it tells the number


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRun:
    """One student: its settings beside the recipe's, by dotted key, and the recipe with them.

    `overrides` are all that the sweep changes in the recipe's file, as `--set` takes them.
    """

    name: str
    settings: Mapping[str, Any]
    overrides: tuple[str, ...]
    recipe: Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    name: str
    settings: Settings


def expand_sweep(sweep: SweepConfig) -> tuple[SweepRun, ...]:
    """The runs in order. Every mistake in any of them is named in one error."""
    fields = read_fields(Path(sweep.recipe), "a recipe")
    common = flat_settings(sweep.set)
    mistakes = list(_foreign("set", common))
    drafts: list[_Draft] = []
    for config in sweep.runs or (None,):
        found = list(_mistakes(sweep, config))
        mistakes += found
        if not found:
            drafts += _drafts(sweep, config)
    runs: list[SweepRun] = []
    faults: dict[str, list[str]] = {}
    for draft in drafts:
        try:
            runs.append(_run(sweep, draft, common, fields))
        except RecipeError as error:
            head, *lines = str(error).split("\n  ")
            for line in lines or [head]:
                faults.setdefault(line, []).append(draft.name)
    mistakes += [
        f"{_whose(names, len(drafts))}: {line}{_hint(line)}" for line, names in faults.items()
    ]
    mistakes += _twins(runs)
    if mistakes:
        lines = list(dict.fromkeys(mistakes))
        raise RecipeError("\n  ".join([f"{sweep.output}: the sweep cannot be run:", *lines]))
    return tuple(runs)


def _mistakes(sweep: SweepConfig, config: SweepRunsConfig | None) -> Iterator[str]:
    """In the tables of one [[runs]], or in the sweep's own."""
    tables = {"grid": flat_settings(sweep.grid)}
    if config is not None:
        tables |= {
            f"set of run {config.name!r}": flat_settings(config.set),
            f"grid of run {config.name!r}": flat_settings(config.grid),
        }
    seen: dict[str, str] = {}
    for where, settings in tables.items():
        is_grid = where.startswith("grid")
        yield from _foreign(where, settings)
        for key, value in settings.items():
            if is_grid and not (isinstance(value, list) and value):
                yield f"{where}: {key}: expected a list of values to go through, got {value!r}"
            if key in seen:
                yield f"{key}: expected in one place, got it in the {seen[key]} and the {where}"
            seen[key] = where


def _foreign(where: str, settings: Settings) -> Iterator[str]:
    """Settings that a sweep may not change."""
    for key in settings:
        table = key.partition(".")[0]
        if table in _STAGE_1:
            yield (
                f"{where}: {key}: [{table}] belongs to stage 1, which is done: all runs of a sweep "
                f"read the one cache that the recipe names; change it in the recipe"
            )
        elif table == "held_out":
            yield (
                f"{where}: {key}: runs compare on the same held-out records alone; set it in the "
                f"recipe"
            )
        elif key == "train.output":
            yield f"{where}: {key}: each run has a folder of its own, under the sweep's output"


def _drafts(sweep: SweepConfig, config: SweepRunsConfig | None) -> Iterator[_Draft]:
    grid = flat_settings(sweep.grid)
    fixed = {} if config is None else flat_settings(config.set)
    own = {} if config is None else flat_settings(config.grid)
    for varied in _combinations(own | grid):
        name = "" if config is None else config.name
        yield _Draft(name=name_of(varied, name), settings=fixed | varied)


def _combinations(grid: Settings) -> Iterator[Settings]:
    """Every combination; the last key goes through its values first."""
    choices = [
        [flat_settings({key: item}) for item in cast("list[Any]", values)]
        for key, values in grid.items()
    ]
    for combination in itertools.product(*choices):
        yield {key: value for choice in combination for key, value in choice.items()}


def _run(sweep: SweepConfig, draft: _Draft, common: Settings, fields: dict[str, Any]) -> SweepRun:
    output = f"{sweep.output.rstrip('/')}/runs/{draft.name}"
    changed = common | draft.settings | {"train.output": output}
    overrides = tuple(f"{key}={_toml(key, value)}" for key, value in changed.items())
    return SweepRun(
        name=draft.name,
        settings=draft.settings,
        overrides=overrides,
        recipe=parse_recipe(deepcopy(fields), where=sweep.recipe, overrides=overrides),
    )


def _toml(key: str, value: object) -> str:
    """As TOML; JSON is the same, for what a recipe's settings can be."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        raise RecipeError(f"{key}: expected a number, a word or a list, got {value!r}") from error


def _whose(names: list[str], num_runs: int) -> str:
    if len(names) == num_runs > 1:
        return f"all {num_runs} runs"
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ("run " if len(names) == 1 else "runs ") + ", ".join(map(repr, names[:_NAMED])) + more


def _hint(line: str) -> str:
    if "no such setting here" not in line or not line.startswith("objective."):
        return ""
    return "; what not every objective has goes into the grid of a [[runs]] of its own"


def _twins(runs: Iterable[SweepRun]) -> Iterator[str]:
    """Runs of one name, or that would train the same student twice."""
    by_name: dict[str, list[str]] = {}
    by_recipe: dict[str, list[str]] = {}
    for run in runs:
        by_name.setdefault(run.name.casefold(), []).append(run.name)
        by_recipe.setdefault(_without_output(run.recipe), []).append(run.name)
    yield from (f"{len(n)} runs are called {n[0]!r}" for n in by_name.values() if len(n) > 1)
    for names in by_recipe.values():
        if len(names) > 1:
            yield f"{_whose(names, 0)} have the same recipe; leave out all but one"


def _without_output(recipe: Recipe) -> str:
    train = recipe.train.model_copy(update={"output": ""})
    return resolved_json(recipe.model_copy(update={"train": train}))
