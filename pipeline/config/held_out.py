"""Held-out likelihood while the student trains: on what, how often, and when it ends a run."""

from pipeline.config.base import StrictModel
from pipeline.config.models import Count
from pipeline.config.records import RecordsConfig


class HeldOutConfig(StrictModel):
    """The first `max_records` usable records, masked independently at every noise level.

    They must be none of those that are trained on. Evaluated every `every_steps` optimizer steps;
    after `patience` evaluations without a better one the run ends (None: it never does so early).
    """

    records: RecordsConfig
    max_records: Count = 256
    every_steps: Count = 500
    patience: Count | None = None
