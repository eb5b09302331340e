"""Sealed JSON: a stored record whose text proves that no bit of it has changed.

The text is the one text of its fields (sorted keys, indented), and `seal` is the xxh3-128 of the
canonical JSON of all other fields. Any set of fields can be sealed.
"""

import json
from typing import Any, cast

import xxhash
from pydantic import BaseModel

SEAL = "seal"


def sealed_json(model: BaseModel) -> bytes:
    """The text that is stored: the same for equal models."""
    return sealed_fields(model.model_dump(mode="json"))


def sealed_fields(fields: dict[str, Any]) -> bytes:
    """The text of these fields with their seal."""
    return _text({**fields, SEAL: _seal(fields)})


def unsealed(data: bytes) -> dict[str, Any]:
    """The fields of a sealed text, without the seal; ValueError if any bit of it has changed."""
    try:
        fields: Any = json.loads(data)
    except RecursionError as error:
        raise ValueError("expected JSON of a few levels, got far more") from error
    if not isinstance(fields, dict) or SEAL not in fields:
        raise ValueError(f"expected an object with a field {SEAL!r}, got none")
    found = cast("dict[str, Any]", fields)
    rest = {name: value for name, value in found.items() if name != SEAL}
    if found[SEAL] != _seal(rest):
        raise ValueError(f"expected the seal {_seal(rest)} of what it says, got {found[SEAL]!r}")
    if data != _text(found):
        raise ValueError("expected the text as it was written, got other white space or spelling")
    return rest


def _seal(fields: dict[str, Any]) -> str:
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return xxhash.xxh3_128_hexdigest(canonical.encode())


def _text(fields: dict[str, Any]) -> bytes:
    return f"{json.dumps(fields, sort_keys=True, indent=2, allow_nan=False)}\n".encode()
