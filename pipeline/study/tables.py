"""The answers as tables in Markdown, put between markers of a page that people wrote."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from pipeline.evaluate.statistics import Interval
from pipeline.study.answers import Gain, gains, mean_bound, views_to_match
from pipeline.study.arms import BATCH


def fill_page(page: str, tables: dict[str, str]) -> str:
    """The page, with each table between its markers `<!-- table NAME -->` and `<!-- end -->`."""

    def filled(match: re.Match[str]) -> str:
        return f"<!-- table {match[1]} -->\n{tables[match[1]]}\n<!-- end -->"

    return re.sub(r"<!-- table ([\w-]+) -->\n.*?<!-- end -->", filled, page, flags=re.DOTALL)


def all_tables(runs: pl.DataFrame, records: pl.DataFrame, study: dict[str, Any]) -> dict[str, str]:
    """Every table of the page, by name."""
    found = {"worth": worth_table(study)} | {
        f"objectives-{letter}": objectives_table(runs, records, f"objectives {letter}")
        for letter in "AB"
    }
    found |= {f"tuning-{letter}": tuning_table(runs, f"tuning {letter}") for letter in "AB"}
    found["readme"] = summary_table(runs, records)
    found["finished"] = tuning_table(runs, "finished start")
    found |= {f"steps-{letter}": steps_table(runs, f"steps {letter}") for letter in "AB"}
    found |= {f"views-{letter}": views_table(runs, records, f"views {letter}") for letter in "AB"}
    found["targets"] = targets_table(runs, records)
    found["knobs"] = "\n\n".join(
        f"**{name}**\n\n{knob_table(runs, records, name)}"
        for name in runs["question"].unique(maintain_order=True)
        if name.startswith("knob")
    )
    return found


def worth_table(study: dict[str, Any]) -> str:
    """Likelihood of start and teachers: for a byte, and for a token where that compares."""
    worth, bounds, bodies = study["worth"], study["bounds"], study["bodies"]
    lines = [
        "| model | nats a byte, test | validation | bound, nats a token, test | validation | "
        "parses, % | token match, % |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in worth["test"]:
        cells = [f"{worth[split][name]['nats_per_byte']:.3f}" for split in ("test", "validation")]
        if name in bodies:
            cells += [f"{bounds[split][name]:.4f}" for split in ("test", "validation")]
            cells += [f"{100 * bodies[name][what]:.1f}" for what in ("parses", "matches")]
        else:
            cells += [""] * 4
        lines.append(f"| {name} | {' | '.join(cells)} |")
    size = next(iter(worth["test"].values()))["bytes"]
    note = f"Bytes: of {size:,} that every model reads whole. The rest: as students are scored."
    return "\n".join([*lines, "", note])


def objectives_table(runs: pl.DataFrame, records: pl.DataFrame, question: str) -> str:
    """Every objective against the control: likelihood, accuracy, and what is written."""
    rows = runs.filter(pl.col("question") == question)
    control = rows.filter(pl.col("is_control"))["label"][0]
    by_label = {gain.label: gain for gain in gains(runs, records, question)}
    lines = [
        "| objective | settings, rate | bound, nats a token | gain over seeds (p) | over files | "
        "accuracy, % | gain, points | parses, % | token match, % |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for label in rows["label"].unique(maintain_order=True):
        mine = rows.filter(pl.col("label") == label)
        gain = by_label.get(label)
        lines.append(
            f"| {label} | {_settings(mine)} | {mean_bound(runs, question, label):.4f} | "
            f"{'(control)' if gain is None else _with_p(gain.over_seeds)} | "
            f"{'' if gain is None else _interval(gain.over_files)} | "
            f"{100 * _mean(mine, 'accuracy'):.2f} | "
            f"{'' if gain is None else _interval(gain.accuracy, 100.0, 2)} | "
            f"{100 * _mean(mine, 'parses'):.1f} | {100 * _mean(mine, 'matches'):.1f} |"
        )
    num = rows.filter(pl.col("label") == control).height
    return "\n".join([*lines, "", f"{num} seeds; brackets are 95 % intervals."])


def summary_table(runs: pl.DataFrame, records: pl.DataFrame) -> str:
    """The README's table: each objective's gain, the largest first."""
    lines = [
        "| pipeline | objective | gain | 95 %, over seeds | 95 %, over test files |",
        "| --- | --- | --- | --- | --- |",
    ]
    for letter in "BA":
        found = gains(runs, records, f"objectives {letter}")
        for gain in sorted(found, key=lambda gain: -gain.over_seeds.mean):
            seeds, texts = (
                f"{i.low:+.3f} to {i.high:+.3f}" for i in (gain.over_seeds, gain.over_files)
            )
            lines.append(
                f"| {letter} | {gain.label} | {gain.over_seeds.mean:+.3f} | {seeds} | {texts} |"
            )
    return "\n".join(lines)


def tuning_table(runs: pl.DataFrame, question: str) -> str:
    """Validation bounds of all that was tried: a row a setting, a column a learning rate."""
    rows = runs.filter(pl.col("question") == question).with_columns(
        what=pl.col("label").str.split(", ").list.first()
    )
    rates = sorted(rows["learning_rate"].unique())
    lines = [
        "| tried | " + " | ".join(f"{rate:g}" for rate in rates) + " |",
        "| --- |" + " --- |" * len(rates),
    ]
    for what in rows["what"].unique(maintain_order=True):
        cells = [
            _mean(rows.filter((pl.col("what") == what) & (pl.col("learning_rate") == rate)))
            for rate in rates
        ]
        best = np.nanmin(cells)
        shown = [f"**{cell:.4f}**" if cell == best else f"{cell:.4f}" for cell in cells]
        lines.append(f"| {what} | " + " | ".join(shown) + " |")
    seeds = rows["seed"].n_unique()
    return "\n".join([*lines, "", f"Mean over {seeds} seed{'s' if seeds > 1 else ''}."])


def steps_table(runs: pl.DataFrame, question: str) -> str:
    """The control and the best objective after fewer and more steps, on validation files."""
    rows = runs.filter(pl.col("question") == question)
    lines = ["| steps | CE only | best objective | gain |", "| --- | --- | --- | --- |"]
    for steps in sorted(rows["steps"].unique()):
        mine = rows.filter(pl.col("steps") == steps)
        plain, best = (
            _mean(mine.filter(pl.col("label").str.starts_with(name))) for name in ("CE", "best")
        )
        lines.append(f"| {steps} | {plain:.4f} | {best:.4f} | {plain - best:+.4f} |")
    return "\n".join(lines)


def views_table(runs: pl.DataFrame, records: pl.DataFrame, question: str) -> str:
    """How far each number of views is from a live teacher."""
    found, ahead = views_to_match(runs, records, question)
    rows = runs.filter(pl.col("question") == question)
    lines = [
        "| views a record | times each is read | bound | above the live teacher, over seeds (p) | "
        "over files |",
        "| --- | --- | --- | --- | --- |",
    ]
    for views, gain in ahead.items():
        mine = rows.filter(pl.col("label") == f"views {views}")
        reads = mine["steps"][0] * BATCH / (mine["records"][0] * views)
        mark = " (within noise from here on)" if views == found else ""
        lines.append(
            f"| {views}{mark} | {reads:g} | {_mean(mine):.4f} | {_with_p(gain.over_seeds)} | "
            f"{_interval(gain.over_files)} |"
        )
    lines.append(f"| live | 1 | {mean_bound(runs, question, 'live'):.4f} | | |")
    seeds = rows["seed"].n_unique()
    return "\n".join([*lines, "", f"{seeds} seeds."])


def targets_table(runs: pl.DataFrame, records: pl.DataFrame) -> str:
    """What is kept of a row, its bytes, and what that does to the student."""
    question = "targets"
    lines = [
        "| kept of a row | bytes a position | bound | gain over exact rows, over seeds (p) | "
        "over files |",
        "| --- | --- | --- | --- | --- |",
    ]
    by_label = {gain.label: gain for gain in gains(runs, records, question)}
    rows = runs.filter(pl.col("question") == question)
    for label in rows["label"].unique(maintain_order=True):
        mine = rows.filter(pl.col("label") == label)
        size = float((mine["cache_bytes"] / mine["cache_token_rows"]).mean() or 0)  # pyright: ignore[reportArgumentType]
        gain = by_label.get(label)
        lines.append(
            f"| {label} | {size:,.0f} | {_mean(mine):.4f} | "
            f"{'' if gain is None else _with_p(gain.over_seeds)} | "
            f"{'' if gain is None else _interval(gain.over_files)} |"
        )
    return "\n".join(lines)


def knob_table(runs: pl.DataFrame, records: pl.DataFrame, question: str) -> str:
    """One knob: each value against the recipes' own."""
    lines = ["| value | bound | gain over the first, over seeds (p) | over files |"]
    lines.append("| --- | --- | --- | --- |")
    by_label = {gain.label: gain for gain in gains(runs, records, question)}
    for label in runs.filter(pl.col("question") == question)["label"].unique(maintain_order=True):
        gain = by_label.get(label)
        lines.append(
            f"| {label} | {mean_bound(runs, question, label):.4f} | "
            f"{'' if gain is None else _with_p(gain.over_seeds)} | "
            f"{'' if gain is None else _interval(gain.over_files)} |"
        )
    return "\n".join(lines)


def best_of(found: Sequence[Gain]) -> Gain:
    """The one that gains most, on average over seeds."""
    return max(found, key=lambda gain: gain.over_seeds.mean)


def _settings(rows: pl.DataFrame) -> str:
    settings = rows["settings"][0].replace("temperature=", "T = ").replace(".0", "")
    settings = settings.replace("weight=", "weight ")
    return ", ".join(filter(None, [settings, f"{rows['learning_rate'][0]:g}"]))


def _mean(rows: pl.DataFrame, column: str = "bound") -> float:
    return float(np.mean(rows[column].to_list())) if column in rows.columns else float("nan")


def _interval(interval: Interval, scale: float = 1.0, digits: int = 4) -> str:
    low, mean, high = (scale * value for value in (interval.low, interval.mean, interval.high))
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _with_p(interval: Interval) -> str:
    p = "< 0.001" if interval.p_value < 0.001 else f"{interval.p_value:.3f}"
    return f"{_interval(interval)} ({p})"
