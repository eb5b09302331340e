"""A recipe and a few neighbours: what else one might ask for, and would pay for."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pipeline.config.cache import (
    ChunkTargetsConfig,
    EvenTailConfig,
    SketchTailConfig,
    TokenTargetsConfig,
)
from pipeline.config.recipe import Recipe

_GRAD_ERRORS = (0.10, 0.15, 0.25)
_EVEN_K = 64
_CHUNKS_K = (0, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A named recipe of the table."""

    name: str
    recipe: Recipe


def settings_of(recipe: Recipe) -> list[Setting]:
    """This recipe first, then its neighbours: each differs in one respect, and none is it."""
    settings = [Setting(name="this recipe", recipe=recipe)]
    for name, table, changes in _changes(recipe):
        fields = recipe.model_dump(mode="json")
        fields[table] = changes if "type" in changes else fields[table] | changes
        try:
            neighbour = Recipe.model_validate(fields)
        except ValidationError:  # such as more tokens than the vocabulary has
            continue
        if all(neighbour != other.recipe for other in settings):
            settings.append(Setting(name=name, recipe=neighbour))
    return settings


def _changes(recipe: Recipe) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, table of the recipe, and what is set in it; with a `type` the table starts anew."""
    noise, targets = recipe.noise, recipe.targets
    yield "half the views", "noise", {"views": max(1, noise.views // 2)}
    yield "twice the views", "noise", {"views": 2 * noise.views}
    if noise.compdemo is None:
        yield "with CompDemo", "noise", {"compdemo": {}}
    else:
        yield "without CompDemo", "noise", {"compdemo": None}
    if isinstance(targets, ChunkTargetsConfig):
        for k in _CHUNKS_K:
            yield f"chunks, k = {k}", "targets", {"type": "chunks", "k": k}
    else:
        fields = targets.model_dump(mode="json")
        even = {"k": _EVEN_K, "tail": {"type": "even"}}
        yield f"top {_EVEN_K}, even tail", "targets", fields | even
        for error in _GRAD_ERRORS:
            name = f"sketch, gradient error {error:.2f}"
            yield name, "targets", fields | _sketch(targets, error)


def _sketch(targets: TokenTargetsConfig, grad_error: float) -> dict[str, Any]:
    """A sketch with the recipe's own k, rank and reserved records where it says any."""
    tail: dict[str, Any] = {"type": "sketch", "grad_error": grad_error}
    if not isinstance(targets.tail, EvenTailConfig):
        tail["calibration_records"] = targets.tail.calibration_records
    if isinstance(targets.tail, SketchTailConfig):
        return {"k": targets.k, "tail": tail | {"rank": targets.tail.rank}}
    default = TokenTargetsConfig(type="tokens")
    return {"k": min(targets.k, default.k), "tail": tail}
