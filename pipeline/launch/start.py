"""Stage 2 as the recipe wants it: in this process, or in several that are started for it."""

import os
from collections.abc import Callable

from pipeline.config.recipe import Recipe
from pipeline.launch.torchrun import train_launched
from pipeline.train.summary import TrainSummary


def train_student(
    recipe: Recipe,
    *,
    on_log: Callable[[dict[str, float]], None],
    should_stop: Callable[[], bool],
) -> TrainSummary:
    """Train the student, on `launch.processes` processes of this machine if the recipe has any.

    A process that torchrun has started is one of them already.
    """
    if recipe.launch is not None and "WORLD_SIZE" not in os.environ:
        return train_launched(recipe, on_log=on_log, should_stop=should_stop)
    from pipeline.student_train import run_student_train  # here: it loads torch

    return run_student_train(recipe, on_log=on_log, should_stop=should_stop, shows_progress=False)
