"""The engines that run stage 1 in many processes: Prefect's task runners on Dask and on Ray.

They start the workers, place the shards, and give a shard whose worker died to another one.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from prefect import Task
from prefect.futures import PrefectFuture

from pipeline.config.recipe import Recipe
from pipeline.config.workers import DaskWorkers, RayWorkers
from storage_schemas.errors import RecipeError

LIVES = 3
"""Worker processes that one shard may cost before it is given up."""

_RAY_STORE_BYTES = 100 * 2**20  # messages are names and counts; by default it takes a third of RAM


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A task runner that is up.

    submit: gives a task out with its parameters. lost: the errors which say that a task's workers
    died of it, one after the other.
    """

    submit: Callable[[Task[..., Any], dict[str, Any]], PrefectFuture[Any]]
    lost: tuple[type[Exception], ...]


@contextmanager
def engine_of(recipe: Recipe) -> Generator[Engine]:
    """The recipe's workers, started or joined; those that were started end with the context."""
    config = recipe.workers
    assert config is not None, "a recipe with workers"
    with _dask(config) if isinstance(config, DaskWorkers) else _ray(config, recipe) as engine:
        yield engine


@contextmanager
def _dask(config: DaskWorkers) -> Generator[Engine]:
    try:
        import dask
        from distributed import KilledWorker
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise _lacks("dask", error) from error
    from flows.dask_worker import HearsNoSigterm

    logging.getLogger("distributed").setLevel(logging.WARNING)
    local: dict[str, Any] = {
        "n_workers": config.count,
        "threads_per_worker": 1,
        "memory_limit": 0,  # a teacher's weights are no leak; the system's own limits hold
        "dashboard_address": None,
        "scheduler_kwargs": {"allowed_failures": LIVES - 1},
    }
    runner = (
        DaskTaskRunner(cluster_kwargs=local)
        if config.address is None
        else DaskTaskRunner(address=config.address)
    )
    settings = {
        "distributed.worker.daemon": False,  # vLLM's engine has processes of its own
        "logging.distributed": "warning",
    }
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(settings))
        stack.enter_context(runner)
        try:
            client = runner.client
        except (OSError, ValueError) as error:
            raise _unreached("a Dask scheduler", config.address, error) from error
        if config.address is None:
            client.register_plugin(HearsNoSigterm())
        yield Engine(
            submit=lambda task, parameters: runner.submit(task, parameters=parameters),
            lost=(KilledWorker,),
        )


@contextmanager
def _ray(config: RayWorkers, recipe: Recipe) -> Generator[Engine]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from prefect_ray import RayTaskRunner
        from prefect_ray.context import remote_options
    except ImportError as error:
        raise _lacks("ray", error) from error

    started: dict[str, Any] = {
        "num_cpus": config.count,
        "include_dashboard": False,
        "object_store_memory": _RAY_STORE_BYTES,
        "_system_config": {"task_oom_retries": LIVES - 1},
    }
    runner = RayTaskRunner(
        address=config.address or "local",  # without a word it would join what runs here already
        init_kwargs={
            "log_to_driver": False,  # the shards' own log goes through Prefect
            "logging_level": logging.WARNING,
            **(started if config.address is None else {}),
        },
    )
    with ExitStack() as stack:
        heard = signal.getsignal(signal.SIGTERM)
        try:
            stack.enter_context(runner)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _unreached("a Ray cluster", config.address, error) from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, heard)  # Ray's own would end the run at once
        options: dict[str, Any] = {"num_cpus": 1, "max_retries": LIVES - 1, "max_calls": 0}
        if recipe.teacher.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0:
            # Ray counts the GPUs; which ones they are stays with the process that holds a teacher.
            keep = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
            options |= {
                "num_gpus": recipe.teacher.tensor_parallel,
                "runtime_env": {"env_vars": keep},
            }
        stack.enter_context(remote_options(**options))
        yield Engine(
            submit=lambda task, parameters: runner.submit(task, parameters=parameters),
            lost=(ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError),
        )


def _lacks(name: str, error: ImportError) -> RecipeError:
    return RecipeError(
        f"expected {name} for workers.type = {name!r}, got: {error}; "
        f"run pip install 'tidecache[{name}]'"
    )


def _unreached(what: str, address: str | None, error: Exception) -> RecipeError:
    where = "on this machine" if address is None else f"at workers.address = {address!r}"
    return RecipeError(f"expected {what} {where}, got: {error}; check that it is up")
