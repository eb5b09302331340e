"""The cache: bytes and truth on real logits, speed, memory, kills and flips.

`make bench-cache` runs everything and rewrites the committed results (results/cache.json and the
picture in docs/); the last line of its output is one JSON object. Bytes are those of all files of
all shards and of the ledger; the basis, kept once a cache, is reported apart.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cache_faults import run_flips, run_kills
from frontier import Bench, Measured
from plot_frontier import draw_frontier
from real_logits import NUM_VIEWS, RealLogits, load_real_logits
from stored_rows import (
    TEMPERATURES,
    kept_of,
    open_writer,
    random_shards,
    rows_at,
    shard_of,
)

from pipeline.cache.reader import CacheReader
from pipeline.cache.writer import Calibrated
from pipeline.objectives import gold_logp
from pipeline.stream.loader import CacheStream
from pipeline.targets.calibrate import Moments, find_axes
from pipeline.targets.sketch import SketchEncoder
from pipeline.targets.top_k import keep_top_k, logsumexp_at
from storage_schemas.basis import Basis
from storage_schemas.identity import EvenTail, SketchTail
from storage_schemas.manifest import Calibration
from storage_schemas.shard import ShardContent
from storage_schemas.targets import KeptTargets

STEP, FINE_STEP = 0.1, 0.055
STEPS = (0.25, 0.18, 0.14, 0.12, 0.1, 0.085, 0.07, 0.055, 0.045, 0.035)
TEMPERATURE = 2.0
_SIZES = (10_000, 100_000, 1_000_000)
_THROUGHPUT_K = 16
_ROOT = Path(__file__).resolve().parents[2]
_RESULTS = Path(__file__).parent / "results" / "cache.json"
_PICTURE = _ROOT / "docs" / "sketch.png"


def main() -> None:
    """Measure, write the results, and print the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="keep the model's hidden states here")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)  # the memory of a reader
    arguments = parser.parse_args()
    if arguments.read is not None:
        print(json.dumps(read_all(arguments.read, has_tokens=True)))
        return
    began = time.monotonic()
    data = load_real_logits(arguments.work)
    bench = make_bench(data)
    say(f"calibrated on {len(data.calibration_NH):,} positions", began)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-cache-") as folder:
        root = Path(folder)
        figures |= measure_speed(root / "speed")
        say("speed", began)
        bases = {step: bench.fit(step) for step in (STEP, FINE_STEP)}
        coarse = store(root / "coarse", bench, data, bases[STEP])
        fine = store(root / "fine", bench, data, bases[FINE_STEP])
        top_64 = store(root / "top-64", bench, data, None)
        say("stored", began)
    measured = measure_frontier(bench, data, bases)
    say("frontier", began)
    figures |= summary(measured, coarse, fine, top_64)
    figures |= run_kills(10)
    say("kills", began)
    figures |= run_flips(20)
    say("flips", began)
    write_results(figures, measured, time.monotonic() - began)
    print(json.dumps(figures), flush=True)


def say(what: str, began: float) -> None:
    """Progress, on standard error."""
    print(f"{time.monotonic() - began:6.0f} s  {what}", file=sys.stderr, flush=True)


def make_bench(data: RealLogits) -> Bench:
    """Moments and axes from the calibration rows."""
    head_VH = torch.from_numpy(data.head_VH)
    moments = Moments(head_VH, temperature=TEMPERATURE)
    calibration_NH = torch.from_numpy(data.calibration_NH)
    for block_NH in calibration_NH.split(512):
        moments.add(block_NH, block_NH @ head_VH.T)
    return Bench(head_VH, find_axes(moments, None), calibration_NH)


def store(path: Path, bench: Bench, data: RealLogits, basis: Basis | None) -> dict[str, float]:
    """Writes the evaluation text's masked rows as a real cache; with a basis, as sketches alone.

    Without one: the top 64 with an even tail. Returns bytes a position, of the basis, and times.
    """
    encoder = SketchEncoder.of(basis, torch.device("cpu")) if basis is not None else None
    size = len(data.head_VH)
    tail = EvenTail()
    if basis is not None:
        tail = SketchTail(
            asks="step",
            amount=basis.step,
            temperature=TEMPERATURE,
            rank=None,
            calibration_records=1,
        )
    kept = kept_of(size, top_k=0 if basis is not None else 64, tail=tail)
    encode_seconds = 0.0

    def answer(q: int, view: int, chunk_C: np.ndarray) -> KeptTargets:
        nonlocal encode_seconds
        hidden_MH = torch.from_numpy(rows_at(data.code, q, view, chunk_C))
        logits_MV = bench.logits(hidden_MH)
        gold_M = torch.from_numpy(data.code.gold_VQP[view, q, chunk_C]).long()
        ids_MK, logits_MK = keep_top_k(logits_MV, k=kept.top_k)
        began = time.perf_counter()
        sketch_MR = np.zeros((len(chunk_C), 0), np.int16)
        if encoder is not None:
            sketch_MR = encoder.encode(hidden_MH, logits_MV).numpy()
        encode_seconds += time.perf_counter() - began
        return KeptTargets(
            ids_MK=ids_MK.int().numpy(),
            logits_MK=logits_MK.numpy(),
            logsumexp_MJ=logsumexp_at(logits_MV, TEMPERATURES).numpy(),
            gold_logp_M=gold_logp(logits_MV, gold_M).numpy(),
            sketch_MR=sketch_MR,
            temperatures=TEMPERATURES,
            vocab_size=size,
        )

    content = shard_of(0, data.code.ids_QS, answer)
    calibrate = None if basis is None else lambda: Calibrated(basis=basis, report=report_of(basis))
    with open_writer(path, kept, calibrate) as writer:
        entry = writer.commit(content)
    num_positions = entry.counts.num_token_rows
    ledger = sum(file.stat().st_size for file in (path / "ledger").iterdir())
    reader = CacheReader.open(path)
    found = {
        "positions": num_positions,
        "bytes_per_position": (entry.num_bytes + ledger) / num_positions,
        "decoder_bytes": sum(file.size for file in reader.manifest.basis),
        "encode_ms_per_position": 1e3 * encode_seconds / num_positions,
    }
    if basis is not None:
        found["read_sketch_positions_per_s"] = sketch_read_speed(
            path / "large", kept, content, basis
        )
    return found


def report_of(basis: Basis) -> Calibration:
    """What the manifest says of a basis that this benchmark has made itself."""
    return Calibration(
        positions=1,
        search_positions=0,
        hidden_size=len(basis.mean_H),
        rank=basis.rank,
        step=basis.step,
        bytes_per_position=None,
        overfit_bytes=None,
        kl={},
        grad_error=None,
    )


def sketch_read_speed(path: Path, kept: Any, content: ShardContent, basis: Basis) -> float:
    """Positions a second of one core through the loader, from shards of the usual 64k positions."""
    copies = max(1, 65_536 // sum(len(stored.targets.chunk_C) for stored in content.views))
    count = len(content.examples)
    large = ShardContent(
        part=0,
        view_start=0,
        view_stop=NUM_VIEWS,
        examples=content.examples * copies,
        views=tuple(
            type(stored)(
                example=stored.example + count * copy,
                corruption=stored.corruption,
                targets=stored.targets,
            )
            for copy in range(copies)
            for stored in content.views
        ),
        skips=(),
    )
    calibrated = Calibrated(basis=basis, report=report_of(basis))
    with open_writer(path, kept, lambda: calibrated) as writer:
        writer.commit(large)
    return read_all(path, has_tokens=True)["positions_per_s"]


def read_all(path: Path, *, has_tokens: bool) -> dict[str, float]:
    """One epoch through the loader: positions a second of processor time, and peak memory."""
    reader = CacheReader.open(path)
    basis = reader.read_basis()
    stream = CacheStream(reader, batch_size=8, seed=0, has_tokens=has_tokens, basis=basis, lanes=1)
    num_positions = 0
    began = time.process_time()
    batches = stream.batches()
    for _ in range(stream.num_views // 8):
        batch = next(batches)
        assert batch.row_M is not None, "rows come with their positions"
        num_positions += len(batch.row_M)
    seconds = time.process_time() - began
    return {"positions_per_s": num_positions / seconds, "peak_mib": peak_mib()}


def peak_mib() -> float:
    """The most memory that this process has held, without what its parent held at the fork."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def measure_speed(root: Path) -> dict[str, Any]:
    """Writing and reading at k = 16, from ten thousand positions to a million."""
    write: dict[int, float] = {}
    read: dict[int, dict[str, float]] = {}
    for size in _SIZES:
        path = root / str(size)
        seconds, num_positions = 0.0, 0
        kept = kept_of(49_152, top_k=_THROUGHPUT_K, tail=EvenTail())
        with open_writer(path, kept) as writer:
            for content in random_shards(size, 49_152, _THROUGHPUT_K):
                began = time.process_time()
                entry = writer.commit(content)
                seconds += time.process_time() - began
                num_positions += entry.counts.num_token_rows
        write[size] = num_positions / seconds
        child = [sys.executable, __file__, "--read", str(path)]
        found = subprocess.run(child, check=True, capture_output=True, text=True)
        read[size] = json.loads(found.stdout.splitlines()[-1])
    return {
        "write_positions_per_s": write[_SIZES[-1]],
        "read_positions_per_s": read[_SIZES[-1]]["positions_per_s"],
        "write_positions_per_s_by_size": write,
        "read_positions_per_s_by_size": {n: r["positions_per_s"] for n, r in read.items()},
        "reader_peak_mib_by_size": {n: r["peak_mib"] for n, r in read.items()},
    }


def measure_frontier(
    bench: Bench,
    data: RealLogits,
    bases: dict[float, Basis],
) -> list[Measured]:
    """Every method on both texts."""
    flat = data.code.hidden_VQPH.reshape(-1, data.code.hidden_VQPH.shape[-1])
    sample_MH = torch.from_numpy(flat[:: max(1, len(flat) // 2048)][:2048])
    methods = [
        *(
            lambda step=step: bench.sketch(bases.get(step) or bench.fit(step), sample_MH)
            for step in STEPS
        ),
        lambda: bench.plain(0.14, sample_MH),
        lambda: bench.plain(0.09, sample_MH),
        *(
            lambda k=k, mean=mean: bench.top_k(k, sample_MH, mean_logit=mean)
            for mean in (False, True)
            for k in (16, 32, 64, 128)
        ),
        lambda: bench.polynomial(sample_MH),
        bench.sampling,
    ]
    measured: list[Measured] = []
    for make in methods:
        method = make()
        for text, scored in (("code", data.code), ("prose", data.prose)):
            measured.append(bench.measure(method, scored, text))
        last = measured[-2]
        kl, error = last.kl[2.0], last.grad_error[2.0, 0.3]
        print(
            f"    {last.name:32s} {last.num_bytes:6.1f} B  KL {kl[0]:.4f}  rel {error[0]:.4f}",
            file=sys.stderr,
            flush=True,
        )
    return measured


def summary(
    measured: list[Measured],
    coarse: dict[str, float],
    fine: dict[str, float],
    top_64: dict[str, float],
) -> dict[str, Any]:
    """The figures that the last line holds, on the library's text at T = 2, lambda 0.3."""
    by_name = {one.name: one for one in measured if one.text == "code"}

    def errors(name: str) -> tuple[float, float]:
        one = by_name[name]
        return one.kl[TEMPERATURE][0], one.grad_error[TEMPERATURE, 0.3][0]

    kl, error = errors(f"sketch, step {STEP:g}")
    fine_kl, fine_error = errors(f"sketch, step {FINE_STEP:g}")
    plain_kl, plain_error = errors("top-64, even tail")
    return {
        "stored_positions": coarse["positions"],
        "gradient_positions": 1200,
        "bytes_per_position": coarse["bytes_per_position"],
        "kl_T2": kl,
        "tidal_grad_rel_error": error,
        "fine_bytes_per_position": fine["bytes_per_position"],
        "fine_kl_T2": fine_kl,
        "fine_tidal_grad_rel_error": fine_error,
        "topk64_uniform_bytes": top_64["bytes_per_position"],
        "topk64_uniform_kl_T2": plain_kl,
        "topk64_uniform_grad_rel_error": plain_error,
        "decoder_bytes": coarse["decoder_bytes"],
        "encode_ms_per_position": coarse["encode_ms_per_position"],
        "read_sketch_positions_per_s": coarse["read_sketch_positions_per_s"],
    }


def write_results(figures: dict[str, Any], measured: list[Measured], seconds: float) -> None:
    """The committed results, with machine and date, and the picture of the frontier."""
    facts = {
        "command": "make bench-cache",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "seconds": round(seconds),
    }
    rows = [
        asdict(one)
        | {
            "kl": {f"T={t:g}": value for t, value in one.kl.items()},
            "grad_error": {
                f"T={t:g} lambda={share:g}": value for (t, share), value in one.grad_error.items()
            },
        }
        for one in measured
    ]
    _RESULTS.parent.mkdir(exist_ok=True)
    text = json.dumps({"facts": facts, "figures": figures, "frontier": rows}, indent=1)
    _RESULTS.write_text(text + "\n", encoding="utf-8")
    draw_frontier(rows, _PICTURE)


if __name__ == "__main__":
    main()
