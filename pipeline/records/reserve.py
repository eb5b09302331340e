"""Records that are set apart for the calibration of the sketch, and are never cached."""

from typing import Literal

from pipeline.diffusion.rng import uniforms_for

Reserve = Literal["calibration", "search"]
SEARCH_SHARE = 1 / 8
REASON = "reserved_for_calibration"


def reserved_for(record_id: str, *, seed: int, count: int, num_records: int) -> Reserve | None:
    """What a record is reserved for; `count` of `num_records` are, on average, an eighth to search.

    A record is chosen by its id and the noise's seed alone, from all over the data.
    """
    if not count:
        return None
    share = count / num_records
    uniform = float(uniforms_for(seed, record_id, 0, "reserve", 1)[0])
    if uniform < SEARCH_SHARE * share:
        return "search"
    return "calibration" if uniform < share else None
