"""`tidecache inspect`: a cache in tables, and one view's distributions beside the text."""

from pathlib import Path
from typing import Any, cast

import polars as pl
from rich.table import Table
from rich.text import Text

from pipeline.cache.inspect import (
    scan_chunks,
    scan_distributions,
    scan_examples,
    scan_top_k,
    scan_views,
    token_texts,
)
from pipeline.cache.reader import CacheReader
from pipeline.cli.tables import calibration_table, fidelity_table, new_console, new_table
from storage_schemas.errors import CacheMissingError
from storage_schemas.identity import CacheIdentity

_NUM_BINS = 10
_BAR_WIDTH = 40
_SHOWN_TOKENS = 5


def show_cache(address: str | Path) -> None:
    """Identity, shards, counts and bytes, and how certain the teacher was of the true text."""
    reader = CacheReader.open(address, allow_empty=True)
    console = new_console()
    console.print(_identity_table(reader))
    console.print(_content_table(reader))
    if reader.manifest.calibration is not None:
        console.print(calibration_table(reader.manifest.calibration))
    if reader.manifest.fidelity is not None:
        console.print(fidelity_table(reader.manifest.fidelity))
    if reader.entries:
        console.print(_certainty_table(address))


def show_view(address: str | Path, record_id: str, view: int) -> None:
    """The text of a record with what was masked, and the teacher's answer to each masked chunk."""
    of_view = (pl.col("record_id") == record_id) & (pl.col("view") == view)
    views = scan_views(address).filter(of_view).collect()
    if views.is_empty():
        raise CacheMissingError(
            f"{address}: expected view {view} of record {record_id!r}, got none; "
            f"{_what_is_there(address, record_id)}"
        )
    shown = views.row(0, named=True)
    of_example = (pl.col("shard") == shown["shard"]) & (pl.col("example") == shown["example"])
    example = scan_examples(address).filter(of_example).collect().row(0, named=True)
    answers = scan_chunks(address, with_text=True).filter(of_example, pl.col("view") == view)
    console = new_console()
    console.print(
        f"record {record_id}  view {view}  time {shown['time']:.3f}  shard {shown['shard']}"
    )
    console.print(_text(address, example["student_ids"], shown["is_masked"]))
    tokens = _top_tokens(address, shown["shard"], record_id, view)
    console.print(_answers_table(answers.collect(), tokens))


def _identity_table(reader: CacheReader) -> Table:
    table = new_table("cache", "", title=reader.address)
    table.add_row("digest", reader.manifest.digest)
    table.add_row("made by", f"tidecache {reader.manifest.created_by}")
    for name, value in _flat(reader.identity):
        table.add_row(name, value)
    return table


def _flat(identity: CacheIdentity) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in identity.model_dump(mode="json").items():
        inner = cast("dict[str, Any]", value if isinstance(value, dict) else {"": value})
        rows += [(f"{name}.{key}".removesuffix("."), _shown(item)) for key, item in inner.items()]
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, cast("list[Any]", value))) or "none"
    return "none" if value is None else str(value)


def _content_table(reader: CacheReader) -> Table:
    counts = [entry.counts for entry in reader.entries]
    num_bytes = sum(entry.num_bytes for entry in reader.entries)
    num_masked = sum(count.num_masked for count in counts)
    num_rows = sum(count.num_token_rows for count in counts)
    # A part's records, examples and skips are the same in each of its shards.
    parts = {entry.part: entry.counts for entry in reader.entries}.values()
    table = new_table("content", ">count")
    table.add_row("shards", f"{len(counts):,}")
    table.add_row("views of every record", f"{reader.num_views:,}")
    table.add_row("records", f"{sum(count.num_records for count in parts):,}")
    table.add_row("examples", f"{sum(count.num_examples for count in parts):,}")
    for reason in sorted({reason for count in parts for reason in count.skips}):
        skipped = sum(count.skips.get(reason, 0) for count in parts)
        table.add_row(f"records skipped: {reason}", f"{skipped:,}")
    table.add_row("views", f"{sum(count.num_views for count in counts):,}")
    table.add_row("chunks answered", f"{sum(count.num_chunks for count in counts):,}")
    table.add_row("student positions masked", f"{num_masked:,}")
    table.add_row("teacher positions kept", f"{num_rows:,}")
    table.add_row("bytes", f"{num_bytes:,}")
    if num_masked:
        table.add_row("bytes a masked position", f"{num_bytes / num_masked:.1f}")
    return table


def _certainty_table(address: str | Path) -> Table:
    """How many answered chunks fall in each tenth of the teacher's probability."""
    bins = (
        (pl.col("logp").cast(pl.Float64).exp() * _NUM_BINS)
        .floor()
        .clip(0, _NUM_BINS - 1)
        .cast(pl.Int32)
        .alias("bin")
    )
    found = scan_chunks(address).select(bins).group_by("bin").len().collect()
    sizes: dict[int, int] = dict(found.iter_rows())
    total, largest = sum(sizes.values()), max(sizes.values(), default=0)
    table = new_table("p(true chunk)", ">chunks", ">share", "", title="the teacher's certainty")
    for index in range(_NUM_BINS):
        size = sizes.get(index, 0)
        bar = "█" * round(_BAR_WIDTH * size / largest) if largest else ""
        span = f"{index / _NUM_BINS:.1f} to {(index + 1) / _NUM_BINS:.1f}"
        table.add_row(span, f"{size:,}", f"{size / total:.1%}" if total else "", bar)
    return table


def _what_is_there(address: str | Path, record_id: str) -> str:
    views = scan_views(address).filter(pl.col("record_id") == record_id).select("view").collect()
    if not views.is_empty():
        return f"of this record there are views {sorted(views['view'].to_list())}"
    ids = scan_views(address).select("record_id").unique(maintain_order=True).head(3).collect()
    return f"ids look like {ids['record_id'].to_list()}"


def _text(address: str | Path, ids: list[int], is_masked: list[bool]) -> Text:
    """The student's sequence; what the view masks is marked."""
    tokens = token_texts(address, "student").select("id", "bytes").collect()
    bytes_of: dict[int, bytes] = dict(tokens.iter_rows())
    text = Text()
    start = 0
    for stop in range(1, len(ids) + 1):  # runs of equal masking, so that no character is torn
        if stop == len(ids) or is_masked[stop] != is_masked[start]:
            run = b"".join(bytes_of.get(token_id, b"") for token_id in ids[start:stop])
            shown = run.decode("utf-8", errors="replace")
            text.append(f"⟦{shown}⟧" if is_masked[start] else shown, _style(is_masked[start]))
            start = stop
    return text


def _style(is_masked: bool) -> str:
    return "bold yellow" if is_masked else "dim"


def _top_tokens(address: str | Path, shard: str, record_id: str, view: int) -> dict[int, list[str]]:
    """The likeliest tokens of each kept teacher position, with their probabilities at T = 1.

    Without a top k they are what the sketches say; with neither there are none.
    """
    kept = CacheReader.open(address).identity.kept
    if not kept.has_tokens:
        return {}
    scan = scan_top_k if kept.top_k else scan_distributions
    rows = (
        scan(address)
        .filter(
            pl.col("shard") == shard,
            pl.col("view") == view,
            pl.col("record_id") == record_id,
            pl.col("rank") < _SHOWN_TOKENS,
        )
        .select("teacher_position", "token", "token_id", "probability", "is_gold")
        .collect()
    )
    tokens: dict[int, list[str]] = {}
    for position, token, token_id, probability, is_gold in rows.iter_rows():
        name = f"<{token_id}>" if token is None else repr(token)
        share = "" if probability is None else f" {probability:.3f}"
        tokens.setdefault(position, []).append(f"{name}{share}{' ✓' if is_gold else ''}")
    return tokens


def _answers_table(answers: pl.DataFrame, tokens: dict[int, list[str]]) -> Table:
    """One row an answered chunk, or one a kept teacher position where distributions are kept."""
    columns = ["text", ">log p", ">p"] + (["the teacher's likeliest tokens"] if tokens else [])
    table = new_table(*columns)
    for row in answers.iter_rows(named=True):
        probability = pl.select(pl.lit(row["logp"]).exp()).item()
        cells = [repr(row["text"]), f"{row['logp']:.3f}", f"{probability:.3f}"]
        if not tokens:
            table.add_row(*map(Text, cells))
        for position in range(row["t0"], row["t1"]) if tokens else ():
            table.add_row(*map(Text, cells), Text("   ".join(tokens.get(position, []))))
            cells = [""] * len(cells)
    return table
