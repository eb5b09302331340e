"""The demo's last words: the table, results.json, and where everything lies."""

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.demo.page import PAGE
from pipeline.demo.result import DemoResult, Row, Seconds
from pipeline.evaluate.scores import PairedDifference, TokenScores

_CONTROLS = {"cross": "cross-control", "shared": "shared-control"}
_PACKAGES = ("tidecache", "torch", "transformers", "prefect", "zarr", "pyarrow")


def print_report(result: DemoResult, console: Console) -> None:
    """The table, what it says, and what to try next."""
    console.print()
    console.print(likelihood_table(result))
    console.print(accuracy_table(result))
    console.print(_notes(result))
    console.print()
    console.print(_seconds(result.seconds))
    console.print("\n[bold]Where everything lies[/bold]")
    console.print(_places(result.output), soft_wrap=True)
    console.print("\n[bold]What to try next[/bold]")
    console.print(_next(result.output), soft_wrap=True)


def likelihood_table(result: DemoResult) -> Table:
    """Negative log-likelihoods in nats, each student's control above it, the difference below."""
    table = _table("Negative log-likelihood of held-out masked tokens, nats (lower is better)")
    _add_columns(table, result, "bound")
    for row in result.rows:
        content = row.scores.content
        table.add_row(row.label, *(f"{x:.3f}" for x in (content.nll_bound, *content.nll_L)))
        if row.key in _CONTROLS:
            difference = result.difference(row.key, _CONTROLS[row.key])
            table.add_row("   minus CE only", *_with_errors(difference), style="bold")
            table.add_section()
        if row.key == "start":
            table.add_section()
    return table


def accuracy_table(result: DemoResult) -> Table:
    """Share of masked tokens whose most likely token is the true one."""
    table = _table("Accuracy on the same masked tokens, % (higher is better)")
    _add_columns(table, result, "mean")
    for row in result.rows:
        accuracy = 100 * row.scores.content.accuracy_L
        table.add_row(row.label, *(f"{x:.1f}" for x in (accuracy.mean(), *accuracy)))
        if row.key == "start" or row.key in _CONTROLS:
            table.add_section()
    return table


def write_results(result: DemoResult) -> None:
    """Everything in the tables and more, as results.json."""
    fields = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
        },
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in _PACKAGES},
        "seconds": {
            "stage_1": round(result.seconds.stage_1, 3),
            "stage_2": round(result.seconds.stage_2, 3),
            "evaluation": round(result.seconds.evaluation, 3),
            "report": round(result.seconds.report, 3),
            "total": round(result.seconds.total, 3),
        },
        "held_out": {
            "fingerprint": result.rows[0].scores.fingerprint,
            "records": len(result.rows[0].scores.record_ids),
            "levels": list(result.rows[0].scores.content.levels),
        },
        "models": {row.key: _row_fields(row) for row in result.rows},
        "differences": [
            {"model": c.key, "minus": c.minus, **_difference_fields(c.difference)}
            for c in result.comparisons
        ],
    }
    path = result.output / "results.json"
    text = json.dumps(fields, indent=2, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8")


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold")


def _add_columns(table: Table, result: DemoResult, first: str) -> None:
    table.add_column("model", no_wrap=True)
    table.add_column(first, justify="right")
    for level in result.rows[0].scores.content.levels:
        table.add_column(f"t = {level:g}", justify="right")


def _with_errors(difference: PairedDifference) -> list[str]:
    means = [difference.nll_bound, *difference.nll_L]
    errors = [difference.nll_bound_error, *difference.nll_error_L]
    return [f"{mean:+.3f}\n±{error:.3f}" for mean, error in zip(means, errors, strict=True)]


def _notes(result: DemoResult) -> str:
    scores = result.rows[0].scores
    tokens = int(scores.content.num_maskable_R.sum())
    return (
        f"{len(scores.record_ids)} functions from files that no model was trained on: {tokens:,} "
        "tokens of response with its end of turn, EOS filling left out. The masks are independent, "
        "without chunk completion, stored, and the same for every model; t is the share masked.\n"
        "bound: nll weighted by 1 / t over all tokens, which bounds the nll of the text a token.\n"
        "±: one standard error of the paired difference, over functions.\n"
        "Teacher A has no row: it reads other tokens under full attention, which does not compare."
    )


def _seconds(seconds: Seconds) -> str:
    return (
        f"Stage 1 took {seconds.stage_1:.0f} s, stage 2 {seconds.stage_2:.0f} s, scoring "
        f"{seconds.evaluation:.0f} s, the report {seconds.report:.0f} s; "
        f"{seconds.total / 60:.1f} minutes in all."
    )


def _places(output: Path) -> str:
    places = {
        PAGE: "open it in a browser: all of it with intervals, curves and examples",
        "results.json": "every number of the tables, and more",
        "recipes/": "both recipes, as they ran",
        "caches/": "the teachers' answers: all that stage 2 reads",
        "students/": "the students, with their curves for TensorBoard",
        "held-out/": "the stored masks",
        "records/": "the text, as JSON lines",
    }
    return "\n".join(f"  {escape(str(output))}/{name:18} {what}" for name, what in places.items())


def _next(output: Path) -> str:
    output = Path(escape(str(output)))
    return f"""\
  Another objective from the same cache; no teacher is loaded:
    tidecache student-train {output}/recipes/cross.toml --set objective.type=calm \\
      --set train.output={output}/students/cross-calm
  What a cache holds, and the curves of training:
    tidecache inspect {output}/caches/shared
    tensorboard --logdir {output}/students
  The report again, of these and of your own students:
    tidecache report {output}/students/* --records {output}/records/held_out.jsonl \\
      --output {output}/report
"""


def _row_fields(row: Row) -> dict[str, Any]:
    return {
        "label": " ".join(row.label.split()),
        "path": str(row.model.resolve()),
        "content_tokens": _token_fields(row.scores.content),
        "all_target_tokens": _token_fields(row.scores.target),
    }


def _token_fields(scores: TokenScores) -> dict[str, Any]:
    return {
        "nll_bound": scores.nll_bound,
        "nll": _numbers(scores.nll_L),
        "accuracy": _numbers(scores.accuracy_L),
        "masked_tokens": scores.num_masked_L.tolist(),
    }


def _difference_fields(difference: PairedDifference) -> dict[str, Any]:
    return {
        "nll_bound": difference.nll_bound,
        "nll_bound_error": difference.nll_bound_error,
        "nll": _numbers(difference.nll_L),
        "nll_error": _numbers(difference.nll_error_L),
    }


def _numbers(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[float | None]:
    """JSON has no NaN: where nothing was masked stands null."""
    return [None if np.isnan(value) else float(value) for value in values]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
