"""Which errors may pass when tried again: those of a connection, by name. Nothing else is."""

from typing import Any

import httpx
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

TRANSIENT_ERRORS = (
    ConnectionError,
    TimeoutError,
    httpx.NetworkError,
    httpx.RemoteProtocolError,
    httpx.TimeoutException,
)
NUM_RETRIES = 4
WAITS = exponential_backoff(backoff_factor=5)  # 5, 10, 20, 40 seconds


def is_transient(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Prefect's question before a retry."""
    del task, task_run
    return isinstance(state.result(raise_on_failure=False), TRANSIENT_ERRORS)
