"""Bytes of a sketch that nobody has calibrated yet: an estimate, and always labelled as one.

The sketch rounds d coefficients to a step s. If they are Gaussian with variances

    c i^-a,    i = 1 .. d,

then a row costs the sum of the entropies of these Gaussians, rounded. c is such that the model goes
through the anchor: SmolLM2-135M's d = 576, step 0.1, 79.4 bytes and a gradient error of 0.166 (by
`make bench-cache`), or what a calibration of the teacher at hand has measured. a = 1/4 is an
assumption, under which the bytes at one step grow with d^0.85; a gradient error is taken as
proportional to the step. So the bytes of a teacher unlike the anchor's are an extrapolation:
measure them.

Axes: R sketch dimension.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

_DECAY = 0.25
_LEAST_SCALE, _LEAST_SHARE = 0.2, 2 / 3  # as the calibration keeps dimensions (targets.calibrate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """One measured sketch: the teacher's hidden size, step, bytes a position, gradient error."""

    hidden_size: int
    step: float
    num_bytes: float
    grad_error: float


SMOL = Anchor(hidden_size=576, step=0.1, num_bytes=79.4, grad_error=0.166)


@dataclass(frozen=True, slots=True, kw_only=True)
class SketchEstimate:
    """What a sketch would cost: coded bytes a position, and dimensions."""

    num_bytes: float
    rank: int


def estimate_sketch(
    hidden_size: int, *, asks: str, amount: float, rank: int | None, anchor: Anchor = SMOL
) -> SketchEstimate:
    """The estimate for what a recipe asks: a step, a gradient error, or bytes (met as asked)."""
    scale = _leading_scale(anchor)
    if asks == "bytes":
        step = _solved(lambda step: -_bytes_at(hidden_size, scale / step), -amount)
    else:
        step = amount if asks == "step" else anchor.step * amount / anchor.grad_error
    told = int((_scales(hidden_size) * scale / step >= _LEAST_SCALE).sum())
    kept = min(max(told, round(_LEAST_SHARE * hidden_size)), hidden_size)
    kept = kept if rank is None else min(rank, hidden_size)
    num_bytes = amount if asks == "bytes" else _bytes_at(hidden_size, scale / step, kept)
    return SketchEstimate(num_bytes=num_bytes, rank=kept)


def _scales(hidden_size: int) -> NDArray[np.float64]:
    """Root mean squares of the coefficients, the first one's being 1."""
    return np.arange(1, hidden_size + 1, dtype=np.float64) ** np.float64(-_DECAY / 2)


def _bytes_at(hidden_size: int, scale: float, rank: int | None = None) -> float:
    """Bytes a row where the first coefficient's root mean square is `scale` steps."""
    points, bits = _entropies()
    rms_R = scale * _scales(hidden_size)[:rank]
    return float(np.interp(np.log(rms_R), points, bits).sum()) / 8


def _leading_scale(anchor: Anchor) -> float:
    """sqrt(c): what makes the model go through the anchor."""
    scale = _solved(lambda scale: _bytes_at(anchor.hidden_size, scale), anchor.num_bytes)
    return scale * anchor.step


def _solved(rising: Callable[[float], float], wanted: float) -> float:
    low, high = 1e-6, 1e6
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return math.sqrt(low * high)


@cache
def _entropies() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logarithms of standard deviations, and the bits of a rounded Gaussian at each."""
    deviations = np.geomspace(0.02, 1e6, 256)
    return np.log(deviations), np.array([_rounded_bits(float(d)) for d in deviations])


def _rounded_bits(deviation: float) -> float:
    if deviation > 8:  # where rounding only shifts the differential entropy
        return 0.5 * math.log2(2 * math.pi * math.e * deviation**2)
    edges = np.arange(0.5, 10 * deviation + 2) / (deviation * math.sqrt(2))
    inside = np.array([math.erf(edge) for edge in edges.tolist()])
    share = np.concatenate([inside[:1], np.repeat(np.diff(inside) / 2, 2)])
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())
