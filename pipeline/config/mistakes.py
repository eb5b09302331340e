"""What is wrong with a hand-written file, in the words of the one who wrote it."""

from typing import Any, cast

from pydantic import ValidationError


def mistakes_in(
    fields: dict[str, Any], error: ValidationError, *, root: str = "recipe"
) -> list[str]:
    """One line a mistake, each with its dotted keys; `root` names the file as a whole."""
    details = cast("list[dict[str, Any]]", error.errors())
    return [_explain(detail, fields, root) for detail in details]


def _explain(detail: dict[str, Any], fields: dict[str, Any], root: str) -> str:
    where = _place(detail["loc"], fields) or root
    if detail["type"] == "union_tag_not_found":
        return f"{where}.type: Field required"
    if detail["type"] == "union_tag_invalid":
        ctx = detail["ctx"]
        return f"{where}.type: expected one of {ctx['expected_tags']}, got {ctx['tag']!r}"
    if detail["type"] == "extra_forbidden":
        return f"{where}: no such setting here; remove it, or check its spelling"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] in ("missing", "value_error"):
        return f"{where}: {message}"
    return f"{where}: {message}, got {detail['input']!r}"


def _place(loc: tuple[str | int, ...], fields: dict[str, Any]) -> str:
    """Dotted keys as in the recipe: pydantic's path also names the variant chosen by `type`."""
    names: list[str] = []
    value: object = fields
    variant: object = None
    for part in loc:
        if part == variant:
            variant = None
            continue
        names.append(str(part))
        value = _inside(value, part)
        variant = _inside(value, "type")
    return ".".join(names)


def _inside(value: object, part: str | int) -> object:
    if isinstance(value, dict):
        return cast("dict[str | int, object]", value).get(part)
    if isinstance(value, list) and isinstance(part, int):
        return cast("list[object]", value)[part]
    return None
