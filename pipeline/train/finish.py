"""The student that a run ends with: a plain transformers checkpoint, whatever it was trained as."""

from pathlib import Path
from typing import Any, cast

from pipeline.config.recipe import Recipe
from pipeline.student.lora import merge_adapters
from pipeline.student.model import load_student
from pipeline.train.ranks import Ranks
from pipeline.train.trainer import StudentTrainer

ADAPTER_FOLDER = "adapter"


def save_student(trainer: StudentTrainer, recipe: Recipe, folder: Path, ranks: Ranks) -> None:
    """Writes the student; with adapters, merged, and the adapters alone in a folder beside it.

    Every process takes part, since each may hold a share of the weights; the first one writes.
    """
    if recipe.train.lora is None:
        trainer.save_model(str(folder))
        return
    trainer.save_model(str(folder / ADAPTER_FOLDER))
    if ranks.is_first:
        # into weights as they were read, not as processes may share them
        merged = merge_adapters(load_student(recipe.student), folder / ADAPTER_FOLDER)
        merged.save_pretrained(folder)
        cast("Any", trainer.processing_class).save_pretrained(folder)
        trainer.stamp(folder)
