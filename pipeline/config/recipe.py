"""One recipe: all that the two flows need, from TOML, with overrides from the command line."""

import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, ValidationError, model_validator

from pipeline.config.base import StrictModel
from pipeline.config.cache import (
    CacheConfig,
    EvenTailConfig,
    NoiseConfig,
    TargetsConfig,
    TokenTargetsConfig,
)
from pipeline.config.held_out import HeldOutConfig
from pipeline.config.launch import LaunchConfig
from pipeline.config.mistakes import mistakes_in
from pipeline.config.models import BlockAttention, StudentConfig, TeacherConfig
from pipeline.config.objective import MaskedNll, ObjectiveConfig, TokenObjective
from pipeline.config.read import read_fields
from pipeline.config.records import RecordsConfig
from pipeline.config.secrets import refuse_credentials, refuse_credentials_in
from pipeline.config.train import TrainConfig
from pipeline.config.workers import WorkersConfig
from storage_schemas.errors import RecipeError


class CrossTokenizer(StrictModel):
    """Pipeline A: student and teacher read the text with different tokenizers."""

    type: Literal["cross_tokenizer"] = "cross_tokenizer"


class SharedTokenizer(StrictModel):
    """Pipeline B: the first `vocab` ids mean the same on both sides (151646 for WeDLM)."""

    type: Literal["shared_tokenizer"]
    vocab: Annotated[int, Field(gt=0)]


class Recipe(StrictModel):
    """Both stages. Stage 2 reads [student], [cache], [objective], [train], [held_out], [launch].

    Without [workers], stage 1 runs in the process that is asked to run it, and so does stage 2
    without [launch].
    """

    pipeline: Annotated[CrossTokenizer | SharedTokenizer, Field(discriminator="type")]
    records: RecordsConfig
    student: StudentConfig
    teacher: TeacherConfig
    noise: NoiseConfig = NoiseConfig()
    targets: TargetsConfig
    cache: CacheConfig
    workers: WorkersConfig | None = None
    objective: ObjectiveConfig = MaskedNll()
    train: TrainConfig
    held_out: HeldOutConfig | None = None
    launch: LaunchConfig | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> "Recipe":
        mistakes = [*_misfits(self.pipeline, self.targets, self.objective)]
        if self.workers is not None and ":" in self.teacher.device:
            mistakes.append(
                f"expected teacher.device = 'auto', 'cuda' or 'cpu' with [workers], each of which "
                f"is given GPUs of its own, got {self.teacher.device!r}"
            )
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    @property
    def teacher_block_size(self) -> int | None:
        """Tokens a block of a block-wise teacher, else None."""
        attention = self.teacher.attention
        return attention.block_size if isinstance(attention, BlockAttention) else None


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from TOML, or from the JSON that is kept of it beside what it made.

    An override `objective.type=calm` sets one key; its value is TOML. Setting a table's `type`
    starts that table anew, since another variant has other keys. Relative paths in a recipe are
    relative to the folder that the command runs in.
    """
    fields = read_fields(path, "a recipe")
    return parse_recipe(fields, where=str(path), overrides=overrides)


def parse_recipe(fields: dict[str, Any], *, where: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from nested tables; every mistake in it is named in one error."""
    refuse_credentials_in(fields, f"{where}: recipe")
    for keys, value in sorted(map(_override, overrides), key=_outer_types_first):
        _set(fields, keys, value)
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        lines = mistakes_in(fields, error)
        raise RecipeError("\n  ".join([f"{where}: the recipe cannot be used:", *lines])) from error


def resolved_json(recipe: Recipe) -> str:
    """The recipe with every default written out, as kept beside what it made."""
    return json.dumps(recipe.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"


def _misfits(
    pipeline: CrossTokenizer | SharedTokenizer, targets: TargetsConfig, objective: ObjectiveConfig
) -> Iterator[str]:
    vocab = pipeline.vocab if isinstance(pipeline, SharedTokenizer) else None
    if vocab is not None and isinstance(targets, TokenTargetsConfig) and targets.k > vocab:
        yield (
            f"expected targets.k <= pipeline.vocab = {vocab}, the tokens that both sides share, "
            f"got {targets.k}"
        )
    if (
        vocab is not None
        and isinstance(targets, TokenTargetsConfig)
        and targets.k == vocab
        and not isinstance(targets.tail, EvenTailConfig)
    ):
        yield (
            f"targets.tail of type {targets.tail.type!r} has no effect where k = pipeline.vocab: "
            "nothing is left out; set targets.tail.type = 'even'"
        )
    if not isinstance(objective, TokenObjective):
        return
    if isinstance(pipeline, CrossTokenizer):
        yield (
            f"objective {objective.type!r} compares distributions over tokens, which two "
            "tokenizers do not share; in pipeline 'cross_tokenizer' use reverse_calm, calm or "
            "calm_tidal"
        )
    elif not isinstance(targets, TokenTargetsConfig):
        yield (
            f"objective {objective.type!r} needs the teacher's distributions; set "
            "targets.type = 'tokens'"
        )
    elif objective.temperature not in targets.temperatures:
        yield (
            f"objective.temperature = {objective.temperature} is not among the cached "
            f"targets.temperatures {list(targets.temperatures)}; a cache keeps the exact "
            "logsumexp at those alone"
        )


def _override(text: str) -> tuple[list[str], Any]:
    dotted, has_value, value = text.partition("=")
    keys = [key.strip() for key in dotted.split(".")]
    refuse_credentials(text, "an override (--set)")
    if not has_value or not all(keys):
        raise RecipeError(f"expected an override like 'objective.type=calm', got {text!r}")
    try:
        return keys, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return keys, value.strip()  # a bare word is a string


def _outer_types_first(override: tuple[list[str], Any]) -> tuple[bool, int]:
    """Before the keys of their tables: setting a type would clear those, and inner types too."""
    keys, _ = override
    return keys[-1] != "type", len(keys)


def _set(fields: dict[str, Any], keys: list[str], value: Any) -> None:
    *outer, last = keys
    table = fields
    for depth, key in enumerate(outer, start=1):
        inner = table.setdefault(key, {})
        if not isinstance(inner, dict):
            raise RecipeError(
                f"override of {'.'.join(keys)}: expected a table at {'.'.join(keys[:depth])}, "
                f"got {inner!r}"
            )
        table = cast("dict[str, Any]", inner)
    if outer and last == "type" and table.get("type") != value:
        table.clear()
    table[last] = value
