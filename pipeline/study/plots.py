"""The study in one picture: gains of the objectives, views against a live teacher, bytes."""

from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.study.answers import gains, mean_bound, views_to_match

_COLORS = {"A": "#c2571a", "B": "#1f6fb4"}


def draw_study(runs: pl.DataFrame, records: pl.DataFrame, path: Path) -> None:
    """A PNG; a panel whose question is not answered yet stays empty."""
    figure = Figure(figsize=(12, 7.5), layout="constrained")
    asked = set(runs["question"].to_list())
    for column, letter in enumerate("AB"):
        axes = figure.add_subplot(2, 3, column + 1)
        if f"objectives {letter}" in asked:
            _draw_gains(axes, runs, records, letter)
        axes = figure.add_subplot(2, 3, column + 4)
        if f"views {letter}" in asked:
            _draw_views(axes, runs, records, letter)
    if "targets" in asked:
        _draw_targets(figure.add_subplot(2, 3, 3), runs, records)
    if "objectives B" in asked:
        _draw_levels(figure.add_subplot(2, 3, 6), runs)
    figure.savefig(path, dpi=130)


def _draw_gains(axes: Axes, runs: pl.DataFrame, records: pl.DataFrame, letter: str) -> None:
    found = gains(runs, records, f"objectives {letter}")
    y = np.arange(len(found))[::-1]
    for offset, name, marker in ((0.12, "over_seeds", "o"), (-0.12, "over_files", "s")):
        intervals = [getattr(gain, name) for gain in found]
        axes.errorbar(
            [i.mean for i in intervals],
            y + offset,
            xerr=[[i.mean - i.low for i in intervals], [i.high - i.mean for i in intervals]],
            fmt=marker,
            color=_COLORS[letter],
            markerfacecolor=_COLORS[letter] if marker == "o" else "white",
            capsize=3,
            label="seeds (t)" if marker == "o" else "files (bootstrap)",
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(y, [gain.label.replace(" + ", "\n+ ") for gain in found])
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.set_xlabel("nats a token better than CE only")
    axes.set_title(f"Pipeline {letter}: gain over the control")
    axes.legend(frameon=False, fontsize=8, loc="center right")
    axes.grid(axis="x", alpha=0.25)


def _draw_views(axes: Axes, runs: pl.DataFrame, records: pl.DataFrame, letter: str) -> None:
    _, ahead = views_to_match(runs, records, f"views {letter}")
    numbers = list(ahead)
    intervals = [ahead[number].over_seeds for number in numbers]
    axes.errorbar(
        numbers,
        [i.mean for i in intervals],
        yerr=[[i.mean - i.low for i in intervals], [i.high - i.mean for i in intervals]],
        fmt="o-",
        color=_COLORS[letter],
        capsize=3,
    )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.set_xlabel("views a record in the cache")
    axes.set_ylabel("nats a token worse than live")
    axes.set_title(f"Pipeline {letter}: views and a live teacher")
    axes.grid(alpha=0.25)


def _draw_targets(axes: Axes, runs: pl.DataFrame, records: pl.DataFrame) -> None:
    rows = runs.filter(pl.col("question") == "targets")
    for gain in gains(runs, records, "targets"):
        mine = rows.filter(pl.col("label") == gain.label)
        size = float(np.mean((mine["cache_bytes"] / mine["cache_token_rows"]).to_list()))
        loss = gain.over_seeds
        axes.errorbar(
            size,
            -loss.mean,
            yerr=[[loss.high - loss.mean], [loss.mean - loss.low]],
            fmt="o",
            color=_COLORS["B"],
            capsize=3,
        )
        axes.annotate(gain.label, (size, -loss.mean), (6, 4), textcoords="offset points", size=8)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("bytes a position on disk")
    axes.set_ylabel("nats a token worse than exact rows")
    axes.set_title("Pipeline B: what is kept of a row")
    axes.grid(alpha=0.25)


def _draw_levels(axes: Axes, runs: pl.DataFrame) -> None:
    levels = (0.1, 0.3, 0.5, 0.7, 0.9)
    for letter in "AB":
        question = f"objectives {letter}"
        rows = runs.filter(pl.col("question") == question)
        if rows.is_empty():
            continue
        control = rows.filter(pl.col("is_control"))
        labels = rows.filter(~pl.col("is_control"))["label"].unique(maintain_order=True).to_list()
        best = min(labels, key=lambda label: mean_bound(runs, question, label))
        mine = rows.filter(pl.col("label") == best).sort("seed")["nll_L"].to_list()
        better = np.array(control.sort("seed")["nll_L"].to_list()) - np.array(mine)
        axes.errorbar(
            levels,
            better.mean(0),
            yerr=better.std(0, ddof=1) if len(better) > 1 else None,
            fmt="o-",
            color=_COLORS[letter],
            capsize=3,
            label=f"{letter}: {best}",
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("share masked, t")
    axes.set_ylabel("nats a masked token better than CE only")
    axes.set_title("The best objective, by noise")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.25)
