"""`tidecache report`: gathers, writes, and says what it found and where it is."""

from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import Progress
from transformers.utils import logging

from pipeline.cli.tables import new_console
from pipeline.report.gather import gather_report
from pipeline.report.write import write_report


def make_report(
    runs: Sequence[str],
    *,
    output: Path,
    control: str,
    caches: Sequence[str],
    records: Sequence[Path],
    max_views: int,
    title: str,
) -> None:
    """A bar for a person while students are asked; then the verdict, and where the page is."""
    logging.disable_progress_bar()
    bar = Progress(console=Console(stderr=True), transient=True)
    with bar:
        task = bar.add_task("reading", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        report = gather_report(
            runs,
            control=control,
            caches=caches,
            records=records,
            max_views=max_views,
            title=title,
            on_progress=show,
        )
    places = write_report(report, output)
    console = new_console()
    for sentence in report.verdict:
        console.print(sentence, markup=False)
    typer.echo(places[0])
