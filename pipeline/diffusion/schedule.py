"""Diffusion times, spread over the views of a record (linear schedule, alpha(t) = 1 - t)."""

import math

from pipeline.diffusion.rng import uniforms_for

_GOLDEN = 0.6180339887  # the fractional part of the golden ratio: any prefix is spread evenly
_BELOW_ONE = math.nextafter(1.0, 0.0)


def diffusion_time(seed: int, record_id: str, view: int, *, eps: float) -> float:
    """Masking probability t_v = eps + (1 - eps) frac(u + 0.618... v), in [eps, 1).

    u is uniform and fixed for the record, so t_v is uniform for each view by itself, the times of
    one record's views are stratified, and more views extend a record's times without changing them.
    """
    (start,) = uniforms_for(seed, record_id, 0, "time", 1).tolist()
    time = eps + (1.0 - eps) * ((start + _GOLDEN * view) % 1.0)
    return min(time, _BELOW_ONE)  # the sum may round up to 1
