"""What is compared: an arm is one way to train a student, a run is an arm under one seed."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Pipeline = Literal["A", "B"]
Split = Literal["validation", "test"]
Targets = Literal["chunks", "sketch 0.15", "top 8 even", "top 64 even", "exact"]

BATCH = 16
"""Views a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheArm:
    """What stage 1 is asked for: `records` of them, `views` of each."""

    pipeline: Pipeline
    records: int
    views: int
    targets: Targets
    compdemo: float | None = None
    times: Literal["stratified", "independent"] = "stratified"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A cache and what is learned from it; `settings` are overrides of the recipe's [objective].

    start: the study's own, or the demo's student, which is trained to rest.
    """

    cache: CacheArm
    objective: str
    learning_rate: float
    steps: int
    settings: tuple[str, ...] = ()
    start: Literal["early", "finished"] = "early"

    @property
    def key(self) -> str:
        """A short name that says what it is: equal arms of two questions are trained once."""
        fields = asdict(self)
        if self.start == "early":
            del fields["start"]
        return digest(fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """An arm under one seed, which decides its records, its noise and the order of its views."""

    arm: Arm
    seed: int
    split: Split

    @property
    def key(self) -> str:
        """The name of its row among the results."""
        return f"{self.arm.key}-{self.seed}-{self.split}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Labelled arms under the same seeds; each is compared with the arm called `control`."""

    name: str
    asks: str
    split: Split
    seeds: tuple[int, ...]
    control: str
    arms: dict[str, Arm] = field(default_factory=dict[str, Arm])

    def runs(self) -> list[tuple[str, Run]]:
        """With their labels, seed by seed, so that a stopped study has whole comparisons."""
        return [
            (label, Run(arm=arm, seed=seed, split=self.split))
            for seed in self.seeds
            for label, arm in self.arms.items()
        ]


def digest(fields: dict[str, Any]) -> str:
    """Twelve hex digits of what is in it."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]
