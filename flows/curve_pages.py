"""What an operator sees of stage 2: how far the run is, and its curves as text."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from prefect.artifacts import LinkArtifact, MarkdownArtifact, ProgressArtifact

from flows.artifacts import Page, artifact_key
from flows.progress import HELD_OUT, place_of
from pipeline.storage.address import is_remote, resolved_address
from storage_schemas.errors import CacheMissingError

_PROGRESS_SECONDS = 5.0
_CURVE_SECONDS = 30.0
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60
_MOST_ROWS = 20
_CURVES = {"loss": "loss", HELD_OUT: "held-out NLL, nats a token"}
_COLUMNS = ("loss", HELD_OUT, "learning_rate", "tokens_per_s")
_REPORT = "report.html"

Entry = Mapping[str, float]


class CurveBoard:
    """The log of one run so far. Written by the run, drawn by the publishing thread."""

    def __init__(self, output: str) -> None:
        self._output = output
        self._entries: list[Entry] = []
        self._earlier: list[Entry] | None = None

    def log(self, metrics: Mapping[str, float]) -> None:
        """Another entry."""
        self._entries.append(dict(metrics))

    def pages(self) -> tuple[Page, Page, Page]:
        """Progress, curves, and the report that is beside the run, if there is one."""
        return (
            Page(draw=self._draw_progress, seconds=_PROGRESS_SECONDS),
            Page(draw=self._draw_curves, seconds=_CURVE_SECONDS),
            Page(draw=self._draw_link, seconds=_CURVE_SECONDS),
        )

    def _draw_progress(self) -> ProgressArtifact | None:
        entries = [entry for entry in list(self._entries) if "steps" in entry]
        if not entries:
            return None
        last = entries[-1]
        return ProgressArtifact(
            key=artifact_key("training", self._output),
            progress=100 * last["step"] / last["steps"],
            description=f"{resolved_address(self._output)}: {place_of(last)}",
        )

    def _draw_curves(self) -> MarkdownArtifact | None:
        entries = self._all_entries()
        if not entries:
            return None
        return MarkdownArtifact(
            key=artifact_key("curve", self._output),
            markdown=curves_text(resolved_address(self._output), entries),
        )

    def _draw_link(self) -> LinkArtifact | None:
        page = report_beside(self._output)
        if page is None:
            return None
        return LinkArtifact(
            key=artifact_key("report", self._output), link=page.as_uri(), link_text=str(page)
        )

    def _all_entries(self) -> list[Entry]:
        """What a run before this one logged up to where this one went on, then this one's."""
        now = list(self._entries)
        if self._earlier is None:
            self._earlier = _stored_entries(self._output)
        start = now[0]["step"] if now else math.inf
        return [*(entry for entry in self._earlier if entry["step"] < start), *now]


def curves_text(place: str, entries: Sequence[Entry]) -> str:
    """Markdown: a line of bars for each curve, and a table of some of the entries, the last too."""
    lines = [f"### {place}", ""]
    for name, title in _CURVES.items():
        values = [entry[name] for entry in entries if math.isfinite(entry.get(name, math.nan))]
        if values:
            span = f"{values[0]:.4g} → {values[-1]:.4g}, lowest {min(values):.4g}"
            lines += [f"**{title}**: {span}", "", f"`{sparkline(values)}`", ""]
    columns = [name for name in _COLUMNS if any(name in entry for entry in entries)]
    lines += [
        f"| step | {' | '.join(columns)} |",
        f"| {' | '.join(['---:'] * (1 + len(columns)))} |",
    ]
    for entry in _some(entries):
        cells = [f"{entry[name]:.4g}" if name in entry else "" for name in columns]
        lines.append(f"| {entry['step']:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def sparkline(values: Sequence[float]) -> str:
    """One bar a value, or one for the mean of each of a few dozen equal runs of them."""
    width = min(_WIDTH, len(values))
    bounds = [len(values) * i // width for i in range(width + 1)]
    means = [sum(values[start:stop]) / (stop - start) for start, stop in pairwise(bounds)]
    low, high = min(means), max(means)
    span = high - low
    top = len(_BARS) - 1
    return "".join(_BARS[round(top * (mean - low) / span) if span else 0] for mean in means)


def report_beside(output: str) -> Path | None:
    """The page of `tidecache report` in a run's folder or in the one that it is in, if it is there.

    None for a run in an object store.
    """
    if is_remote(output):
        return None
    folder = Path(output).resolve()
    pages = (folder / _REPORT, folder.parent / _REPORT)
    return next((page for page in pages if page.exists()), None)


def _some(entries: Sequence[Entry]) -> list[Entry]:
    """Evenly spread ones, the last among them; all that measured held-out data if they are few."""
    every = math.ceil(len(entries) / _MOST_ROWS)
    measured = [i for i, entry in enumerate(entries) if HELD_OUT in entry]
    chosen = set(range(len(entries) - 1, -1, -every))
    if len(measured) <= _MOST_ROWS:
        chosen |= set(measured)
    return [entries[i] for i in sorted(chosen)]


def _stored_entries(output: str) -> list[Entry]:
    from pipeline.train.metrics_log import scan_metrics  # here: it loads transformers

    with suppress(CacheMissingError):
        rows = scan_metrics(output).collect().to_dicts()
        return [{name: value for name, value in row.items() if value is not None} for row in rows]
    return []
