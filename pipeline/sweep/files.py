"""What a sweep leaves beside its runs: the list of them, the tables and the plot."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline.sweep.expand import SweepRun
from pipeline.sweep.plot import draw_plot
from pipeline.sweep.result import RunResult
from pipeline.sweep.table import run_table, seed_table
from pipeline.train.output import TrainOutput, open_output
from storage_schemas.errors import RecipeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The tables, and where they and the plot were written."""

    runs: pl.DataFrame
    seeds: pl.DataFrame | None
    places: tuple[str, ...]


def write_runs(address: str, runs: Sequence[SweepRun]) -> None:
    """runs.json: what each run sets, by its name."""
    text = json.dumps({run.name: dict(run.settings) for run in runs}, indent=2) + "\n"
    with open_output(address) as output:
        _write(output, "runs.json", lambda path: path.write_text(text, encoding="utf-8"))


def write_comparison(address: str, results: Sequence[RunResult]) -> Comparison:
    """table.parquet and table.csv, seeds.* where seeds vary, plot.png where anything was logged."""
    runs, seeds = run_table(results), seed_table(results)
    writers: dict[str, Callable[[Path], object]] = {
        "table.parquet": runs.write_parquet,
        "table.csv": runs.write_csv,
    }
    if seeds is not None:
        writers |= {"seeds.parquet": seeds.write_parquet, "seeds.csv": seeds.write_csv}
    if any(len(result.curve) for result in results):
        writers["plot.png"] = lambda path: draw_plot(results, path)
    with open_output(address) as output:
        for name, write in writers.items():
            _write(output, name, write)
        places = tuple(str(output.place_of(name)) for name in writers)
    return Comparison(runs=runs, seeds=seeds, places=places)


def _write(output: TrainOutput, name: str, write: Callable[[Path], object]) -> None:
    """Whole or not at all: written beside, then renamed."""
    beside = output.folder / f".new-{name}"
    try:
        output.folder.mkdir(parents=True, exist_ok=True)
        write(beside)
        beside.rename(output.folder / name)
    except OSError as error:
        raise RecipeError(f"output: cannot write to {output.folder}: {error}") from error
    output.keep(name)
