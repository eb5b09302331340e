"""What a run is, as its folder says it: run.json, and summary.json once it is over."""

import json
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from pipeline.cache.reader import CacheReader
from pipeline.config.recipe import Recipe, resolved_json
from pipeline.train.output import TrainOutput
from pipeline.train.summary import TrainSummary
from storage_schemas.errors import RecipeError

RUN_FILE = "run.json"
SUMMARY_FILE = "summary.json"
FINAL_FOLDER = "final"
RECIPE_FILE = "recipe.json"
STAMP_FILE = "tidecache.json"
# How a run is carried out: another number of loaders, say, makes the same student.
_NOT_IDENTITY = ("output", "loader_workers", "trackers")


def run_of(recipe: Recipe, reader: CacheReader) -> dict[str, Any]:
    """What a run is: everything that decides its student."""
    return {
        "cache": {"digest": reader.identity.digest, "shards": [e.shard for e in reader.entries]},
        "recipe": recipe_identity(recipe),
    }


def recipe_identity(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that decides its student, over a given cache."""
    fields = recipe.model_dump(mode="json", exclude={"train": set(_NOT_IDENTITY)})
    return {
        name: fields[name] for name in ("pipeline", "student", "objective", "train", "held_out")
    }


def stamp_of(recipe: Recipe, reader: CacheReader) -> Callable[[Path, int], None]:
    """What leaves in the folder of a saved student what made it, beside transformers' files."""
    made_by = {
        "cache": {"address": reader.address, "digest": reader.identity.digest},
        "version": _version(),
    }

    def stamp(folder: Path, step: int) -> None:
        _write_text(folder / RECIPE_FILE, resolved_json(recipe))
        _write_json(folder / STAMP_FILE, made_by | {"step": step})

    return stamp


def write_run(output: TrainOutput, run: dict[str, Any]) -> None:
    """Claims the folder for this run."""
    _write_json(output.folder / RUN_FILE, run)
    output.keep(RUN_FILE)


def write_summary(output: TrainOutput, summary: TrainSummary) -> None:
    """Says that the run is over, and how it ended."""
    _write_json(output.folder / SUMMARY_FILE, asdict(summary) | {"output": FINAL_FOLDER})
    output.keep(SUMMARY_FILE)


def found_summary(output: TrainOutput, run: dict[str, Any]) -> TrainSummary | None:
    """The summary of this very run, if it is finished; refuses a folder that holds another run."""
    if not (output.folder / RUN_FILE).exists():
        return None
    found = _read_json(output.folder / RUN_FILE)
    if found != run:
        names = sorted({name for name, _ in _flat(found).items() ^ _flat(run).items()})
        raise RecipeError(
            f"{output.address} holds another run: it differs in {', '.join(names)}; name another "
            f"train.output, or remove this folder"
        )
    if not (output.folder / SUMMARY_FILE).exists():
        return None
    fields = _read_json(output.folder / SUMMARY_FILE)
    fields["output"] = output.place_of(fields["output"])
    return TrainSummary(**fields)


def _version() -> str:
    try:
        return metadata.version("tidecache")
    except metadata.PackageNotFoundError:  # the code runs where it was not installed
        return "unknown"


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= _flat(cast("dict[str, Any]", value), f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.dumps(value)
    return flat


def _read_json(path: Path) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    _write_text(path, json.dumps(fields, indent=2, sort_keys=True) + "\n")


def _write_text(path: Path, text: str) -> None:
    """Whole or not at all: written beside, then renamed."""
    beside = path.with_suffix(".tmp")
    beside.write_text(text, encoding="utf-8")
    beside.rename(path)
