"""A sweep: several students from one cache, as one TOML file names them."""

from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field, ValidationError, model_validator

from pipeline.config.base import StrictModel
from pipeline.config.mistakes import mistakes_in
from pipeline.config.read import read_fields
from pipeline.config.secrets import refuse_credentials_in
from storage_schemas.errors import RecipeError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")]
Settings = dict[str, Any]
"""By dotted keys, or by tables within tables."""


class SweepRunsConfig(StrictModel):
    """One run of this name; with a grid, one for each of its combinations."""

    name: Name
    set: Settings = Field(default_factory=Settings)
    grid: Settings = Field(default_factory=Settings)


class SweepConfig(StrictModel):
    """A recipe, and what its runs change in it; keys are dotted, as in `--set`.

    `set` holds for all runs. Every list of a grid is gone through in combination with the others;
    the grid of the sweep with that of each of its `runs`. Of an item that is a table, each key is
    set. Runs go to OUTPUT/runs/NAME, the comparison to OUTPUT.
    """

    recipe: Annotated[str, Field(min_length=1)]
    output: Annotated[str, Field(min_length=1)]
    set: Settings = Field(default_factory=Settings)
    grid: Settings = Field(default_factory=Settings)
    runs: tuple[SweepRunsConfig, ...] = ()

    @model_validator(mode="after")
    def _has_runs(self) -> "SweepConfig":
        if not self.grid and not self.runs:
            raise ValueError("expected a [grid] or [[runs]], got neither")
        return self


def load_sweep(path: Path) -> SweepConfig:
    """A sweep from TOML; its paths are relative to the folder that the command runs in."""
    fields = read_fields(path, "a sweep")
    refuse_credentials_in(fields, f"{path}: sweep")
    try:
        return SweepConfig.model_validate(fields)
    except ValidationError as error:
        lines = mistakes_in(fields, error, root="sweep")
        raise RecipeError("\n  ".join([f"{path}: the sweep cannot be used:", *lines])) from error


def flat_settings(settings: Settings, prefix: str = "") -> Settings:
    """Dotted key -> value; a table counts as its keys, unless it is empty."""
    flat: Settings = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            flat |= flat_settings(cast("Settings", value), f"{key}.")
        else:
            flat[key] = value
    return flat
