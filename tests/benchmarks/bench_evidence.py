"""What the committed study shows, computed from its tables; checks that it is what it says it is.

`make bench-evidence`; the last line is JSON. gain_A_nats, gain_B_nats: nats a token by which the
best objective of each pipeline beats the CE-only control on test files, mean over seeds; ci_A and
ci_B: its 95 % t interval over seeds; ci_files_A and ci_files_B: a bootstrap over the test files.
views_to_match_live: views a record from which on a cache's student is within noise of a live
teacher's, the larger of both pipelines. sampler_tokens_per_s_over_plain: bench_sampler's.
"""

import json
import sys
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.study.answers import gains, views_to_match
from pipeline.study.publish import RESULTS, read_results
from pipeline.study.results import STUDY_FILE
from pipeline.study.tables import best_of

ROOT = Path(__file__).parents[2]
LEAST_SEEDS = 5


def main() -> None:
    """Check, and print the line."""
    runs, records = read_results(ROOT)
    faults = [*faults_of(runs, records)]
    for fault in faults:
        print(f"FAULT {fault}", file=sys.stderr)
    study = json.loads((ROOT / RESULTS / STUDY_FILE).read_text(encoding="utf-8"))
    sampler = json.loads((ROOT / "tests/benchmarks/results/sampler.json").read_text("utf-8"))
    figures: dict[str, Any] = {"seeds": _seeds(runs)}
    for letter in "AB":
        best = best_of(gains(runs, records, f"objectives {letter}"))
        figures |= {
            f"best_{letter}": best.label,
            f"gain_{letter}_nats": best.over_seeds.mean,
            f"ci_{letter}": [best.over_seeds.low, best.over_seeds.high],
            f"ci_files_{letter}": [best.over_files.low, best.over_files.high],
        }
    matched = {letter: views_to_match(runs, records, f"views {letter}")[0] for letter in "AB"}
    known = [views for views in matched.values() if views is not None]
    figures |= {
        "views_to_match_live": max(known) if len(known) == len(matched) else None,
        "views_to_match_live_by_pipeline": matched,
        "sampler_tokens_per_s_over_plain": sampler["figures"]["sampler_tokens_per_s_over_plain"],
        "nats_per_byte": {
            name: worth["nats_per_byte"] for name, worth in study["worth"]["test"].items()
        },
        "faults": len(faults),
    }
    print(json.dumps(figures), flush=True)
    if faults:
        sys.exit(1)


def faults_of(runs: pl.DataFrame, records: pl.DataFrame) -> list[str]:
    """What would make the comparison unfair, or the tables not those of one study."""
    faults: list[str] = []
    files = {
        split: set(records.filter(pl.col("split") == split)["file"].to_list())
        for split in ("validation", "test")
    }
    if shared := files["validation"] & files["test"]:
        faults.append(f"files in both halves: {sorted(shared)}")
    tuning = runs.filter(pl.col("split") == "validation")
    tested = runs.filter(pl.col("split") == "test")
    if both := set(tuning["seed"].to_list()) & set(tested["seed"].to_list()):
        faults.append(f"seeds of the tuning among those of the test: {sorted(both)}")
    for (question,), rows in runs.group_by("question", maintain_order=True):
        faults.extend(
            f"{question}: runs of several {name}"
            for name in ("start", "steps", "fingerprint")
            if rows[name].n_unique() != 1 and not str(question).startswith(name)
        )
        seeds = {tuple(sorted(group["seed"])) for _, group in rows.group_by("label")}
        if len(seeds) != 1:
            faults.append(f"{question}: labels of different seeds {sorted(seeds)}")
    for letter in "AB":
        rows = runs.filter(pl.col("question") == f"objectives {letter}")
        if rows["seed"].n_unique() < LEAST_SEEDS:
            faults.append(f"objectives {letter}: fewer than {LEAST_SEEDS} seeds")
        if rows.select("records", "views").unique().height != 1:
            faults.append(f"objectives {letter}: different records or views")
    return faults


def _seeds(runs: pl.DataFrame) -> int:
    return min(
        runs.filter(pl.col("question") == f"objectives {letter}")["seed"].n_unique()
        for letter in "AB"
    )


if __name__ == "__main__":
    main()
