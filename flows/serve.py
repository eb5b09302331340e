"""Both deployments in one process: stage 1 by a schedule, stage 2 by stage 1's event."""

import asyncio
import hashlib
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.runner import Runner
from prefect.types.entrypoint import EntrypointType
from pydantic import ValidationError

from flows.events import COMMITTED, cache_address, match_of
from flows.student_train import student_train
from flows.teacher_cache import teacher_cache
from pipeline.config.recipe import load_recipe
from storage_schemas.errors import RecipeError


def deployments(
    recipe: Path,
    overrides: tuple[str, ...] = (),
    *,
    cron: str | None = None,
    interval: timedelta | None = None,
) -> tuple[RunnerDeployment, RunnerDeployment]:
    """Stage 1 with its schedule; stage 2 triggered by this recipe's cache, and by no other."""
    assert (cron is None) != (interval is None), "one schedule"
    if cron is not None:
        _check_cron(cron)
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
    return cast("tuple[RunnerDeployment, RunnerDeployment]", (teacher, student))  # no event loop


def serve_recipe(
    recipe: Path,
    overrides: tuple[str, ...] = (),
    *,
    cron: str | None = None,
    interval: timedelta | None = None,
) -> None:
    """Runs until SIGTERM or Ctrl-C. One run at a time: both stages want the same machine."""
    runner = _Runner(limit=1)
    for deployment in deployments(recipe, overrides, cron=cron, interval=interval):
        runner.add_deployment(deployment)
    asyncio.run(runner.run())


def _check_cron(cron: str) -> None:
    try:
        CronSchedule(cron=cron)
    except ValidationError as error:
        raise RecipeError(f"expected a cron schedule as in '0 2 * * *', got {cron!r}") from error


class _Runner(Runner):
    """A runner that SIGTERM ends in order: the run in flight is asked to stop, and waited for.

    Prefect's own handler leaves in the middle of its event loop.
    """

    async def run(self) -> None:
        """Serves until SIGTERM."""
        loop = asyncio.get_running_loop()
        serving = loop.create_task(self.start())
        self._end = lambda: loop.call_soon_threadsafe(serving.cancel)
        with suppress(asyncio.CancelledError):
            await serving

    def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
        self._end()
