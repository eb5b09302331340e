"""A run's log: what a user can mend is one message there, without a traceback."""

import logging

from storage_schemas.errors import TidecacheError


def hide_tracebacks_of_user_errors() -> None:
    """For all runs of this process; a bug keeps its traceback."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], TidecacheError):
        record.exc_info = None
    return True
