"""Both deployments in one process: stage 1 by a schedule, stage 2 by stage 1's event."""

import asyncio
import hashlib
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.flows import EntrypointType
from prefect.runner import Runner

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
    """Runs until SIGTERM or Ctrl-C. One run at a time: both stages want the same machine."""
    runner = _Runner(limit=1)
    for deployment in deployments(recipe, overrides, cron=cron, interval=interval):
        runner.add_deployment(deployment)
    try:
        asyncio.run(runner.start())
    except KeyboardInterrupt:
        if not runner.is_terminated:
            raise


class _Runner(Runner):
    """A runner that ends by SIGTERM as by Ctrl-C: the run in flight is asked to stop, then waited for.

    Prefect's own handler leaves in the middle of its event loop.
    """

    is_terminated = False

    def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
        self.is_terminated = True
        signal.raise_signal(signal.SIGINT)
