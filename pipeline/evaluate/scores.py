"""What a model scores on held-out masks, and how two models differ on the very same ones.

Sums are kept by record, so that a difference comes with a standard error over records.

Axes: R held-out record, L noise level.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Sums = NDArray[np.float64]
Counts = NDArray[np.int64]
Tokens = Literal["content", "target"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """Sums over the masked tokens of one kind; nll_RL in nats."""

    levels: tuple[float, ...]
    nll_RL: Sums
    num_correct_RL: Counts
    num_masked_RL: Counts
    num_maskable_R: Counts

    @property
    def num_masked_L(self) -> Counts:
        """Masked tokens at each level."""
        return self.num_masked_RL.sum(0)

    @property
    def nll_L(self) -> Sums:
        """Mean negative log-likelihood of a masked token, in nats; NaN where none is masked."""
        return _share(self.nll_RL.sum(0), self.num_masked_L)

    @property
    def accuracy_L(self) -> Sums:
        """Share of the masked tokens whose most likely token is the true one."""
        return _share(self.num_correct_RL.sum(0), self.num_masked_L)

    @property
    def nll_bound(self) -> float:
        """Bound on the negative log-likelihood of a token given its prompt, in nats.

        At each level t the sum of -log p over masked tokens, over t, over the maskable tokens; then
        the mean over levels. With `LEVELS` that is the midpoint rule for the integral over t in
        [0, 1]: an estimate of the bound that CE in training estimates with random times.
        """
        return float(self.bound_R.sum() / self.num_maskable_R.sum())

    @property
    def nll_bound_error(self) -> float:
        """Standard error of the bound over records, in nats; NaN where there are too few."""
        return ratio(self.bound_R, self.num_maskable_R)[1]

    @property
    def accuracy(self) -> float:
        """Share of the masked tokens of all levels whose most likely token is the true one."""
        num_masked = int(self.num_masked_RL.sum())
        return int(self.num_correct_RL.sum()) / num_masked if num_masked else float("nan")

    @property
    def bound_R(self) -> Sums:
        """What each record adds to the bound, in nats: not yet over its tokens."""
        return (self.nll_RL / np.array(self.levels)).mean(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutScores:
    """One model's scores on the masks with this fingerprint.

    `content` is the headline: the response's own text and end of turn. `target` is what training
    learns, the EOS filling included; that filling is easy, and grows with the block size.
    """

    fingerprint: str
    record_ids: tuple[str, ...]
    content: TokenScores
    target: TokenScores

    def of(self, tokens: Tokens) -> TokenScores:
        """The scores over one kind of token."""
        return self.content if tokens == "content" else self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """One model minus another, in nats, with standard errors over records; below 0 is better.

    nll_L: of the mean over masked tokens at each level. nll_bound: of the bound of a token.
    """

    nll_L: Sums
    nll_error_L: Sums
    nll_bound: float
    nll_bound_error: float


def paired_difference(
    scores: HeldOutScores, other: HeldOutScores, *, tokens: Tokens = "content"
) -> PairedDifference:
    """`scores` minus `other`, token by token on the same masks, so that their difficulty cancels.

    A mean over tokens is a ratio of sums over records; its standard error is the linearized one,

        sqrt(R / (R - 1) sum_r (d_r - mean n_r)^2) / sum_r n_r,

    for records drawn independently. Functions of one file are alike, so it is rather too small.
    """
    if scores.fingerprint != other.fingerprint:
        raise ValueError(
            "expected two scores on the same held-out masks, got fingerprints "
            f"{scores.fingerprint[:12]} and {other.fingerprint[:12]}; score both models anew"
        )
    ours, theirs = scores.of(tokens), other.of(tokens)
    difference_RL = ours.nll_RL - theirs.nll_RL
    by_level = [
        ratio(difference_RL[:, level], ours.num_masked_RL[:, level])
        for level in range(len(ours.levels))
    ]
    bound, bound_error = ratio(ours.bound_R - theirs.bound_R, ours.num_maskable_R)
    return PairedDifference(
        nll_L=np.array([mean for mean, _ in by_level]),
        nll_error_L=np.array([error for _, error in by_level]),
        nll_bound=bound,
        nll_bound_error=bound_error,
    )


def ratio(sum_R: Sums, count_R: Counts) -> tuple[float, float]:
    """Mean of an item, and its standard error over records; NaN where there are too few."""
    total, num_records = int(count_R.sum()), len(count_R)
    if total == 0:
        return float("nan"), float("nan")
    mean = float(sum_R.sum()) / total
    if num_records < 2:
        return mean, float("nan")
    spread = float(((sum_R - mean * count_R) ** 2).sum()) * num_records / (num_records - 1)
    return mean, spread**0.5 / total


def _share(sum_L: Sums | Counts, count_L: Counts) -> Sums:
    whole_L = np.full(len(count_L), np.nan)
    return np.divide(sum_L, count_L, out=whole_L, where=count_L > 0)
