"""From the tables to answers: gains with their intervals, over seeds and over files.

Axes: R held-out record, G file.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from pipeline.evaluate.statistics import Interval, bootstrap_interval, paired_interval
from pipeline.study.results import bounds, bounds_of_records

LIVE, _VIEWS = "live", "views "
"""Labels of the questions about views."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """How many nats a token a label is better than its control; above 0 is better.

    over_seeds: Student's t over the paired seeds. over_files: the same mean, with a bootstrap over
    the files that the held-out functions stand in.
    """

    label: str
    over_seeds: Interval
    over_files: Interval
    accuracy: Interval


def gains(runs: pl.DataFrame, records: pl.DataFrame, question: str) -> list[Gain]:
    """Of every label but the control's, in the table's order; over the seeds that both have."""
    rows = runs.filter(pl.col("question") == question)
    control = rows.filter(pl.col("is_control"))["label"][0]
    labels = [x for x in rows["label"].unique(maintain_order=True).to_list() if x != control]
    return [gain(runs, records, question, label, control) for label in labels]


def gain(
    runs: pl.DataFrame, records: pl.DataFrame, question: str, label: str, control: str
) -> Gain:
    """One label against another of the same question, seed by seed."""
    rows = runs.filter(pl.col("question") == question)
    both = _with_seeds(rows, label).join(_with_seeds(rows, control), on="seed").sort("seed")
    seeds = both["seed"].to_list()
    ours, theirs = bounds(rows, question, label), bounds(rows, question, control)
    paired = rows.filter(pl.col("seed").is_in(seeds))
    better_R = (
        bounds_of_records(paired, question, control) - bounds_of_records(paired, question, label)
    ).mean(0)
    split = rows["split"][0]
    of_split = records.filter(pl.col("split") == split)
    by_file = (
        of_split.with_columns(better=pl.Series(better_R))
        .group_by("file", maintain_order=True)
        .agg(pl.col("better").sum(), pl.col("tokens").sum().cast(pl.Float64))
    )
    return Gain(
        label=label,
        over_seeds=paired_interval([theirs[s] for s in seeds], [ours[s] for s in seeds]),
        over_files=bootstrap_interval(by_file["better"].to_numpy(), by_file["tokens"].to_numpy()),
        accuracy=paired_interval(both["accuracy"].to_list(), both["accuracy_right"].to_list()),
    )


def views_to_match(
    runs: pl.DataFrame, records: pl.DataFrame, question: str
) -> tuple[int | None, dict[int, Gain]]:
    """The fewest views whose student is within noise of one with a live teacher; the live gains.

    From the number that is named on, the live teacher's gain has intervals, over seeds and over
    files, that both reach down to zero. Where one seed alone is there, nothing is named.
    """
    rows = runs.filter(pl.col("question") == question)
    numbers = sorted(
        int(label.removeprefix(_VIEWS))
        for label in rows["label"].unique().to_list()
        if label.startswith(_VIEWS)
    )
    ahead = {n: gain(runs, records, question, LIVE, f"{_VIEWS}{n}") for n in numbers}
    found = None
    for views in reversed(numbers):
        seeds, texts = ahead[views].over_seeds, ahead[views].over_files
        if not (seeds.low <= 0 and texts.low <= 0):  # nor where one seed has no interval
            break
        found = views
    return found, ahead


def _with_seeds(rows: pl.DataFrame, label: str) -> pl.DataFrame:
    return rows.filter(pl.col("label") == label).select("seed", "accuracy")


def mean_bound(runs: pl.DataFrame, question: str, label: str) -> float:
    """Over seeds."""
    return float(np.mean(list(bounds(runs, question, label).values())))
