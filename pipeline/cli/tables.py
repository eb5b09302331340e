"""Plain tables on the terminal, and what a manifest says of fidelity in them.

Records, caches and checkpoints bring texts of others. No text is read as markup, and none can move
the cursor, set a title or turn the writing round.
"""

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.table import Table

from storage_schemas.manifest import Calibration, Fidelity, Quantiles

# C0 but tab and line feed, DEL and C1; and what reverses the direction of writing
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def new_console() -> Console:
    """As wide as the terminal; where nobody looks on, wide enough for a file."""
    console = _Console(highlight=False, markup=False, emoji=False)
    return (
        console
        if console.is_terminal
        else _Console(highlight=False, markup=False, emoji=False, width=120)
    )


def printable(text: str) -> str:
    """The text with what would command a terminal made visible; ends of lines and tabs stay."""
    return _COMMANDS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


class _Console(Console):
    """Shows texts of others as they are."""

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            is_text = segment.control is None
            yield Segment(printable(segment.text), segment.style) if is_text else segment


def new_table(*columns: str, title: str | None = None) -> Table:
    """A leading `>` aligns a column to the right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in columns:
        table.add_column(
            name.removeprefix(">"), justify="right" if name.startswith(">") else "left"
        )
    return table


def calibration_table(calibration: Calibration) -> Table:
    """What the calibration chose, and what it reached on its search records."""
    table = new_table("calibration", ">value")
    table.add_row("positions", f"{calibration.positions:,}")
    table.add_row("search positions", f"{calibration.search_positions:,}")
    numbers = {
        "hidden size": float(calibration.hidden_size),
        "rank": float(calibration.rank),
        "step (nats)": calibration.step,
        "bytes a position": calibration.bytes_per_position,
        "overfit bytes": calibration.overfit_bytes,
        **{f"KL at T = {t} (nats)": value for t, value in calibration.kl.items()},
        "gradient error": calibration.grad_error,
    }
    for name, value in numbers.items():
        if value is not None:
            table.add_row(name, f"{value:.4g}")
    return table


def fidelity_table(fidelity: Fidelity) -> Table:
    """How stored answers differ from the live teacher's, with quantiles."""
    title = (
        f"fidelity: {fidelity.views:,} views, {fidelity.positions:,} positions scored again "
        f"({fidelity.measured_at})"
    )
    table = new_table("stored against live", ">mean", ">p50", ">p95", ">max", title=title)
    rows: dict[str, Quantiles | None] = {
        "chunk log-likelihood (nats)": fidelity.chunk_logp_error,
        **{f"KL at T = {t} (nats)": value for t, value in fidelity.kl.items()},
        "TIDAL gradient (relative)": fidelity.grad_error,
    }
    for name, value in rows.items():
        if value is not None:
            numbers = (value.mean, value.p50, value.p95, value.max)
            table.add_row(name, *(f"{number:.3g}" for number in numbers))
    return table
