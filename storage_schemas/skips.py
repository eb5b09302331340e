"""One record that a run could not use: counted, reported, and never fatal."""

from dataclasses import dataclass

NOT_FINITE = "teacher_not_finite"  # the one reason that depends on the view, hence on the shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """Why one record was passed over.

    `reason` is a short stable word for counting; `record_id` is empty where none could be read.
    """

    where: str
    record_id: str
    reason: str
    message: str
