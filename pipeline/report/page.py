"""The page: one HTML file that asks nobody for anything, with its pictures and style in it."""

import math
from base64 import b64encode
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from pipeline.report.contents import Report
from pipeline.report.estimates import Estimate
from pipeline.report.plots import Plot


def render_page(report: Report, plots: Sequence[Plot]) -> str:
    """The HTML. Whatever comes from records, folders and recipes is escaped."""
    folder = files("pipeline.report")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "estimate": _estimate,
        "number": _number,
        "bytes": _bytes,
        "seconds": _seconds,
        "percent": _percent,
        "visible": _visible,
        "data_uri": _data_uri,
    }
    template = environment.from_string((folder / "page.html.j2").read_text(encoding="utf-8"))
    style = (folder / "page.css").read_text(encoding="utf-8")
    by_name = {plot.name: plot for plot in plots}
    return template.render(report=report, plots=by_name, style=style)


def _estimate(estimate: Estimate, digits: int = 3, *, signed: bool = False) -> str:
    """`4.186 ± 0.012`; without an interval the mean alone."""
    if math.isnan(estimate.mean):
        return "unknown"
    mean = f"{estimate.mean:{'+' if signed else ''}.{digits}f}"
    return f"{mean} ± {estimate.half_width:.{digits}f}" if estimate.is_known else mean


def _number(value: float, digits: int = 3) -> str:
    return "unknown" if math.isnan(value) else f"{value:,.{digits}f}"


def _percent(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{100 * value:.1f} %"


def _visible(text: str) -> str:
    """Spaces and ends of lines can be seen."""
    return text.replace(" ", "\N{OPEN BOX}").replace(
        "\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"
    )


def _bytes(num_bytes: int) -> str:
    if num_bytes < 1024:
        return f"{num_bytes} bytes"
    power = min(4, (num_bytes.bit_length() - 1) // 10)
    return f"{num_bytes / 1024**power:,.1f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"


def _seconds(value: float | None) -> str:
    return "not kept" if value is None else f"{value:,.0f} s"


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode('ascii')}"
