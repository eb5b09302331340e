"""What the demo found: each model's held-out scores, and what was compared with what."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluate.scores import HeldOutScores, PairedDifference


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model: how it was made, where it is, and its scores."""

    key: str
    label: str
    model: Path
    scores: HeldOutScores


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The model with key `key` minus the one with key `minus`."""

    key: str
    minus: str
    difference: PairedDifference


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Wall time of this run; what it found finished costs next to nothing."""

    stage_1: float
    stage_2: float
    evaluation: float
    report: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """Rows in the order of the table; comparisons with the controls, and with the start."""

    output: Path
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    seconds: Seconds

    def difference(self, key: str, minus: str) -> PairedDifference:
        """One comparison that was made."""
        (found,) = [c for c in self.comparisons if (c.key, c.minus) == (key, minus)]
        return found.difference
