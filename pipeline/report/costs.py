"""What the runs cost: stage 1 once a cache, stage 2 for each student."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import polars as pl

from pipeline.cache.inspect import scan_chunks, scan_examples
from pipeline.cache.reader import CacheReader
from pipeline.report.contents import CacheCost, Setting, TrainCost
from pipeline.report.runs import FinishedRun
from pipeline.report.settings import Members
from pipeline.report.views import teacher_name
from storage_schemas.errors import CacheMissingError


def train_costs(settings: Sequence[Setting], members: Members) -> tuple[TrainCost, ...]:
    """Means over a setting's runs; rates are medians over a run's log, whose start is slow."""
    found: list[TrainCost] = []
    for setting in settings:
        runs = members[setting.key]
        found.append(
            TrainCost(
                setting=setting.key,
                device=runs[0].recipe.train.device,
                seconds=_mean(run.seconds for run in runs),
                tokens_per_s=_mean(_median(run.curve, "tokens_per_s") for run in runs),
                wait_share=_mean(_median(run.curve, "wait_share") for run in runs),
            )
        )
    return tuple(found)


def cache_costs(
    addresses: Iterable[str], seconds: Mapping[str, float]
) -> tuple[tuple[CacheCost, ...], tuple[str, ...]]:
    """One for each cache that is still there; and a note about each that is not."""
    costs: list[CacheCost] = []
    notes: list[str] = []
    for address in addresses:
        try:
            costs.append(_cache_cost(address, seconds.get(address)))
        except CacheMissingError:
            notes.append(f"The cache at {address} is no longer there, so its size is not known.")
    return tuple(costs), tuple(notes)


def trained_on(runs: Iterable[FinishedRun]) -> tuple[str, ...]:
    """The caches of these runs, each once."""
    return tuple(dict.fromkeys(run.cache for run in runs))


def _cache_cost(address: str, seconds: float | None) -> CacheCost:
    reader = CacheReader.open(address)
    kept, counts = reader.identity.kept, [entry.counts for entry in reader.entries]
    shared = [*reader.manifest.vocabularies, *reader.manifest.basis]
    # a pass reads an example whole; a view has the passes that answered any of its chunks
    passes = scan_chunks(address).select("shard", "example", "view", "pass").unique()
    lengths = scan_examples(address).select(
        "shard", "example", num_tokens=pl.col("teacher_ids").list.len()
    )
    read = passes.join(lengths, on=["shard", "example"]).select(pl.col("num_tokens").sum())
    return CacheCost(
        digest=reader.identity.digest,
        address=address,
        teacher=teacher_name(address, reader.identity.teacher.family),
        num_views=sum(count.num_views for count in counts),
        item="position" if kept.has_tokens else "chunk",
        num_items=sum(
            count.num_token_rows if kept.has_tokens else count.num_chunks for count in counts
        ),
        num_bytes=sum(entry.num_bytes for entry in reader.entries)
        + sum(file.size for file in shared),
        num_teacher_tokens=int(read.collect().item()),
        seconds=seconds,
    )


def _median(curve: pl.DataFrame, column: str) -> float:
    """NaN where it was never logged."""
    if column not in curve.columns:
        return float("nan")
    found = curve[column].drop_nulls().to_numpy()
    return float("nan") if len(found) == 0 else float(np.median(found))


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
