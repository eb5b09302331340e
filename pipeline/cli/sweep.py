"""`tidecache sweep`: the runs as a list, their training in turn, and the comparison in tables."""

import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import polars as pl
import typer
from rich.table import Table

from pipeline.cli.tables import new_console, new_table
from pipeline.config.recipe import load_recipe
from pipeline.config.sweep import SweepConfig
from pipeline.sweep.expand import SweepRun
from pipeline.sweep.files import write_comparison, write_runs
from pipeline.sweep.names import setting_in_name, short_keys, shown
from pipeline.sweep.result import read_results
from pipeline.sweep.run import SweepEnd, check_runs, run_sweep
from pipeline.sweep.table import HELD_OUT, SEED, varied_keys
from storage_schemas.errors import RecipeError

_LOG = logging.getLogger("tidecache")
_HELD_OUT = (*HELD_OUT, "held_out_accuracy")
_LOSSES = ("loss", "masked_nll")


def list_runs(runs: Sequence[SweepRun]) -> None:
    """Each run, what it sets, and how far it has come already; nothing is trained or written."""
    keys = varied_keys(runs)
    table = new_table("run", *short_keys(keys).values(), "state")
    for result in read_results(runs, {}):
        settings = [shown(result.run.settings.get(key, "")) for key in keys]
        table.add_row(result.run.name, *settings, result.state)
    new_console().print(table, markup=False)


def train_runs(sweep: SweepConfig, runs: Sequence[SweepRun], *, through_prefect: bool) -> SweepEnd:
    """Every run, as `student-train` would; SIGTERM or Ctrl-C stops after a checkpoint."""
    from flows.stop import ctrl_c_as_sigterm, stop_on_sigterm

    check_runs(runs)
    write_runs(sweep.output, runs)
    number = {run.name: i for i, run in enumerate(runs, start=1)}
    with stop_on_sigterm() as stop, ctrl_c_as_sigterm():
        return run_sweep(
            runs,
            _through_prefect(sweep.recipe) if through_prefect else _plainly(stop.is_set),
            should_stop=stop.is_set,
            on_run=lambda run: _tell(f"run {number[run.name]} of {len(runs)}: {run.name}"),
        )


def compare(address: str, runs: Sequence[SweepRun], failures: Mapping[str, str]) -> None:
    """Writes the tables and the plot, and prints the tables."""
    results = read_results(runs, failures)
    comparison = write_comparison(address, results)
    keys = varied_keys(runs)
    objectives = dict.fromkeys(run.recipe.objective.type for run in runs)
    metrics = [*_HELD_OUT, *dict.fromkeys((*_LOSSES, *objectives))]
    console = new_console()
    is_over = all(result.state == "finished" for result in results)
    state = [] if is_over else ["state"]
    columns = ["run", *state, *_untold(comparison.runs, keys), "steps", "seconds", *metrics]
    console.print(_as_text(comparison.runs, columns, keys))
    if comparison.seeds is not None:
        keys = [key for key in keys if key != SEED]
        spread = [name for metric in metrics for name in (metric, f"{metric}_std")]
        console.print()
        columns = ["runs", *_untold(comparison.seeds, keys), "seeds", *spread]
        console.print(_as_text(comparison.seeds, columns, keys))
    console.print()
    for place in comparison.places:
        console.print(place, markup=False, soft_wrap=True)


def _plainly(should_stop: Callable[[], bool]) -> Callable[[SweepRun], bool]:
    def train(run: SweepRun) -> bool:
        from flows.progress import report_metrics
        from pipeline.launch.start import train_student

        summary = train_student(run.recipe, on_log=report_metrics(_LOG), should_stop=should_stop)
        return summary.is_complete

    return train


def _through_prefect(recipe: str) -> Callable[[SweepRun], bool]:
    def train(run: SweepRun) -> bool:
        from flows.call import StoppedRun, call_student_train

        if load_recipe(Path(recipe), run.overrides) != run.recipe:
            raise RecipeError(
                f"{recipe}: expected the recipe that the sweep began with, got a changed one; "
                f"start the sweep again"
            )
        try:
            call_student_train(Path(recipe), run.overrides)
        except StoppedRun:
            return False
        return True

    return train


def _untold(frame: pl.DataFrame, keys: Iterable[str]) -> list[str]:
    """The keys whose values do not all stand in their runs' names."""
    names = [name.split(",") for name in frame[frame.columns[0]]]
    return [
        key
        for key in keys
        if any(
            value is not None and setting_in_name(key, value) not in name
            for name, value in zip(names, frame[key], strict=True)
        )
    ]


def _as_text(frame: pl.DataFrame, columns: Iterable[str], keys: Iterable[str]) -> Table:
    """Those columns that are there and hold anything; deviations stand behind their means."""
    there = [name for name in columns if name in frame.columns and frame[name].count()]
    means = [name for name in there if not name.endswith("_std")]
    titles = short_keys(keys)
    table = new_table(
        *(
            ("" if frame.schema[name] == pl.String else ">") + titles.get(name, name)
            for name in means
        )
    )
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.overflow = "fold"  # a long word is cut in two rather than off
    for row in frame.iter_rows(named=True):
        table.add_row(
            *(_number(name, row[name]) + _spread(row.get(f"{name}_std")) for name in means)
        )
    return table


def _number(name: str, value: object) -> str:
    if value is None:
        return ""
    if name == "seconds":
        return f"{value:,.0f}"
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def _spread(deviation: float | None) -> str:
    return "" if deviation is None else f"±{deviation:.2g}"


def _tell(message: str) -> None:
    """Where a person looks on, the log is not shown."""
    if sys.stderr.isatty():
        typer.echo(message, err=True)
    else:
        _LOG.info("%s", message)
