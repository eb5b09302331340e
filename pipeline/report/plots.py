"""The report's pictures, in the order of the page's sections: each for a light and a dark page."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.report.contents import Report
from pipeline.report.drawings import (
    draw_agreement,
    draw_calibration,
    draw_gains,
    draw_levels,
    draw_panel,
)
from pipeline.report.look import HEIGHT, Draw, look_of, png_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A picture by its file name (without .png), as PNG bytes for both grounds."""

    name: str
    title: str
    caption: str
    light: bytes
    dark: bytes


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
            lambda axes, look: draw_gains(axes, look, report),
            height=1.2 + 0.34 * len(report.settings),
            has_legend=False,
        )
    for panel in report.panels:
        yield _plot(
            report,
            f"curves-{panel.column}",
            panel.title,
            "Mean over seeds; the band goes from the lowest to the highest seed.",
            lambda axes, look, panel=panel: draw_panel(axes, look, panel),
        )
    if part is not None and any(row.gain is not None for row in part.rows):
        yield _plot(
            report,
            "noise-levels",
            "Gain by noise level",
            "Nats a masked token, control minus setting: above 0 is better. Bars: 95 %.",
            lambda axes, look: draw_levels(axes, look, report),
        )
    for number, views in enumerate(report.views):
        yield _plot(
            report,
            f"calibration-{number}",
            "How often right, how certain",
            f"On the views of {views.digest}, answered chunks alone; above the diagonal a model is "
            "less certain than it might be.",
            lambda axes, look, views=views: draw_calibration(axes, look, views),
        )
        what = "same likeliest token" if views.has_tokens else "same side of one half"
        yield _plot(
            report,
            f"agreement-{number}",
            f"Agreement with the teacher: {what}",
            f"On the views of {views.digest}, by the share that is masked.",
            lambda axes, look, views=views: draw_agreement(axes, look, views),
        )


def _plot(
    report: Report,
    name: str,
    title: str,
    caption: str,
    draw: Draw,
    *,
    height: float = HEIGHT,
    has_legend: bool = True,
) -> Plot:
    light, dark = (
        png_of(look_of(report.settings, is_dark=is_dark), draw, height, has_legend=has_legend)
        for is_dark in (False, True)
    )
    return Plot(name=name, title=title, caption=caption, light=light, dark=dark)
