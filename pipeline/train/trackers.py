"""Where a run's metrics are shown: the trackers that a recipe names, through transformers."""

from collections.abc import Iterable
from importlib.util import find_spec

from storage_schemas.errors import RecipeError


def check_trackers(trackers: Iterable[str]) -> None:
    """Refuses trackers whose packages are not installed; each is a package of its own name."""
    missing = [name for name in trackers if find_spec(name) is None]
    if missing:
        raise RecipeError(
            f"train.trackers: expected {' and '.join(missing)} to be installed, got no such "
            f"package; pip install {' '.join(missing)}, or leave it out of train.trackers"
        )
