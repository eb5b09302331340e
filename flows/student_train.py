"""Stage 2 as a Prefect flow: one task that trains the student from the cache alone."""

import threading
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.assets import materialize
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Cancelled

from flows.artifacts import publishing
from flows.assets import asset_of
from flows.curve_pages import CurveBoard
from flows.progress import report_metrics
from flows.results import train_result
from flows.run_log import hide_tracebacks_of_user_errors
from flows.stop import stop_on_sigterm
from pipeline.config.recipe import Recipe, load_recipe
from pipeline.launch.start import train_student

hide_tracebacks_of_user_errors()


@flow(name="student-train", persist_result=False)
def student_train(recipe: str, overrides: tuple[str, ...] = ()) -> dict[str, Any] | State[Any]:
    """Train the recipe's student: from its last checkpoint, or not at all if it is finished.

    On SIGTERM a checkpoint is saved and the run is Cancelled; a later run goes on from there.
    """
    with stop_on_sigterm() as stop:
        result = _train(load_recipe(Path(recipe), overrides), stop)
    return Cancelled(message=result.message) if isinstance(result, State) else result


def _train(recipe: Recipe, stop: threading.Event) -> dict[str, Any] | State[Any]:
    """The run's result; a state that says where it stopped, if it did."""
    student, cache = asset_of(recipe.train.output), asset_of(recipe.cache.path)
    board = CurveBoard(recipe.train.output)

    @materialize(
        student, asset_deps=[cache], name="train", cache_policy=NO_CACHE, persist_result=False
    )
    def train() -> dict[str, Any] | State[Any]:
        report = report_metrics(get_run_logger())

        def on_log(metrics: dict[str, float]) -> None:
            report(metrics)
            board.log(metrics)

        result = train_result(train_student(recipe, on_log=on_log, should_stop=stop.is_set))
        if not result["is_complete"]:  # so the student does not count as made
            return Cancelled(message=f"stopped at step {result['steps']}; run again to go on")
        student.add_metadata(result)
        return result

    with publishing(board.pages(), get_run_logger()):
        return train()
