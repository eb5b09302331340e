"""What a stage reports when it ends: ids and counts, as JSON can hold them."""

from typing import TYPE_CHECKING, Any

from pipeline.storage.address import resolved_address

if TYPE_CHECKING:
    from pipeline.student_train import TrainSummary
    from pipeline.teacher_cache import CacheSummary


def cache_result(summary: "CacheSummary") -> dict[str, Any]:
    """Stage 1's: what was made, and what the cache holds now."""
    counts = summary.counts
    return {
        "address": resolved_address(summary.address),
        "digest": summary.digest,
        "shards_made": summary.shards_made,
        "shards_found": summary.shards_found,
        "views": counts.num_views,
        "chunks": counts.num_chunks,
        "seconds": round(summary.seconds, 3),
        "is_complete": summary.is_complete,
    }


def train_result(summary: "TrainSummary") -> dict[str, Any]:
    """Stage 2's: where the student is, and its last metrics."""
    return {
        "output": resolved_address(summary.output),
        "steps": summary.steps,
        "seconds": round(summary.seconds, 3),
        "is_complete": summary.is_complete,
        **summary.metrics,
    }
