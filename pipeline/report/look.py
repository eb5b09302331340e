"""How pictures look: colors on a light ground and on a dark one, and a size that suits a phone.

A setting has one color in all of them; controls are gray and dashed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.contents import Setting

# Okabe and Ito's, told apart by all eyes; brighter ones of the same hues on a dark ground.
_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b0578d", "#3a93c9", "#b87a00")
_DARK = ("#56b4e9", "#ff8b4d", "#2ec79a", "#e39ac4", "#9bd3f5", "#f0b73a")
_LINES = ("-", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_WIDTH, HEIGHT = 5.2, 3.4  # inches: half a page of a wide screen, all of a phone's
_DPI = 160
_LEGEND_LETTERS = 62  # that fit side by side below a plot


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How settings are drawn on one ground; by their keys."""

    is_dark: bool
    styles: dict[str, dict[str, Any]]
    labels: dict[str, str]

    @property
    def ink(self) -> str:
        """Of axes and text."""
        return "#d7dae0" if self.is_dark else "#24292f"


Draw = Callable[[Axes, Look], None]


def look_of(settings: Sequence[Setting], *, is_dark: bool) -> Look:
    """Controls gray and dashed, the others in colors, by their order."""
    colors, gray = (_DARK, "#a0a6b0") if is_dark else (_LIGHT, "#6b7280")
    styles: dict[str, dict[str, Any]] = {}
    numbers = {True: 0, False: 0}
    for setting in settings:
        number = numbers[setting.is_control]
        numbers[setting.is_control] += 1
        styles[setting.key] = {
            "color": gray if setting.is_control else colors[number % len(colors)],
            "linestyle": ("--", ":")[number % 2]
            if setting.is_control
            else _LINES[number // len(colors) % len(_LINES)],
            "marker": _MARKERS[number % len(_MARKERS)],
            "zorder": 3 if setting.is_control else 2,  # dashes are seen above a line they lie on
        }
    labels = {setting.key: setting.label for setting in settings}
    return Look(is_dark=is_dark, styles=styles, labels=labels)


def png_of(look: Look, draw: Draw, height: float = HEIGHT, *, has_legend: bool) -> bytes:
    """One plot as a PNG, on a ground of the look."""
    ground = "#161b22" if look.is_dark else "#ffffff"
    theme: dict[Any, Any] = {
        "figure.facecolor": ground,
        "axes.facecolor": ground,
        "savefig.facecolor": ground,
        "text.color": look.ink,
        "axes.labelcolor": look.ink,
        "axes.edgecolor": look.ink,
        "xtick.color": look.ink,
        "ytick.color": look.ink,
        "grid.color": look.ink,
        "legend.labelcolor": look.ink,
        "text.parse_math": False,  # labels are folder names, and may hold a dollar sign
        "font.size": 10.5,
        "lines.markersize": 4,
    }
    with mpl.rc_context(theme):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.subplots()
        draw(axes, look)
        axes.grid(alpha=0.18)
        axes.spines[["top", "right"]].set_visible(False)
        handles, labels = axes.get_legend_handles_labels()
        if has_legend and handles:
            longest = 6 + max(map(len, labels))
            columns = max(1, min(3, _LEGEND_LETTERS // longest))
            rows = -(-len(labels) // columns)
            figure.set_size_inches(_WIDTH, height + 0.21 * rows)
            figure.legend(
                handles,
                labels,
                loc="outside lower center",
                ncols=columns,
                frameon=False,
                fontsize=9.5,
            )
        buffer = BytesIO()
        figure.savefig(buffer, dpi=_DPI, format="png")
    return buffer.getvalue()
