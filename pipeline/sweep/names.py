"""What a run of a grid is called: its own settings, readable, and the same tomorrow."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import xxhash

_LENGTH = 100  # file systems take 255 bytes; a table and a legend have to hold it too
_UNSAFE = re.compile(r"[^A-Za-z0-9._+=,-]+")


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Dotted key -> its last part; a table's type by the table's name; whole where two agree."""
    whole = list(dict.fromkeys(keys))
    short = {key: key.removesuffix(".type").rpartition(".")[2] for key in whole}
    twice = {name for name in short.values() if list(short.values()).count(name) > 1}
    return {key: key if name in twice else name for key, name in short.items()}


def name_of(settings: Mapping[str, Any], prefix: str = "") -> str:
    """`reverse_calm,temperature=5,seed=0`, after the name that the user gave.

    What no file name can hold, or is long, is cut, and a few letters that stand for the settings
    keep it apart.
    """
    short = short_keys(settings)
    parts = [setting_in_name(key, value, short[key]) for key, value in settings.items()]
    text = ",".join([prefix, *parts] if prefix else parts)
    safe = _UNSAFE.sub("-", text).strip("-.,")
    if safe == text and len(safe) <= _LENGTH:
        return text
    exact = json.dumps(dict(settings), sort_keys=True, default=str)
    return f"{safe[:_LENGTH]}-{xxhash.xxh32_hexdigest(exact.encode())}"


def setting_in_name(key: str, value: object, short: str | None = None) -> str:
    """One part of a name; a type stands for itself."""
    if key.endswith(".type"):
        return shown(value)
    return f"{key.rpartition('.')[2] if short is None else short}={shown(value)}"


def shown(value: object) -> str:
    """A setting's value in a few letters: 5.0 as 5, a list by its items."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, list | tuple):
        return "+".join(map(shown, cast("Sequence[object]", value))) or "none"
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True) if value else "default"
    return str(value)
