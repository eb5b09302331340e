"""`tidecache verify`: what was checked, every fault, and how near the live teacher a cache is."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from pipeline.cache.verify import VerifyReport, verify_cache
from pipeline.cli.tables import fidelity_table, new_console, new_table

_SHOWN_UNLISTED = 10


def show_verification(
    address: str, *, num_views: int | None = None, overrides: Sequence[str] = ()
) -> bool:
    """Whether the cache is sound; with `num_views`, of a sound one also its fidelity."""
    console = new_console()
    report = verify_cache(address)
    console.print(_report_table(report))
    for path in report.unlisted[:_SHOWN_UNLISTED]:
        console.print(Text(f"not listed, left by a kill or another writer: {path}", style="dim"))
    if (more := len(report.unlisted) - _SHOWN_UNLISTED) > 0:
        console.print(Text(f"and {more} more that nothing lists", style="dim"))
    for fault in report.faults:
        console.print(Text(f"FAULT {fault}", style="red"), soft_wrap=True)
    if not report.is_sound:
        if num_views is not None:
            console.print("fidelity was not measured: mend the faults first")
        return False
    if num_views is not None:
        from pipeline.fidelity import keep_fidelity, measure_fidelity

        fidelity = measure_fidelity(address, num_views=num_views, overrides=overrides)
        console.print(fidelity_table(fidelity))
        keep_fidelity(address, fidelity)
    return True


def _report_table(report: VerifyReport) -> Table:
    table = new_table("checked", ">count", title=report.address)
    table.add_row("shards", f"{report.shards:,}")
    table.add_row("sound shards", f"{report.sound_shards:,}")
    table.add_row("files hashed", f"{report.files:,}")
    table.add_row("bytes hashed", f"{report.num_bytes:,}")
    table.add_row("examples", f"{report.examples:,}")
    table.add_row("views: times, masks and passes drawn again", f"{report.views:,}")
    table.add_row("chunks", f"{report.chunks:,}")
    table.add_row("token rows", f"{report.token_rows:,}")
    table.add_row("faults", f"{len(report.faults):,}")
    return table
