"""What a cache holds, summed over its shards."""

from collections import Counter
from collections.abc import Iterable

from storage_schemas.manifest import Counts, LedgerEntry
from storage_schemas.skips import NOT_FINITE


def total_counts(entries: Iterable[LedgerEntry]) -> Counts:
    """The counts of a whole cache; a part's records count once, however many shards it has.

    Records that the teacher had no finite answer for count once a shard that they are missing in.
    """
    skips: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    seen: set[int] = set()
    for entry in entries:
        counts = entry.counts.model_dump(exclude={"skips"})
        if entry.part in seen:
            counts |= {"num_records": 0, "num_examples": 0}
            not_finite = entry.counts.skips.get(NOT_FINITE, 0)
            skips.update({NOT_FINITE: not_finite} if not_finite else {})
        else:
            skips.update(entry.counts.skips)
        seen.add(entry.part)
        totals.update(counts)
    return Counts(
        **{name: totals[name] for name in Counts.model_fields if name != "skips"}, skips=skips
    )
