"""One model under several draws of the held-out masks: what of a figure is the masks' luck.

Axes: D draw, L noise level.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluate.scores import HeldOutScores, Sums, ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnScores:
    """Means over draws of masks on the same records; nats a token, and nats a byte of its text.

    monte_carlo_error: the standard error of the bound that comes from drawing masks; NaN for one
    draw. record_error: the one that comes from the choice of records. num_skipped: records that
    could not be used. fingerprints: of each draw's masks.
    """

    fingerprints: tuple[str, ...]
    num_draws: int
    num_records: int
    num_skipped: int
    num_tokens: int
    num_bytes: int
    nll_bound: float
    monte_carlo_error: float
    record_error: float
    levels: tuple[float, ...]
    nll_L: Sums
    accuracy_L: Sums

    @property
    def nats_per_byte(self) -> float:
        """The bound of the whole text, its ends of turn too, over its bytes; NaN without any."""
        total = self.nll_bound * self.num_tokens
        return total / self.num_bytes if self.num_bytes else float("nan")


def join_draws(
    scores: Sequence[HeldOutScores], *, num_bytes: int, num_skipped: int = 0
) -> DrawnScores:
    """From the scores under each draw; all of the same records."""
    assert scores, "a draw or more"
    content = [each.content for each in scores]
    bound_D = np.array([each.nll_bound for each in content])
    first = content[0]
    masked_L = sum(each.num_masked_L for each in content)
    with np.errstate(invalid="ignore"):
        nll_L = sum(each.nll_RL.sum(0) for each in content) / masked_L
        accuracy_L = sum(each.num_correct_RL.sum(0) for each in content) / masked_L
    mean_bound_R = np.mean([each.bound_R for each in content], axis=0)
    return DrawnScores(
        fingerprints=tuple(each.fingerprint for each in scores),
        num_draws=len(scores),
        num_records=len(first.num_maskable_R),
        num_skipped=num_skipped,
        num_tokens=int(first.num_maskable_R.sum()),
        num_bytes=num_bytes,
        nll_bound=float(bound_D.mean()),
        monte_carlo_error=_error(bound_D),
        record_error=ratio(mean_bound_R, first.num_maskable_R)[1],
        levels=first.levels,
        nll_L=np.asarray(nll_L),
        accuracy_L=np.asarray(accuracy_L),
    )


def _error(values_D: Sums) -> float:
    if len(values_D) == 1:
        return float("nan")
    return float(values_D.std(ddof=1) / np.sqrt(len(values_D)))
