"""The study's results as tables: a row a run and label, and what its held-out records are.

Axes: R held-out record.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.study.arms import Question
from pipeline.study.data import file_of

RUNS_FILE, RECORDS_FILE, STUDY_FILE = "runs.parquet", "records.parquet", "study.json"


def collect(asked: Sequence[Question], output: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The runs of every finished seed of these questions, and what they were scored on."""
    runs: list[dict[str, Any]] = []
    records: dict[str, pl.DataFrame] = {}
    for question in asked:
        rows = {(run.seed, label): _read(output, run.key) for label, run in question.runs()}
        for (seed, label), row in rows.items():
            if all(rows[seed, other] is not None for other in question.arms):
                assert row is not None, "the seed is whole"
                records.setdefault(question.split, _records(question.split, row["scores"]))
                runs.append(_row(question, label, seed, row))
    return pl.DataFrame(runs, infer_schema_length=None), pl.concat(records.values())


def _read(output: Path, key: str) -> dict[str, Any] | None:
    path = output / "rows" / f"{key}.json"
    if not path.exists():
        return None
    row = json.loads(path.read_text(encoding="utf-8"))
    bodies = path.with_name(f"{key}.bodies.json")
    return row | json.loads(bodies.read_text(encoding="utf-8")) if bodies.exists() else row


def headline(row: dict[str, Any]) -> dict[str, float]:
    """A run's bound, nats a token; masked accuracy; and of the bodies it wrote, if it did."""
    scores = row["scores"]
    return {
        "bound": sum(scores["bound_R"]) / sum(scores["tokens_R"]),
        "accuracy": sum(scores["correct_R"]) / sum(scores["masked_R"]),
        **{name: row[name] for name in ("parses", "matches") if name in row},
    }


def _row(question: Question, label: str, seed: int, row: dict[str, Any]) -> dict[str, Any]:
    arm, scores, cache = row["run"]["arm"], row["scores"], row["cache"]
    return {
        "question": question.name,
        "label": label,
        "is_control": label == question.control,
        "seed": seed,
        "split": question.split,
        "start": row["start"],
        **{name: arm[name] for name in ("objective", "learning_rate", "steps")},
        "settings": ", ".join(arm["settings"]),
        **{name: arm["cache"][name] for name in arm["cache"]},
        **headline(row),
        "nll_L": scores["nll_L"],
        "accuracy_L": scores["accuracy_L"],
        "seconds": row["seconds"],
        "cache_digest": cache["digest"],
        "cache_seconds": cache["seconds"],
        "cache_bytes": cache["bytes"],
        "cache_masked": cache["counts"]["num_masked"],
        "cache_token_rows": cache["counts"]["num_token_rows"],
        "fingerprint": scores["fingerprint"],
        "bound_R": np.array(scores["bound_R"], dtype=np.float32).tolist(),
    }


def _records(split: str, scores: dict[str, Any]) -> pl.DataFrame:
    ids = cast("list[str]", scores["record_ids"])
    return pl.DataFrame(
        {
            "split": [split] * len(ids),
            "record_id": ids,
            "file": [file_of(record_id) for record_id in ids],
            "tokens": scores["tokens_R"],
        }
    )


def bounds(runs: pl.DataFrame, question: str, label: str) -> dict[int, float]:
    """seed -> held-out bound, nats a token."""
    rows = runs.filter((pl.col("question") == question) & (pl.col("label") == label))
    return dict(zip(rows["seed"].to_list(), rows["bound"].to_list(), strict=True))


def bounds_of_records(runs: pl.DataFrame, question: str, label: str) -> NDArray[np.float64]:
    """[seed, R]: what each record adds to the bound, in nats, seeds in ascending order."""
    rows = runs.filter((pl.col("question") == question) & (pl.col("label") == label)).sort("seed")
    return np.array(rows["bound_R"].to_list(), dtype=np.float64)
