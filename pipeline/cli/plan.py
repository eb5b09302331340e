"""`tidecache plan`: what a recipe and its neighbours will cost, in tables."""

from rich.console import Console
from rich.table import Table

from pipeline.plan.plan import Plan, PlanRow, Used

_HOW_TO_GET_HOURS = (
    "hours: of the teacher, once its speed is known: --measure 32 scores as many views, or give "
    "--tokens-per-second"
)


def show_plan(plan: Plan) -> None:
    """The recipe's counts and bytes, beside what its cache holds; then a row a neighbour."""
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=120)
    console.print(_what_is_known(plan))
    for table in (
        _counts_table(plan),
        _bytes_table(plan.rows[0], plan.used),
        _settings_table(plan),
    ):
        console.print(table)
        console.print()
    for note in (*plan.notes, *([] if plan.tokens_per_second else [_HOW_TO_GET_HOURS])):
        console.print(note, markup=False)


def _what_is_known(plan: Plan) -> str:
    if plan.num_sampled == plan.num_records:
        return f"all {plan.num_records:,} records read, every mask drawn: the counts are exact"
    return (
        f"{plan.num_sampled:,} of {plan.num_records:,} records read, and scaled up: the counts are "
        f"estimates (--sample)"
    )


def _counts_table(plan: Plan) -> Table:
    """Stage 1's counts beside what was used, then what both stages read."""
    row, used = plan.rows[0], plan.used
    table = _table(plan.address, used, "counts")
    planned = row.counts.stored
    names = {
        "records": "num_records",
        "records cached": "num_examples",
        "views": "num_views",
        "chunks answered": "num_chunks",
        "student positions masked": "num_masked",
        "teacher positions kept": "num_token_rows",
    }
    for name, field in names.items():
        stored = None if used is None else f"{getattr(used.stored, field):,}"
        _add(table, name, f"{getattr(planned, field):,}", stored)
    reasons = {*planned.skips, *(used.stored.skips if used is not None else ())}
    for reason in sorted(reasons):
        stored = None if used is None else f"{used.stored.skips.get(reason, 0):,}"
        _add(table, f"records skipped: {reason}", f"{planned.skips.get(reason, 0):,}", stored)
    _add(
        table,
        "shards",
        f"{row.counts.num_shards:,}",
        None if used is None else f"{used.num_shards:,}",
    )
    blank = None if used is None else ""
    _add(table, "teacher passes", f"{row.counts.passes:,}", blank)
    _add(table, "teacher tokens (no padding)", f"{row.counts.teacher_tokens:,}", blank)
    if row.counts.calibration_passes:
        _add(table, "passes of the calibration", f"{row.counts.calibration_passes:,}", blank)
        _add(table, "tokens of the calibration", f"{row.counts.calibration_tokens:,}", blank)
    if row.hours is not None:
        _add(table, "teacher hours", _hours(row), blank)
    _add(table, "student steps", f"{plan.student.steps:,}", blank)
    _add(table, "student tokens (no padding)", f"{plan.student.tokens:,}", blank)
    return table


def _bytes_table(row: PlanRow, used: Used | None) -> Table:
    table = _table("", used, "bytes on disk")
    for kind, size in row.sizes.items():
        stored = None if used is None else used.sizes.get(kind)
        if size or stored:
            known = "" if stored is None else f"{stored:,}"
            _add(table, kind, f"{size:,}", None if used is None else known)
    _add(table, "all", f"{row.num_bytes:,}", None if used is None else f"{used.num_bytes:,}")
    return table


def _settings_table(plan: Plan) -> Table:
    """A row a setting. The bytes of a position leave out what is kept once a cache."""
    table = Table(box=None, pad_edge=False)
    table.add_column("setting", no_wrap=True)
    for name in ("positions", "B/position", "bytes", "passes", "tokens", "hours"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("a row's bytes from", no_wrap=True)
    for row in plan.rows:
        table.add_row(
            row.name,
            f"{row.counts.stored.num_masked:,}",
            f"{row.bytes_a_position:.1f}",
            f"{row.num_bytes:,}",
            f"{row.passes:,}",
            f"{row.teacher_tokens:,}",
            _hours(row),
            row.bytes_from,
        )
    return table


def _hours(row: PlanRow) -> str:
    return "?" if row.hours is None else f"{row.hours:.3g}"


def _table(title: str, used: Used | None, name: str) -> Table:
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    table.add_column(name)
    table.add_column("planned", justify="right")
    if used is not None:
        table.add_column("used so far", justify="right")
    return table


def _add(table: Table, name: str, planned: str, used: str | None) -> None:
    table.add_row(name, planned, *([] if used is None else [used]))
