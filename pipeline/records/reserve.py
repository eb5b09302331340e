"""Records that are set apart for the calibration of the sketch, and are never cached."""

from pipeline.diffusion.rng import uniforms_for

REASON = "reserved_for_calibration"


def is_reserved(record_id: str, *, seed: int, count: int, num_records: int) -> bool:
    """Whether a record is among the `count` of `num_records` (on average) that are reserved.

    It is chosen by its id and the noise's seed alone, from all over the data.
    """
    if not count:
        return False
    return float(uniforms_for(seed, record_id, 0, "reserve", 1)[0]) < count / num_records
