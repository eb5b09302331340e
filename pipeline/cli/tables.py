"""Plain tables on the terminal, and what a manifest says of fidelity in them."""

from rich.console import Console
from rich.table import Table

from storage_schemas.manifest import Calibration, Fidelity, Quantiles


def new_console() -> Console:
    """As wide as the terminal; where nobody looks on, wide enough for a file."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)


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
