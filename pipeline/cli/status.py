"""`tidecache status`: where a cache stands, as a table and as JSON."""

import json
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.cache.status import CacheStatus, cache_status
from pipeline.cli.tables import new_console, new_table
from storage_schemas.identity import CacheIdentity

_SHOWN = 10


def show_status(address: str, *, as_json: bool) -> None:
    """A table, and below it whatever needs attention."""
    status = cache_status(address)
    if as_json:
        print(json.dumps(status.to_json(), allow_nan=False))
        return
    console = new_console()
    console.print(_table(status))
    _print_some(console, "missing", status.missing or ())
    _print_some(console, "not committed, in work or left by a kill", status.uncommitted)
    for failure in status.failures:
        line = f"{failure.kind} {failure.shard} ({failure.at}): {failure.reason}"
        console.print(Text(line, style="red"), soft_wrap=True)


def _table(status: CacheStatus) -> Table:
    counts, num_failed = status.counts, len(status.failures)
    table = new_table("cache", ">", title=status.address)
    table.add_row("digest", status.manifest.digest)
    table.add_row("made from", _in_short(status.manifest.identity))
    table.add_row("shards", _shards(status))
    table.add_row("shards failed", f"{num_failed:,}")
    table.add_row("records", f"{counts.num_records:,}")
    for reason, number in sorted(counts.skips.items()):
        table.add_row(f"records skipped: {reason}", f"{number:,}")
    table.add_row("views", f"{counts.num_views:,}")
    table.add_row("chunks answered", f"{counts.num_chunks:,}")
    if status.manifest.identity.kept.has_tokens:
        table.add_row("teacher positions kept", f"{counts.num_token_rows:,}")
    table.add_row("bytes", f"{status.num_bytes:,}")
    table.add_row("last commit", _when(status.last_commit))
    if status.writers is not None:
        table.add_row("writers at work", f"{status.writers.num_alive:,}")
        table.add_row("writers that were killed", f"{status.writers.num_dead:,}")
    return table


def _in_short(identity: CacheIdentity) -> str:
    teacher, kept = identity.teacher, identity.kept
    what = "none" if kept.tail is None else kept.tail.type
    holds = f"top {kept.top_k}, tail {what}" if kept.has_tokens else "chunk likelihoods"
    return f"{teacher.family}, {teacher.attention} attention, seed {identity.noise.seed}, {holds}"


def _shards(status: CacheStatus) -> str:
    if status.missing is None:
        return f"{status.num_shards:,} (no run has said of how many)"
    return f"{status.num_shards:,} of {status.num_shards + len(status.missing):,}"


def _when(time: datetime | None) -> str:
    if time is None:
        return "never"
    seconds = max(0, round((datetime.now(UTC) - time).total_seconds()))
    return f"{time:%Y-%m-%d %H:%M:%S} UTC, {seconds:,} s ago"


def _print_some(console: Console, what: str, names: tuple[str, ...]) -> None:
    if names:
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        line = f"{what}: {', '.join(names[:_SHOWN])}{more}"
        console.print(Text(line, style="dim"), soft_wrap=True)
