"""The report's pictures: each drawn for a light page and for a dark one, small enough for a phone.

A setting has one color in all of them; controls are gray and dashed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.contents import Estimate, Panel, Report, Setting, ViewsPart

# Okabe and Ito's, told apart by all eyes; brighter ones of the same hues on a dark ground.
_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b0578d", "#3a93c9", "#b87a00")
_DARK = ("#56b4e9", "#ff8b4d", "#2ec79a", "#e39ac4", "#9bd3f5", "#f0b73a")
_LINES = ("-", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_WIDTH, _HEIGHT = 5.2, 3.4  # inches: half a page of a wide screen, all of a phone's
_DPI = 160
_LEGEND_LETTERS = 62  # that fit side by side below a plot

Draw = Callable[[Axes, "Look"], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A picture by its file name (without .png), as PNG bytes for both grounds."""

    name: str
    title: str
    caption: str
    light: bytes
    dark: bytes


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


def draw_plots(report: Report) -> tuple[Plot, ...]:
    """All pictures, in the order of the page's sections."""
    return tuple(_plots(report))


def _plots(report: Report) -> Iterator[Plot]:
    part = report.held_out
    if part is not None and any(row.gain is not None for row in part.rows):
        yield _plot(
            report,
            "gains",
            "Gain over the control",
            "Held-out bound of the control minus the setting's: right of 0 is better. Bars: 95 %.",
            lambda axes, look: _draw_gains(axes, look, report),
            height=1.2 + 0.34 * len(report.settings),
            has_legend=False,
        )
    for panel in report.panels:
        yield _plot(
            report,
            f"curves-{panel.column}",
            panel.title,
            "Mean over seeds; the band goes from the lowest to the highest seed.",
            lambda axes, look, panel=panel: _draw_panel(axes, look, panel),
        )
    if part is not None and any(row.gain is not None for row in part.rows):
        yield _plot(
            report,
            "noise-levels",
            "Gain by noise level",
            "Nats a masked token, control minus setting: above 0 is better. Bars: 95 %.",
            lambda axes, look: _draw_levels(axes, look, report),
        )
    for number, views in enumerate(report.views):
        yield _plot(
            report,
            f"calibration-{number}",
            "How often right, how certain",
            f"On the views of {views.digest}, answered chunks alone; above the diagonal a model is "
            "less certain than it might be.",
            lambda axes, look, views=views: _draw_calibration(axes, look, views),
        )
        what = "same likeliest token" if views.has_tokens else "same side of one half"
        yield _plot(
            report,
            f"agreement-{number}",
            f"Agreement with the teacher: {what}",
            f"On the views of {views.digest}, by the share that is masked.",
            lambda axes, look, views=views: _draw_agreement(axes, look, views),
        )


def _plot(
    report: Report,
    name: str,
    title: str,
    caption: str,
    draw: Draw,
    *,
    height: float = _HEIGHT,
    has_legend: bool = True,
) -> Plot:
    light, dark = (
        _png(_look(report.settings, is_dark=is_dark), draw, height, has_legend=has_legend)
        for is_dark in (False, True)
    )
    return Plot(name=name, title=title, caption=caption, light=light, dark=dark)


def _look(settings: Sequence[Setting], *, is_dark: bool) -> Look:
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
        }
    labels = {setting.key: setting.label for setting in settings}
    return Look(is_dark=is_dark, styles=styles, labels=labels)


def _png(look: Look, draw: Draw, height: float, *, has_legend: bool) -> bytes:
    ground = "#161b22" if look.is_dark else "#ffffff"
    theme = {
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


def _draw_gains(axes: Axes, look: Look, report: Report) -> None:
    assert report.held_out is not None, "gains are of held-out text"
    rows = [row for row in report.held_out.rows if row.gain is not None]
    axes.axvline(0, color=look.ink, linewidth=0.9)
    for place, row in enumerate(reversed(rows)):
        assert row.gain is not None, "chosen above"
        assert row.setting is not None, "a gain is a setting's"
        style = look.styles[row.setting]
        _error_bar(axes, place, row.gain.bound, style["color"])
    axes.set_yticks(range(len(rows)), [row.label for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("nats a token")


def _error_bar(axes: Axes, place: float, estimate: Estimate, color: str) -> None:
    error = None
    if estimate.is_known:
        error = [[estimate.mean - estimate.low], [estimate.high - estimate.mean]]
    axes.errorbar(estimate.mean, place, xerr=error, color=color, marker="o", capsize=4)


def _draw_panel(axes: Axes, look: Look, panel: Panel) -> None:
    for curve in panel.curves:
        style = dict(look.styles[curve.setting])
        if len(curve.steps) > 30:
            style["marker"] = None
        axes.plot(curve.steps, curve.mean, label=look.labels[curve.setting], **style)
        axes.fill_between(
            curve.steps, curve.low, curve.high, color=style["color"], alpha=0.18, linewidth=0
        )
    axes.set_xlabel("optimizer step")


def _draw_levels(axes: Axes, look: Look, report: Report) -> None:
    assert report.held_out is not None, "levels are of held-out text"
    rows = [row for row in report.held_out.rows if row.gain is not None]
    axes.axhline(0, color=look.ink, linewidth=0.9)
    for number, row in enumerate(rows):
        assert row.gain is not None, "chosen above"
        assert row.setting is not None, "a gain is a setting's"
        nudge = 0.012 * (number - (len(rows) - 1) / 2)  # error bars side by side
        means = [one.mean for one in row.gain.nll_L]
        errors = [
            [0.0 if not one.is_known else one.mean - one.low for one in row.gain.nll_L],
            [0.0 if not one.is_known else one.high - one.mean for one in row.gain.nll_L],
        ]
        axes.errorbar(
            [level + nudge for level in report.held_out.levels],
            means,
            yerr=errors,
            capsize=3,
            label=look.labels[row.setting],
            **look.styles[row.setting],
        )
    axes.set_xticks(report.held_out.levels)
    axes.set_xlabel("share of the response that is masked, t")


def _draw_calibration(axes: Axes, look: Look, views: ViewsPart) -> None:
    axes.plot([0, 1], [0, 1], color=look.ink, linewidth=0.9, linestyle=":")
    for one in views.calibration:
        style = {"color": look.ink, "marker": "*", "linestyle": "-"}
        if one.setting is not None:
            style = look.styles[one.setting]
        axes.plot(
            [each.confidence for each in one.bins],
            [each.accuracy for each in one.bins],
            label=one.label,
            linewidth=1.3,
            **style,
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("probability of the likeliest token")
    axes.set_ylabel("share that is right")


def _draw_agreement(axes: Axes, look: Look, views: ViewsPart) -> None:
    for one in views.agreement:
        places = [(each.low + each.high) / 2 for each in one.bins]
        axes.plot(
            places,
            [each.share.mean for each in one.bins],
            label=look.labels[one.setting],
            linewidth=1.3,
            **look.styles[one.setting],
        )
        axes.fill_between(
            places,
            [each.share.low for each in one.bins],
            [each.share.high for each in one.bins],
            color=look.styles[one.setting]["color"],
            alpha=0.15,
            linewidth=0,
        )
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the response that is masked, t")
    axes.set_ylabel("share that agrees")
