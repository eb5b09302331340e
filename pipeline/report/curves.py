"""Learning curves of settings: the mean of their seeds, and the band between lowest and highest."""

from collections.abc import Sequence

import polars as pl

from pipeline.report.contents import Curve, Panel, Setting
from pipeline.report.runs import FinishedRun
from pipeline.report.settings import Members
from pipeline.train.standing import HELD_OUT_NLL

_MASKED_NLL = "masked_nll"
_WINDOWS = 20  # of a smoothed curve
_POINTS = 200  # of a curve at most


def panels(settings: Sequence[Setting], members: Members) -> tuple[Panel, ...]:
    """Held-out bound where it was logged, cross-entropy, and each distillation term.

    Training losses are means over a twentieth of the run, and are what training sees: of different
    objectives, and of different caches, they do not compare.
    """
    terms = [one.objective for one in settings if one.objective != _MASKED_NLL]
    wanted = {
        HELD_OUT_NLL: "held-out bound, nats a token",
        _MASKED_NLL: "cross-entropy on training views, nats",
        **{term: f"{term} on training views" for term in terms},
    }
    found: list[Panel] = []
    for column, title in wanted.items():
        curves = [curve for one in settings if (curve := _curve(one.key, members[one.key], column))]
        if curves:
            found.append(Panel(column=column, title=title, curves=tuple(curves)))
    return tuple(found)


def _curve(setting: str, runs: Sequence[FinishedRun], column: str) -> Curve | None:
    logged = [_points(run.curve, column) for run in runs if column in run.curve.columns]
    logged = [points for points in logged if len(points)]
    if not logged:
        return None
    over_seeds = (
        pl.concat(logged)
        .group_by("step")
        .agg(
            pl.mean("value").alias("mean"),
            pl.min("value").alias("low"),
            pl.max("value").alias("high"),
            pl.len().alias("num"),
        )
        .filter(pl.col("num") == len(logged))  # where every seed has come to
        .sort("step")
    )
    over_seeds = over_seeds.gather_every(max(1, -(-len(over_seeds) // _POINTS)))
    if over_seeds.is_empty():
        return None
    return Curve(
        setting=setting,
        **{
            name: tuple(over_seeds[column].to_list())
            for name, column in (
                ("steps", "step"),
                ("mean", "mean"),
                ("low", "low"),
                ("high", "high"),
            )
        },
    )


def _points(curve: pl.DataFrame, column: str) -> pl.DataFrame:
    points = curve.select("step", value=pl.col(column).cast(pl.Float64)).drop_nulls()
    if column == HELD_OUT_NLL:  # rare, and on the same masks: nothing to smooth
        return points
    window = max(1, len(points) // _WINDOWS)
    mean = pl.col("value").rolling_mean(window, min_samples=1, center=True)
    return points.with_columns(value=mean)
