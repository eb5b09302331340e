"""How a flow ends otherwise than well: a user's error without a traceback, a stop as Cancelled."""

from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Failed

from storage_schemas.errors import TidecacheError


def failed(error: TidecacheError) -> State[Any]:
    """The message says all there is to do; who calls the flow directly gets the error itself."""
    return Failed(message=str(error), data=error)


def stopped(message: str) -> State[Any]:
    """The run was asked to stop, and what it had finished is kept."""
    return Cancelled(message=message)
