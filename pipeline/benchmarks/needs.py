"""What a task needs of the machine, read from its settings before anything is loaded."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, cast

from storage_schemas.errors import RecipeError

_MATH_TASKS = frozenset({"minerva_math"})
_ANTLR = "4.11"


def runs_code(name: str, index: Mapping[str, Any]) -> bool:
    """Whether a task, or one that its name stands for, is marked as running what a model writes.

    `index` is the harness's `task_index`: the settings in its files, no data sets.
    """
    return any(config.get("unsafe_code") for config in _settings(name, index, set()))


def check_math(names: Sequence[str]) -> None:
    """Raise if a task that reads formulas is asked without the packages that read them."""
    asked = [name for name in names if name in _MATH_TASKS]
    if not asked:
        return
    missing = [package for package in ("sympy", "math_verify") if find_spec(package) is None]
    try:
        antlr = version("antlr4-python3-runtime")
    except PackageNotFoundError:
        antlr = "none"
    if not antlr.startswith(_ANTLR):
        missing.append(f"antlr4-python3-runtime=={_ANTLR} (got {antlr})")
    if missing:
        raise RecipeError(
            f"{', '.join(asked)}: expected the packages that read formulas, got no "
            f"{', '.join(missing)}; run pip install 'lm-eval[math]', or ask for other tasks"
        )


def _settings(name: str, index: Mapping[str, Any], seen: set[str]) -> Iterator[dict[str, Any]]:
    """Of a task, and of all tasks that it stands for."""
    entry = index.get(name)
    if entry is None or name in seen:
        return
    seen.add(name)
    if entry.cfg is None:  # a tag
        for member in sorted(entry.tags):
            yield from _settings(member, index, seen)
        return
    yield from _written_out(entry.cfg, index, seen)


def _written_out(
    config: dict[str, Any], index: Mapping[str, Any], seen: set[str]
) -> Iterator[dict[str, Any]]:
    """These settings, and those of the members that they name or write out."""
    yield config
    members = config.get("task")
    for member in cast("list[Any]", members) if isinstance(members, list) else [members]:
        if isinstance(member, dict):
            yield from _written_out(cast("dict[str, Any]", member), index, seen)
        elif isinstance(member, str):
            yield from _settings(member, index, seen)
    if isinstance(group := config.get("group"), str):
        yield from _settings(group, index, seen)
