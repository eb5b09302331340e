"""Reads runs, runs their students on what the report needs, and puts all numbers together.

No teacher is loaded: what it said is in the caches.
"""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from pipeline.report.ask import NOTHING_KNOWN, Asking, Known, OnProgress, ask_students
from pipeline.report.contents import Report
from pipeline.report.costs import cache_costs, train_costs
from pipeline.report.curves import panels
from pipeline.report.held_out import held_out_part, num_text_bytes
from pipeline.report.runs import FinishedRun, read_run, read_runs
from pipeline.report.settings import AUTO, make_settings
from pipeline.report.text import choose_text, load_tokenizer
from pipeline.report.verdict import verdict
from pipeline.report.views import read_views
from pipeline.report.views_part import views_part
from pipeline.storage.address import is_remote
from storage_schemas.errors import RecipeError


def gather_report(
    folders: Sequence[str | Path],
    *,
    control: str | Path = AUTO,
    caches: Sequence[str | Path] = (),
    records: Sequence[str | Path] = (),
    max_views: int = 96,
    title: str = "Distilled students",
    known: Known = NOTHING_KNOWN,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Report:
    """The report on these runs; `control` is one of them, or one more, or chosen ("auto").

    `caches` give the views for calibration, agreement and examples: without any, those that the
    runs were trained on. `records` are files of held-out text: without any, the runs' own.
    """
    runs = _with_control(read_runs(folders), control)
    settings, members = make_settings(runs, control=control)
    tokenizer = load_tokenizer(runs)
    text = choose_text(runs, records, tokenizer, known.held_out)
    own = tuple(dict.fromkeys(run.cache for run in runs))
    there = [address for address in own if is_remote(address) or Path(address).exists()]
    views = [read_views(address, max_views=max_views) for address in caches or there]
    asking = Asking(runs=runs, tokenizer=tokenizer, text=text, views=tuple(views))
    told = ask_students(asking, known, on_progress)
    costs, notes = cache_costs(own, known.stage_1_seconds)
    part = None
    if text is not None:
        part = held_out_part(
            settings,
            told.scores,
            told.references,
            held_out=text.held_out,
            num_bytes=num_text_bytes(text.held_out, tokenizer),
            source=text.source,
        )
    return Report(
        title=title,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        version=_version(),
        machine=_machine(),
        verdict=verdict(settings, part),
        settings=settings,
        held_out=part,
        panels=panels(settings, members),
        views=tuple(
            views_part(one, settings, told.answers[number], tokenizer, runs)
            for number, one in enumerate(views)
        ),
        cache_costs=costs,
        train_costs=train_costs(settings, members),
        notes=(*notes, *told.notes, *(() if text is None else text.notes)),
    )


def _with_control(runs: tuple[FinishedRun, ...], control: str | Path) -> tuple[FinishedRun, ...]:
    if control == AUTO or any(run.folder.resolve() == Path(control).resolve() for run in runs):
        return runs
    try:
        return (*runs, read_run(control))
    except RecipeError as error:
        raise RecipeError(f"the control: {error}") from error


def _machine() -> dict[str, str]:
    machine = {
        "platform": platform.platform(),
        "cpus": str(os.cpu_count()),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return machine


def _version() -> str:
    try:
        return version("tidecache")
    except PackageNotFoundError:  # the code runs where it was not installed
        return "unknown"
