"""What each picture shows: a figure of the report, on axes of the look that is given."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pipeline.report.contents import Panel, Report
from pipeline.report.estimates import Estimate
from pipeline.report.look import Look
from pipeline.report.view_contents import ViewsPart

_MANY = 30  # points of a curve that is drawn without markers


def draw_gains(axes: Axes, look: Look, report: Report) -> None:
    """Each setting's gain over its control, with its interval."""
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
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("nats a token")


def _error_bar(axes: Axes, place: int, estimate: Estimate, color: str) -> None:
    error = None
    if estimate.is_known:
        error = [[estimate.mean - estimate.low], [estimate.high - estimate.mean]]
    axes.errorbar(estimate.mean, place, xerr=error, color=color, marker="o", capsize=4)


def draw_panel(axes: Axes, look: Look, panel: Panel) -> None:
    """One measure over the steps, a curve a setting, with its band."""
    for curve in panel.curves:
        style = dict(look.styles[curve.setting])
        if len(curve.steps) > _MANY:
            style["marker"] = None
        axes.plot(curve.steps, curve.mean, label=look.labels[curve.setting], **style)
        axes.fill_between(
            curve.steps, curve.low, curve.high, color=style["color"], alpha=0.18, linewidth=0
        )
    axes.set_xlabel("optimizer step")


def draw_levels(axes: Axes, look: Look, report: Report) -> None:
    """Each setting's gain by the share of noise."""
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


def draw_calibration(axes: Axes, look: Look, views: ViewsPart) -> None:
    """How often a token is right beside how sure its model was."""
    axes.plot([0, 1], [0, 1], color=look.ink, linewidth=0.9, linestyle=":")
    for one in views.calibration:
        style: dict[str, Any] = {"color": look.ink, "marker": "*", "linestyle": "-"}
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


def draw_agreement(axes: Axes, look: Look, views: ViewsPart) -> None:
    """How often student and teacher agree, by the share of noise."""
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
