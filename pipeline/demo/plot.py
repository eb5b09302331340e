"""The demo's picture: what further training changes, and what of that the teacher adds."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.demo.result import DemoResult

_ORANGE, _BLUE = "#c2571a", "#1f6fb4"
_STYLES = {  # color, line, marker, its face, label
    "cross-control": (_ORANGE, "--", "o", "white", "A: CE only"),
    "cross": (_ORANGE, "-", "o", _ORANGE, "A: TIDE-Cross"),
    "shared-control": (_BLUE, "--", "s", "white", "B: CE only"),
    "shared": (_BLUE, "-", "s", _BLUE, "B: TIDE-Shared"),
}
_NUDGE = 0.01  # error bars side by side


def draw_plot(result: DemoResult, path: Path) -> None:
    """A PNG: on the left each student minus the start, on the right minus its own control."""
    figure = Figure(figsize=(10.5, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, key in enumerate(_STYLES):
        _draw(left, result, key, "start", _NUDGE * (number - 1.5))
    _finish(left, result, "What further training changes", "minus the start")
    for number, key in enumerate(("cross", "shared")):
        _draw(right, result, key, f"{key}-control", _NUDGE * (number - 0.5))
    _finish(right, result, "What of that the teacher adds", "minus CE only")
    num_records = len(result.rows[0].scores.record_ids)
    figure.suptitle(
        f"Negative log-likelihood of masked tokens in {num_records} held-out functions: "
        "below 0 is better.\nBars: one standard error of the paired difference, over functions."
    )
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)


def _draw(axes: Axes, result: DemoResult, key: str, minus: str, nudge: float) -> None:
    difference = result.difference(key, minus)
    color, line, marker, face, label = _STYLES[key]
    axes.errorbar(
        np.array(result.rows[0].scores.content.levels) + nudge,
        difference.nll_L,
        yerr=difference.nll_error_L,
        color=color,
        linestyle=line,
        marker=marker,
        markersize=6,
        markerfacecolor=face,
        capsize=3,
        label=label,
    )


def _finish(axes: Axes, result: DemoResult, title: str, minus: str) -> None:
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_title(title)
    axes.set_xticks(result.rows[0].scores.content.levels)
    axes.set_xlabel("share of the response that is masked, t")
    axes.set_ylabel(f"nats a masked token, {minus}")
    axes.grid(alpha=0.25)
