"""What the repository keeps of a study: tables as Parquet, answers as JSON, pictures and a page."""

import json
import os
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.demo.corpus import ASSETS
from pipeline.study.answers import gains, views_to_match
from pipeline.study.arms import Question
from pipeline.study.bodies import write_bodies
from pipeline.study.data import held_out
from pipeline.study.plots import draw_study
from pipeline.study.results import RECORDS_FILE, RUNS_FILE, STUDY_FILE, collect
from pipeline.study.run import score_model, start_folder
from pipeline.study.tables import all_tables, fill_page
from pipeline.study.worth import worth_of_models

RESULTS, PICTURE = "tests/benchmarks/results/study", "docs/evidence.png"
PAGES = ("docs/evidence.md", "README.md")


def publish(asked: list[Question], output: Path, root: Path) -> None:
    """Write what is finished under `output` into the repository at `root`."""
    runs, records = collect(asked, output)
    results = root / RESULTS
    results.mkdir(parents=True, exist_ok=True)
    runs.write_parquet(results / RUNS_FILE, compression="zstd")
    records.write_parquet(results / RECORDS_FILE, compression="zstd")
    study = {
        "facts": _facts(runs),
        "worth": _worth(start_folder(output)),
        "bounds": _bounds(start_folder(output)),
        "bodies": _bodies(start_folder(output)),
        "answers": answers(runs, records),
    }
    text = json.dumps(study, indent=1) + "\n"
    (results / STUDY_FILE).write_text(text, encoding="utf-8")
    draw_study(runs, records, root / PICTURE)
    fill(root)


def fill(root: Path) -> None:
    """Put the tables of the committed results into the pages."""
    runs, records = read_results(root)
    study = json.loads((root / RESULTS / STUDY_FILE).read_text(encoding="utf-8"))
    tables = all_tables(runs, records, study)
    for name in PAGES:
        page = root / name
        page.write_text(fill_page(page.read_text(encoding="utf-8"), tables), encoding="utf-8")


def read_results(root: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Runs and held-out records, as they are committed."""
    folder = root / RESULTS
    return pl.read_parquet(folder / RUNS_FILE), pl.read_parquet(folder / RECORDS_FILE)


def answers(runs: pl.DataFrame, records: pl.DataFrame) -> dict[str, Any]:
    """By question: every gain over its control, and how many views match a live teacher."""
    found: dict[str, Any] = {}
    for question in runs["question"].unique(maintain_order=True).to_list():
        if question.startswith("views"):
            views, ahead = views_to_match(runs, records, question)
            found[question] = {
                "views_to_match_live": views,
                "live_ahead": {str(number): asdict(gain) for number, gain in ahead.items()},
            }
        else:
            found[question] = {g.label: asdict(g) for g in gains(runs, records, question)}
    return found


def _worth(start: Path) -> dict[str, Any]:
    return {
        split: {name: asdict(worth) for name, worth in worth_of_models(split, start).items()}
        for split in ("validation", "test")
    }


def _bounds(start: Path) -> dict[str, Any]:
    """The held-out bound, as students are scored, of what no run of the study trained."""
    return {
        split: {
            name: score_model(model, held_out(split)).content.nll_bound
            for name, model in _untrained(start).items()
        }
        for split in ("validation", "test")
    }


def _bodies(start: Path) -> dict[str, Any]:
    """What those write, on the prompts of the test half."""
    return {name: asdict(write_bodies(model, "test")) for name, model in _untrained(start).items()}


def _untrained(start: Path) -> dict[str, Path]:
    return {
        "the study's start": start,
        "the demo's student": ASSETS / "student",
        "teacher B": ASSETS / "teacher-b",
    }


def _facts(runs: pl.DataFrame) -> dict[str, Any]:
    return {
        "command": "make study",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread a run",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers")},
        "runs": runs.height,
        "training_seconds": round(float(runs["seconds"].sum())),
    }
