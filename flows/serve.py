"""Both deployments in one process: stage 1 by a schedule, stage 2 by stage 1's event."""

import hashlib
from datetime import timedelta
from pathlib import Path

from prefect import serve
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.flows import EntrypointType

from flows.events import COMMITTED, cache_address, match_of
from flows.student_train import student_train
from flows.teacher_cache import teacher_cache
from pipeline.config.recipe import load_recipe


def deployments(
    recipe: Path,
    overrides: tuple[str, ...] = (),
    *,
    cron: str | None = None,
    interval: timedelta | None = None,
) -> tuple[RunnerDeployment, RunnerDeployment]:
    """Stage 1 with its schedule; stage 2 triggered by this recipe's cache, and by no other."""
    assert (cron is None) != (interval is None), "one schedule"
    address = cache_address(load_recipe(recipe, overrides))
    path = recipe.resolve()
    name = f"{path.stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    parameters = {"recipe": str(path), "overrides": list(overrides)}
    teacher = teacher_cache.to_deployment(
        name,
        cron=cron,
        interval=interval,
        paused=False,  # a served deployment is paused when its process ends
        parameters=parameters,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    student = student_train.to_deployment(
        name,
        triggers=[
            DeploymentEventTrigger(
                name=f"{COMMITTED} of {address}", expect={COMMITTED}, match=match_of(address)
            )
        ],
        paused=False,
        parameters=parameters,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return teacher, student


def serve_recipe(
    recipe: Path,
    overrides: tuple[str, ...] = (),
    *,
    cron: str | None = None,
    interval: timedelta | None = None,
) -> None:
    """Runs until it is stopped. One run at a time: both stages want the same machine."""
    serve(
        *deployments(recipe, overrides, cron=cron, interval=interval),
        limit=1,
        print_starting_message=False,
    )
