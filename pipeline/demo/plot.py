"""The demo's picture: what training gained, and what of it the teacher added."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.demo.result import DemoResult

_STYLES = {
    "cross-control": ("#9a9a9a", "--", "s", "A: CE only"),
    "shared-control": ("#9a9a9a", ":", "D", "B: CE only"),
    "cross": ("#c2571a", "-", "o", "A: TIDE-Cross"),
    "shared": ("#1f6fb4", "-", "^", "B: TIDE-Shared"),
}
_NUDGE = 0.008  # error bars of two curves side by side


def draw_plot(result: DemoResult, path: Path) -> None:
    """A PNG: on the left each student minus the start, on the right minus its own control."""
    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, key in enumerate(_STYLES):
        _draw(left, result, key, "start", _NUDGE * (number - 1.5))
    _finish(left, "What more training gains", "nats a masked token, minus the start")
    for number, key in enumerate(("cross", "shared")):
        _draw(right, result, key, f"{key}-control", _NUDGE * (2 * number - 1))
    _finish(right, "What the teacher adds to it", "nats a masked token, minus CE only")
    figure.suptitle("Negative log-likelihood of held-out masked text: below 0 is better")
    figure.savefig(path, dpi=150, metadata={"Software": None})


def _draw(axes: Axes, result: DemoResult, key: str, minus: str, nudge: float) -> None:
    difference = result.difference(key, minus)
    color, line, marker, label = _STYLES[key]
    axes.errorbar(
        np.array(result.rows[0].scores.content.levels) + nudge,
        difference.nll_L,
        yerr=difference.nll_error_L,
        color=color,
        linestyle=line,
        marker=marker,
        markersize=5,
        capsize=3,
        label=label,
    )


def _finish(axes: Axes, title: str, y_label: str) -> None:
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_title(title)
    axes.set_xlabel("share of the response that is masked, t")
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
