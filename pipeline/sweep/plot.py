"""Learning curves of all runs: cross-entropy, and what tells the runs apart."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray

from pipeline.sweep.result import RunResult
from pipeline.sweep.table import group_label, held_out, seed_groups
from pipeline.train.standing import HELD_OUT_NLL

_COLORS = (  # Okabe and Ito's, told apart by all eyes; the yellow one is too light for a line
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#444444",
)
_LINES = ("-", "--", ":", "-.")
_MASKED_NLL = "masked_nll"
_WINDOWS = 20  # of a smoothed curve
_MANY = 50  # points of a curve whose beginning may be cut off
_LEGEND_WIDTH = 115  # letters that fit below the panels


def draw_plot(results: Sequence[RunResult], path: Path) -> None:
    """A PNG of the learning curves."""
    curves_figure(results).savefig(path, dpi=130, format="png")


def curves_figure(results: Sequence[RunResult]) -> Figure:
    """A color and line a setting; its seeds are faint lines around their mean.

    Training losses are means over a twentieth of the run. Settings stand in the table's order: best
    held-out bound first.
    """
    groups = seed_groups(result for result in results if len(result.curve))
    groups.sort(key=lambda group: min(map(_rank, group)))
    labels = [group_label(group).replace(",", ", ") for group in groups]
    columns = max(1, min(4, _LEGEND_WIDTH // (8 + max(map(len, labels), default=1))))
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(11, 4.6 + 0.21 * rows), layout="constrained")
    panels = _panels(groups)
    axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for axis, (column, label) in zip(axes, panels, strict=True):
        for number, group in enumerate(groups):
            _draw(axis, group, column, number, labels[number])
        _finish(axis, label)
    handles, texts = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, texts, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
        )
    return figure


def _rank(result: RunResult) -> float:
    bound = held_out(result)
    return float("inf") if bound is None else bound


def _panels(groups: Sequence[Sequence[RunResult]]) -> list[tuple[str, str]]:
    """Column and title: what all runs log, and held-out likelihood or the one term in common."""
    results = [result for group in groups for result in group]
    logged = {name for result in results for name in result.curve.columns}
    panels = [(_MASKED_NLL, "cross-entropy on training views (weighted by 1 / t), nats")]
    if HELD_OUT_NLL in logged:
        return [*panels, (HELD_OUT_NLL, "held-out bound, nats a token")]
    terms = {result.run.recipe.objective.type for result in results} - {_MASKED_NLL}
    if len(terms) == 1 and terms <= logged:
        panels += [(term, f"{term} on training views") for term in terms]
    return panels


def _draw(axes: Axes, group: Sequence[RunResult], column: str, number: int, label: str) -> None:
    color = _COLORS[number % len(_COLORS)]
    line = _LINES[number // len(_COLORS) % len(_LINES)]
    is_measured = column == HELD_OUT_NLL  # rare, and on the same masks: nothing to smooth
    curves = [_points(result.curve, column) for result in group if column in result.curve.columns]
    curves = [curve if is_measured else _smooth(curve) for curve in curves if len(curve)]
    if not curves:
        return
    if len(curves) > 1:
        for curve in curves:
            axes.plot(*_xy(curve), color=color, linestyle=line, linewidth=0.8, alpha=0.35)
    mean = pl.concat(curves).group_by("step").agg(pl.mean("value"), pl.len()).sort("step")
    mean = mean.filter(pl.col("len") == len(curves))  # where every seed has come to
    marker = "o" if is_measured else None
    axes.plot(
        *_xy(mean),
        color=color,
        linestyle=line,
        linewidth=1.8,
        marker=marker,
        markersize=3,
        label=label,
    )


def _points(curve: pl.DataFrame, column: str) -> pl.DataFrame:
    return curve.select(pl.col("step").cast(pl.Float64), value=column).drop_nulls()


def _smooth(points: pl.DataFrame) -> pl.DataFrame:
    """Mean of the entries around each."""
    window = max(1, len(points) // _WINDOWS)
    mean = pl.col("value").rolling_mean(window, min_samples=1, center=True)
    return points.with_columns(value=mean)


def _xy(
    points: pl.DataFrame,
) -> tuple[Float[ndarray, " P"], Float[ndarray, " P"]]:
    return points["step"].to_numpy(), points["value"].to_numpy()


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("optimizer step")
    axes.grid(alpha=0.25)
    low, high = _middle(axes)
    if low < high:
        axes.set_ylim(low, high)


def _middle(axes: Axes) -> tuple[float, float]:
    """Where the lines are, without the few highest values of a run's beginning."""
    values = [np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()]
    if not values:
        return 0.0, 0.0
    share = [1.0 if len(value) < _MANY else 0.97 for value in values]
    high = max(float(np.quantile(v, part)) for v, part in zip(values, share, strict=True))
    low = min(float(value.min()) for value in values)
    margin = 0.05 * (high - low)
    return low - margin, high + margin
