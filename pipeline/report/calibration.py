"""Calibration and agreement: is a model as often right as it is certain, and does it say the same?

Axes: P position, C chunk, N things that agree or do not.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.report.answers import Answers
from pipeline.report.estimates import Estimate, over_seeds
from pipeline.report.view_contents import Agreement, Bin, Calibration, NoiseBin
from pipeline.report.views import CachedViews
from storage_schemas.examples import Bools
from storage_schemas.targets import Floats

_NUM_BINS = 10
_NOISE_EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def calibration(label: str, setting: str | None, answers: Sequence[Answers]) -> Calibration:
    """Of one model, or of all seeds of a setting: their bins pooled, their errors a mean."""
    confidence = np.concatenate([one.confidence_P for one in answers])
    is_correct = np.concatenate([one.is_correct_P for one in answers])
    return Calibration(
        label=label,
        setting=setting,
        error=over_seeds(
            [calibration_error(reliability(one.confidence_P, one.is_correct_P)) for one in answers]
        ),
        confidence=float(confidence.mean(dtype=np.float64)),
        accuracy=float(is_correct.mean()),
        nll=-float(np.concatenate([one.logp_P for one in answers]).mean(dtype=np.float64)),
        bins=reliability(confidence, is_correct),
    )


def reliability(confidence_P: Floats, is_correct_P: Bools) -> tuple[Bin, ...]:
    """Ten bins of equal width over certainty in [0, 1]; empty ones are left out."""
    bin_P = np.minimum((confidence_P * _NUM_BINS).astype(int), _NUM_BINS - 1)
    bins: list[Bin] = []
    for number in range(_NUM_BINS):
        is_in_P = bin_P == number
        if is_in_P.any():
            bins.append(
                Bin(
                    confidence=float(confidence_P[is_in_P].mean(dtype=np.float64)),
                    accuracy=float(is_correct_P[is_in_P].mean()),
                    num=int(is_in_P.sum()),
                )
            )
    return tuple(bins)


def calibration_error(bins: Sequence[Bin]) -> float:
    """Mean over positions of |share that is right - certainty|, each taken over its bin."""
    total = sum(one.num for one in bins)
    return sum(one.num * abs(one.accuracy - one.confidence) for one in bins) / total


def token_agreement(
    setting: str, students: Sequence[Answers], teacher: Answers, views: CachedViews
) -> Agreement:
    """The same likeliest token, among those that both have."""
    same = [one.shared_top_P == teacher.shared_top_P for one in students]
    return _agreement(setting, same, views.time_P, [one.logp_C for one in students], teacher.logp_C)


def chunk_agreement(
    setting: str, students: Sequence[Answers], views: CachedViews, *, temperature: float
) -> Agreement:
    """Both put the chunk's softened probability, p^(1/T), on the same side of one half."""
    half = -temperature * math.log(2)
    is_likely_C = views.logp_C > half
    same = [(one.logp_C > half) == is_likely_C for one in students]
    return _agreement(setting, same, views.time_C, [one.logp_C for one in students], views.logp_C)


def correlation(ours: Floats, theirs: Floats) -> float:
    """Pearson's; NaN where one side is constant, or not everywhere finite."""
    x, y = ours.astype(np.float64), theirs.astype(np.float64)
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else math.nan


def _agreement(
    setting: str,
    same: Sequence[NDArray[np.bool_]],
    time_N: Floats,
    logp: Sequence[Floats],
    teacher_logp: Floats,
) -> Agreement:
    bins: list[NoiseBin] = []
    for low, high in pairwise(_NOISE_EDGES):
        is_in_N = (time_N >= low) & (time_N < high)
        if is_in_N.any():
            bins.append(
                NoiseBin(low=low, high=high, share=_share(same, is_in_N), num=int(is_in_N.sum()))
            )
    return Agreement(
        setting=setting,
        share=_share(same, np.ones(len(time_N), np.bool_)),
        correlation=over_seeds([correlation(one, teacher_logp) for one in logp]),
        bins=tuple(bins),
    )


def _share(same: Sequence[NDArray[np.bool_]], is_in_N: NDArray[np.bool_]) -> Estimate:
    return over_seeds([float(one[is_in_N].mean()) for one in same])
