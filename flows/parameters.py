"""The flows' parameters: flat, so that a form shows each of them, and checked before a run begins.

A server checks them against their JSON schema when a run is created; a form's explanations come
from the docstrings of the flows.
"""

import json
from typing import Annotated, Literal

from pydantic import Field

RecipeFile = Annotated[str, Field(min_length=1)]
Overrides = Annotated[tuple[Annotated[str, Field(pattern="^[^=]+=")], ...], Field()]
Views = Annotated[int | None, Field(ge=1)]
Objective = (
    Literal[
        "masked_nll",
        "calm",
        "reverse_calm",
        "calm_tidal",
        "forward_kl",
        "reverse_kl",
        "tidal_kl",
    ]
    | None
)
Positive = Annotated[float | None, Field(gt=0, allow_inf_nan=False)]
Output = Annotated[str | None, Field(min_length=1)]


def as_overrides(**settings: str | float | None) -> tuple[str, ...]:
    """Those that are given, as a recipe's overrides; `__` stands for the dot of a key."""
    return tuple(
        f"{name.replace('__', '.')}={json.dumps(value, ensure_ascii=False)}"
        for name, value in settings.items()
        if value is not None
    )
