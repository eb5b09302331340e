"""What a saved student says of itself, for those who only use it: the recipe beside its weights."""

from pathlib import Path

from pipeline.config.models import StudentConfig
from pipeline.config.recipe import load_recipe
from storage_schemas.errors import RecipeError
from storage_schemas.manifest import RECIPE_FILE


def saved_student(checkpoint: str, *, block_size: int | None = None) -> StudentConfig:
    """How a checkpoint is to be loaded and read: block by block as in training, with its mask.

    A checkpoint is a folder, or a name on the Hub. Without a recipe.json beside the weights
    `block_size` has to be given; it overrules the recipe. No code that a checkpoint brings is run.
    """
    folder = Path(checkpoint)
    if (folder / "final" / RECIPE_FILE).is_file() and not (folder / "config.json").exists():
        raise RecipeError(
            f"expected a student at {checkpoint}, got the folder of its run; take "
            f"{folder / 'final'}"
        )
    if not folder.exists() and (folder.is_absolute() or checkpoint.startswith(".")):
        raise RecipeError(f"expected a student at {checkpoint}, got no such folder")
    if (folder / RECIPE_FILE).is_file():
        student = load_recipe(folder / RECIPE_FILE).student
        size = block_size or student.block_size
        return StudentConfig(
            model=checkpoint,
            length=-(-student.length // size) * size,
            block_size=size,
            mask_token=student.mask_token,
            mask_id=student.mask_id,
        )
    if block_size is None:
        raise RecipeError(
            f"expected {checkpoint} to hold a {RECIPE_FILE}, as students that tidecache has saved "
            f"do, got none; give the block size that it was trained with (--block-size)"
        )
    return StudentConfig(model=checkpoint, length=block_size, block_size=block_size)
