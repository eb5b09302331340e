"""The tables of a hand-written TOML file, or of the JSON that is kept of one."""

import json
import tomllib
from pathlib import Path
from typing import Any, cast

from storage_schemas.errors import RecipeError


def read_fields(path: Path, what: str) -> dict[str, Any]:
    """What stands in the file; `what` it should hold is named where it cannot be read."""
    parse, kind = (json.loads, "JSON") if path.suffix == ".json" else (tomllib.loads, "TOML")
    try:
        fields = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"expected {what} ({kind}) at {path}, got no such file") from error
    except (OSError, ValueError, RecursionError) as error:  # TOML's and JSON's are ValueErrors
        raise RecipeError(f"{path}: expected a readable {kind} file, got: {error}") from error
    if not isinstance(fields, dict):
        raise RecipeError(f"{path}: expected tables ({kind}), got {type(fields).__name__}")
    return cast("dict[str, Any]", fields)
