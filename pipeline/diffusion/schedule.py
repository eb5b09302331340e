"""Diffusion times, spread over the views of a record (linear schedule, alpha(t) = 1 - t)."""

import math
from typing import Literal

from pipeline.diffusion.rng import uniforms_for

_GOLDEN = 0.6180339887  # the fractional part of the golden ratio: any prefix is spread evenly
_BELOW_ONE = math.nextafter(1.0, 0.0)

Times = Literal["stratified", "independent"]
"""How the times of one record's views hang together."""


def diffusion_time(
    seed: int, record_id: str, view: int, *, eps: float, times: Times = "stratified"
) -> float:
    """Masking probability t_v = eps + (1 - eps) frac(u + 0.618... v), in [eps, 1).

    u is uniform and fixed for the record, so t_v is uniform for each view by itself, the times of
    one record's views are stratified, and more views extend a record's times without changing them.
    Independent times are a uniform draw of each view's own.
    """
    if times == "independent":
        (share,) = uniforms_for(seed, record_id, view, "time", 1).tolist()
    else:
        (start,) = uniforms_for(seed, record_id, 0, "time", 1).tolist()
        share = (start + _GOLDEN * view) % 1.0
    time = eps + (1.0 - eps) * share
    return min(time, _BELOW_ONE)  # the sum may round up to 1
