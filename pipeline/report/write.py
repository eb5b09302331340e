"""Writes a report: the page, its pictures as files, and its numbers as JSON."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from pipeline.report.contents import Report
from pipeline.report.page import render_page
from pipeline.report.plots import draw_plots
from storage_schemas.errors import RecipeError

PAGE_FILE, NUMBERS_FILE = "report.html", "report.json"


def write_report(report: Report, folder: Path) -> tuple[Path, ...]:
    """report.html, report.json and a PNG a plot (NAME-dark.png for a dark page); where they are."""
    plots = draw_plots(report)
    page = render_page(report, plots)
    numbers = json.dumps(_jsonable(asdict(report)), indent=1, allow_nan=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        places = [
            _whole(folder / PAGE_FILE, lambda path: path.write_text(page, encoding="utf-8")),
            _whole(folder / NUMBERS_FILE, lambda path: path.write_text(numbers, encoding="utf-8")),
        ]
        for plot in plots:
            for name, png in ((plot.name, plot.light), (f"{plot.name}-dark", plot.dark)):
                place = folder / f"{name}.png"
                places.append(_whole(place, lambda path, png=png: path.write_bytes(png)))
    except OSError as error:
        raise RecipeError(f"--output: cannot write to {folder}: {error}") from error
    return tuple(places)


def _whole(place: Path, write: Callable[[Path], object]) -> Path:
    """Whole or not at all: written beside, then renamed."""
    beside = place.with_name(f".new-{place.name}")
    write(beside)
    beside.replace(place)
    return place


def _jsonable(value: Any) -> Any:
    """JSON has no NaN and no infinity: there stands null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _jsonable(one) for name, one in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_jsonable(one) for one in cast("list[Any]", value)]
    return value
