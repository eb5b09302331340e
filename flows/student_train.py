"""Stage 2 as a Prefect flow: one task that trains the student from the cache alone."""

import threading
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from flows.outcome import failed, stopped
from flows.progress import report_metrics
from flows.results import train_result
from flows.stop import stop_on_sigterm
from pipeline.config.recipe import load_recipe
from storage_schemas.errors import TidecacheError


@flow(name="student-train", persist_result=False)
def student_train(recipe: str, overrides: tuple[str, ...] = ()) -> dict[str, Any] | State[Any]:
    """Train the recipe's student, from its last checkpoint if there is one.

    On SIGTERM a checkpoint is saved and the run is Cancelled; a later run goes on from there.
    """
    with stop_on_sigterm() as stop:
        try:
            result = _train_task(stop)(recipe, overrides)
        except TidecacheError as error:
            return failed(error)
        if stop.is_set():
            return stopped(f"stopped at step {result['steps']}; run again to go on")
    return result


def _train_task(stop: threading.Event) -> Any:
    @task(name="train", cache_policy=NO_CACHE, persist_result=False)
    def train(recipe: str, overrides: tuple[str, ...]) -> dict[str, Any] | State[Any]:
        from pipeline.student_train import run_student_train  # here: it loads torch

        try:
            summary = run_student_train(
                load_recipe(Path(recipe), overrides),
                on_log=report_metrics(get_run_logger()),
                should_stop=stop.is_set,
            )
        except TidecacheError as error:
            return failed(error)
        return train_result(summary)

    return train
