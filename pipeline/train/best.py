"""The best student so far, by held-out likelihood: a whole student beside the checkpoints.

It is written after the checkpoint of its step, and again by a run that goes on from there: so
whatever ends a run, the next one finds it or makes it anew.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.train.output import TrainOutput
from pipeline.train.standing import Standing
from pipeline.train.trainer import StudentTrainer

BEST_FOLDER = "best"


class BestKeeper(TrainerCallback):
    """Keeps the student whose evaluation was the best, also when its checkpoint goes."""

    def __init__(
        self, trainer: StudentTrainer, output: TrainOutput, save: Callable[[Path], None]
    ) -> None:
        """`save` writes the present student, whole, to a folder; all processes call it."""
        self._trainer = trainer
        self._output = output
        self._save = save

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """The student that a run goes on from may be the best."""
        self.keep(state)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """The checkpoint is whole by now."""
        with self._trainer.paused():
            self.keep(state)

    def keep(self, state: TrainerState) -> None:
        """Writes the present student if it is the best; every process takes part in that."""
        best = Standing.of(state.log_history).best
        if best is None or best.step != state.global_step:
            return
        folder = self._output.folder / BEST_FOLDER
        new, old = folder.with_suffix(".new"), folder.with_suffix(".old")
        self._save(new)
        if state.is_world_process_zero:
            _replace(folder, new, old)
            self._output.keep(BEST_FOLDER)


def _replace(folder: Path, new: Path, old: Path) -> None:
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
