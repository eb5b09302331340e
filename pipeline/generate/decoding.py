"""How a response is decoded: the settings that decide its tokens, and nothing else."""

from dataclasses import dataclass
from typing import Literal

from pipeline.objectives.precision import Real
from storage_schemas.errors import RecipeError

Remasking = Literal["low_confidence", "random"]


def checked_remasking(name: str) -> Remasking:
    """A name from outside as one of ours."""
    if name not in ("low_confidence", "random"):
        raise RecipeError(f"expected remasking 'low_confidence' or 'random', got {name!r}")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """Settings of one decoding; settings that make no sense are a RecipeError.

    max_new_tokens: response tokens at most, per prompt. steps_per_block: unmasking steps of a whole
    block; its tokens are spread evenly over them, and a block that begins with prompt tokens takes
    fewer. remasking: which tokens of a step stay, the most certain ones or any. threshold: besides
    those, each token at least this certain stays; that only ever saves steps. temperature: 0 takes
    the likeliest token, else one is drawn at that temperature. seed: of the random numbers, if any.
    """

    max_new_tokens: int
    block_size: int
    steps_per_block: int
    remasking: Remasking = "low_confidence"
    threshold: Real | None = None
    temperature: Real = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "block_size", "steps_per_block"):
            if getattr(self, name) < 1:
                raise RecipeError(f"expected {name} of 1 or more, got {getattr(self, name)}")
        if self.steps_per_block > self.block_size:
            raise RecipeError(
                f"expected at most as many steps a block as it has tokens, {self.block_size}, got "
                f"{self.steps_per_block}: a step decides at least one token"
            )
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise RecipeError(f"expected a threshold in (0, 1], got {self.threshold}")
        if not 0 <= self.temperature < float("inf"):
            raise RecipeError(f"expected a temperature of 0 or more, got {self.temperature}")
