"""Stage 2 at the price of plain fine-tuning: what a step costs, and what its loss holds in memory.

`make bench-student` rewrites results/student.json; the last line is JSON. A student of 20M
parameters beside embedding and head (H = 512, V = 8,192), a cache with a sketch of r = 2,048, two
records of 256 tokens a step, eight input tokens a masked one, float32, one thread; ratios are of
medians of CPU seconds over rounds in which each way has its turn on the same batch.

reverse_calm_over_ce, tidal_over_ce: over a cross-entropy step of the same code; naive_over_ce: all
logits, transformers' forward. online_over_cached: the same objective with the teacher in the loop
(Reverse CALM, a mixture of experts with 2.4 times the student's active parameters; TIDAL, a dense
one with 13 times, two passes), over the cached step; online_over_ce: over cross-entropy.
wide: the same student with V = 151,936, and the bound that matrix products alone would give.
loss_peak_mib, full_logits_peak_mib and their times: see head_memory.py. loader_over_step: masked
positions a second that the loader delivers, one process, over what a TIDAL step uses. wait_share:
of the wall time of a real TIDAL run of 100 steps, its first wait included, one loader process.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from student_cache import BLOCK, VOCAB, StudentBench, student_config
from student_steps import (
    BATCH,
    TIDAL,
    Steps,
    Views,
    alternate,
    cache_expand,
    cached_arms,
    live_arms,
    operations,
    random_expand,
)
from transformers import Qwen3Config

from pipeline.cache.reader import CacheReader
from pipeline.stream.loader import CacheStream
from pipeline.student_train import run_student_train
from pipeline.train.head_loss import rows_per_block
from pipeline.train.tensors import as_tensors

WIDE = 151_936
ROUNDS, LIVE_ROUNDS, WIDE_ROUNDS, RUN_STEPS = 24, 8, 8, 100
_HERE = Path(__file__).parent
_RESULTS = _HERE / "results" / "student.json"


def main() -> None:
    """Measure, and print the line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-student-") as folder:
        bench = StudentBench.make(Path(folder))
        say(f"a cache of {bench.bytes_per_position:.1f} bytes a position", began)
        views = Views.read(bench, max(ROUNDS, LIVE_ROUNDS, WIDE_ROUNDS) + 1)
        figures, seconds = measure_steps(bench, views)
        say("steps", began)
        figures |= measure_live(views, seconds)
        say("live teachers", began)
        figures |= measure_head()
        say("memory", began)
        figures |= measure_loader(bench, views, seconds["tidal"])
        say("loader", began)
        figures["wide"] = measure_wide(views)
        say("real vocabulary", began)
    write_results(figures, arguments.threads, time.monotonic() - began)
    print(json.dumps(figures), flush=True)


def say(what: str, began: float) -> None:
    """Progress, on standard error."""
    print(f"{time.monotonic() - began:6.0f} s  {what}", file=sys.stderr, flush=True)


def write_results(figures: dict[str, Any], threads: int, seconds: float) -> None:
    """The committed results, with machine and date."""
    facts = {
        "command": "make bench-student",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads used",
        "torch": torch.__version__,
        "seconds": round(seconds),
    }
    text = json.dumps({"facts": facts, "figures": figures}, indent=1)
    _RESULTS.write_text(text + "\n", encoding="utf-8")


def measure_steps(bench: StudentBench, views: Views) -> tuple[dict[str, Any], dict[str, float]]:
    """The cached steps and the naive one; ratios and CPU seconds."""
    seconds = alternate(cached_arms(Steps(), views, cache_expand(bench)), ROUNDS)
    figures = {
        "reverse_calm_over_ce": seconds["reverse_calm"] / seconds["ce"],
        "tidal_over_ce": seconds["tidal"] / seconds["ce"],
        "naive_over_ce": seconds["naive"] / seconds["ce"],
        "tidal_over_ce_bound": bound(student_config(), views),
        "ce_step_cpu_s": seconds["ce"],
        "input_tokens_a_masked_one": views.tokens_a_batch / views.masked_a_batch,
    }
    return figures, seconds


def bound(config: Qwen3Config, views: Views) -> float:
    """TIDAL over cross-entropy in the operations of their matrix products."""
    tidal, ce = (operations(config, views, is_tidal=is_tidal) for is_tidal in (True, False))
    return tidal / ce


def measure_live(views: Views, cached: dict[str, float]) -> dict[str, Any]:
    """The same objectives with their teachers in the loop."""
    seconds = alternate(live_arms(views, Steps()), LIVE_ROUNDS)
    names = ("reverse_calm", "tidal")
    return {
        "online_over_cached": {n: seconds[f"{n}_live"] / cached[n] for n in names},
        "online_over_ce": {n: seconds[f"{n}_live"] / cached["ce"] for n in names},
    }


def measure_head() -> dict[str, Any]:
    """Both ways, a process each."""
    found: dict[str, dict[str, float]] = {}
    for way in ("ours", "plain"):
        command = [sys.executable, str(_HERE / "head_memory.py"), way]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[way] = json.loads(done.stdout.splitlines()[-1])
    ours, plain = found["ours"], found["plain"]
    return {
        "loss_peak_mib": ours["peak_mib"],
        "full_logits_peak_mib": plain["peak_mib"],
        "loss_peak_share": ours["peak_mib"] / plain["peak_mib"],
        "full_logits_cpu_over_loss_cpu": plain["cpu_s"] / ours["cpu_s"],
    }


def measure_loader(bench: StudentBench, views: Views, step_s: float) -> dict[str, float]:
    """What the loader delivers and what a step uses; and how long a real run waits for it."""
    reader = CacheReader.open(bench.folder / "cache")
    to_tensors = partial(
        as_tensors,
        temperature=TIDAL.temperature,
        block_size=BLOCK,
        rows_per_block=rows_per_block(VOCAB, torch.device("cpu")),
    )
    began, positions = time.process_time(), 0
    with CacheStream(
        reader, batch_size=BATCH, seed=0, has_tokens=True, basis=reader.read_basis()
    ) as stream:
        for batch in islice(stream.batches(then=to_tensors), stream.num_views // BATCH):
            positions += batch.num_tokens
    delivered = positions / (time.process_time() - began)
    # one entry for the whole run, from its first wait on
    steps = {"max_steps": RUN_STEPS, "log_steps": RUN_STEPS}
    recipe = bench.recipe("tidal_kl", "run", loader_workers=1, **steps)
    run = run_student_train(recipe, shows_progress=False)
    return {
        "loader_positions_per_cpu_s": delivered,
        "loader_over_step": delivered * step_s / views.masked_a_batch,
        "wait_share": run.metrics["wait_share"],
    }


def measure_wide(views: Views) -> dict[str, float]:
    """The ratios with a real vocabulary, beside their bound."""
    config = student_config(WIDE)
    expand = random_expand(views.rank, WIDE)
    seconds = alternate(cached_arms(Steps(config), views, expand), WIDE_ROUNDS)
    return {
        "reverse_calm_over_ce": seconds["reverse_calm"] / seconds["ce"],
        "tidal_over_ce": seconds["tidal"] / seconds["ce"],
        "tidal_over_ce_bound": bound(config, views),
        "naive_over_ce": seconds["naive"] / seconds["ce"],
    }


if __name__ == "__main__":
    main()
