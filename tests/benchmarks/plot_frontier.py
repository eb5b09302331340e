"""The frontier as a picture: what a row costs, and how wrong it is, on both texts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

_COLORS = {
    "shaped sketch": "#0b6e4f",
    "plain rounding": "#7fb069",
    "top-k, even tail": "#c1121f",
    "top-k, mean logit tail": "#e07a5f",
    "polynomial of the top 128": "#8d6a9f",
    "random-sampling KD": "#457b9d",
}
_PANELS = (
    ("kl", "T=2", "KL(true || kept) at T = 2, nats"),
    ("kl", "T=1", "KL(true || kept) at T = 1, nats"),
    ("grad_error", "T=2 lambda=0.3", "error of TIDAL's gradient, T = 2, λ = 0.3"),
)


def draw_frontier(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One panel a measure; filled: Python source, open: prose. Bars: two standard errors."""
    figure, axes = plt.subplots(1, len(_PANELS), figsize=(13, 4.6), constrained_layout=True)
    for axis, (field, key, label) in zip(axes, _PANELS, strict=True):
        for family, color in _COLORS.items():
            for text, fill, style in (("code", color, "-"), ("prose", "white", ":")):
                points = sorted(
                    (row["num_bytes"], *row[field][key])
                    for row in rows
                    if row["family"] == family and row["text"] == text
                )
                if not points:
                    continue
                size, mean, error = zip(*points, strict=True)
                axis.errorbar(
                    size,
                    mean,
                    [2 * one for one in error],
                    color=color,
                    markerfacecolor=fill,
                    linestyle=style,
                    marker="o",
                    markersize=4.5,
                    linewidth=1.2,
                    capsize=2,
                    label=family if text == "code" else None,
                )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks([25, 50, 100, 200, 400], ["25", "50", "100", "200", "400"])
        axis.minorticks_off()
        axis.set_xlabel("bytes a position (rows and scalars)")
        axis.set_title(label, fontsize=10.5)
        axis.grid(alpha=0.25)
    axes[0].legend(fontsize=8, frameon=False)
    figure.suptitle(
        "Keeping a teacher's distribution: SmolLM2-135M, V = 49,152 "
        "(filled: Python source; open: prose)",
        fontsize=11,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
