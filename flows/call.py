"""Calling the flows from this process; Prefect is imported here, after its server has started."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect import Flow


class StoppedRun(Exception):  # noqa: N818 - a stop that was asked for is no error
    """The run was stopped, and what was finished is kept; the message says how far it came."""


def call_teacher_cache(recipe: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Run the flow `teacher-cache`; returns its result."""
    from flows.teacher_cache import teacher_cache

    return _call(teacher_cache, recipe, overrides)


def call_student_train(recipe: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Run the flow `student-train`; returns its result."""
    from flows.student_train import student_train

    return _call(student_train, recipe, overrides)


def _call(flow: "Flow[..., Any]", recipe: Path, overrides: Sequence[str]) -> dict[str, Any]:
    from prefect.exceptions import CancelledRun

    try:
        return flow(str(recipe), tuple(overrides))
    except CancelledRun as error:
        raise StoppedRun(str(error)) from error
