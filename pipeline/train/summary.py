"""What a run of stage 2 tells when it ends."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSummary:
    """A finished or stopped run. `output` holds the student, for `from_pretrained`.

    It is a URL where train.output is one. A run that held-out likelihood ended early is complete.
    metrics: the last logged value of the loss, of each term, and of what else a step logs; with
    held-out records also the best evaluation's bound, that of step best_step.
    """

    output: Path | str
    steps: int
    seconds: float
    is_complete: bool
    metrics: dict[str, float]
    stopped_early: bool = False
    best_step: int | None = None
