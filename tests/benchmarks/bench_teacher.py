"""Stage 1 at full speed: what share of it is the teacher, and how fast the teacher is.

`make bench-teacher` rewrites results/teacher.json; the last line is JSON. A native Qwen3 of 50M
random parameters, 256 real sequences of 64 to 256 tokens, float32, one thread unless `--threads`
says otherwise. Engines are warm: loading, self-checks and a first batch are left out of every time.
Ratios are medians of alternating runs.

forward_share: body and head, of the wall time of stage 1 with chunk targets and their top 16 on our
transformers backend (in vLLM's workers it cannot be told apart); forward_share_sketch: with the
0.105 sketch at r = 512. shaping_over_cholesky: a row at a time by the Cholesky factor of its dense
r x r metric, over ours. padded_loop_over_ours: a plain loop (batches of 16 in record order, padded,
all logits) over `backend = auto`; sorted_loop_over_ours: the same loop sorted by length.
vllm_over_transformers: our transformers backend over vLLM. vllm_ids_equal: share of the top 16 with
equal ids, where a rank's gap to both neighbours exceeds twice the row's largest logit error;
vllm_ids_near_ties: share of the ranks that are nearer.
"""

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from native_model import HIDDEN, VOCAB, NativeTeacher
from torch import Tensor

from pipeline.diffusion.block_mask import hide_padding
from pipeline.targets.calibrate import Moments, find_axes, fitted
from pipeline.targets.sketch import SketchEncoder, num_likely, round_shaped, shrink
from pipeline.teacher.backend import TeacherBackend
from pipeline.teacher.keep import KeepHidden, KeepTokens, KeptRows
from pipeline.teacher.load import load_backend
from pipeline.teacher.transformers_backend import TransformersBackend
from pipeline.teacher_cache import TeacherCacheStage
from storage_schemas.views import TeacherPass

RUNS, BATCH, TOP_K = 3, 16, 16
STEP, TEMPERATURE = 0.105, 2.0
_RESULTS = Path(__file__).parent / "results" / "teacher.json"
_SHAPED_ROWS, _PLAIN_ROWS = 256, 32


def main() -> None:
    """Measure, and print the line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, help="keep the model and its tokenizer here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-teacher-") as folder:
        root = Path(folder)
        teacher = NativeTeacher.make(arguments.work or root / "teacher")
        passes = teacher.passes()
        tokens, rows = sum(len(p.clean_ids_T) for p in passes), count_rows(passes)
        say(f"{len(passes)} passes, {tokens:,} tokens, {rows:,} answered", began)
        figures = measure_engines(teacher, passes)
        say("engines", began)
        figures |= measure_shares(teacher, root)
        say("shares", began)
        figures |= measure_shaping(teacher, passes)
        say("shaping", began)
        figures |= measure_workers(teacher)
        say("workers", began)
    write_results(figures, arguments.threads, time.monotonic() - began)
    print(json.dumps(figures), flush=True)


def write_results(figures: dict[str, Any], threads: int, seconds: float) -> None:
    """The committed results, with machine and date."""
    facts = {
        "command": "make bench-teacher",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads used",
        "torch": torch.__version__,
        "seconds": round(seconds),
    }
    text = json.dumps({"facts": facts, "figures": figures}, indent=1)
    _RESULTS.write_text(text + "\n", encoding="utf-8")


def say(what: str, began: float) -> None:
    """Progress, on standard error."""
    print(f"{time.monotonic() - began:6.0f} s  {what}", file=sys.stderr, flush=True)


def say_seconds(seconds: dict[str, float]) -> None:
    """The medians behind the ratios, on standard error."""
    line = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
    print(f"         {line}", file=sys.stderr, flush=True)


def count_rows(passes: Sequence[TeacherPass]) -> int:
    """Answered positions of all passes."""
    return sum(int(one.is_answered_T.sum()) for one in passes)


# --- engines


def measure_engines(teacher: NativeTeacher, passes: Sequence[TeacherPass]) -> dict[str, Any]:
    """Ours beside the plain loops, and vLLM's numbers beside transformers'."""
    config = teacher.recipe(teacher.folder / "unused").teacher
    ours = load_backend(config, block_size=None)
    plain = load_backend(config.model_copy(update={"backend": "transformers"}), block_size=None)
    assert isinstance(plain, TransformersBackend), "asked for by name"
    keep = KeepTokens(k=TOP_K, temperatures=(1.0,), vocab_size=VOCAB)
    by_length = sorted(passes, key=lambda one: len(one.clean_ids_T))
    arms: dict[str, Callable[[], object]] = {
        "ours": lambda: list(ours.rows(passes, keep)),
        "padded": lambda: plain_loop(plain, passes),
        "sorted": lambda: plain_loop(plain, by_length),
    }
    if not isinstance(ours, TransformersBackend):
        arms["transformers"] = lambda: list(plain.rows(passes, keep))
    for backend in (ours, plain):  # warm before any clock runs
        list(backend.rows(passes[:BATCH], keep))
    plain_loop(plain, passes[:BATCH])
    seconds = alternate(arms)
    figures: dict[str, Any] = {
        "backend": type(ours).__name__,
        "rows_per_s": count_rows(passes) / seconds["ours"],
        "padded_loop_over_ours": seconds["padded"] / seconds["ours"],
        "sorted_loop_over_ours": seconds["sorted"] / seconds["ours"],
        "vllm_over_transformers": None,
        "vllm_max_logit_error": None,
        "vllm_ids_equal": None,
        "vllm_ids_near_ties": None,
    }
    say_seconds(seconds)
    if not isinstance(ours, TransformersBackend):
        figures["vllm_over_transformers"] = seconds["transformers"] / seconds["ours"]
        figures |= compare(ours, plain, passes, keep)
    ours.close()
    return figures


def alternate(arms: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The median seconds of each, over rounds in which each has its turn."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(RUNS):
        for name, arm in arms.items():
            began = time.perf_counter()
            arm()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


@torch.inference_mode()
def plain_loop(backend: TransformersBackend, passes: Sequence[TeacherPass]) -> list[Any]:
    """What one would write first: SDPA, padded batches of 16, all logits, then the same numbers."""
    model: Any = backend._model
    kept: list[Any] = []
    for at in range(0, len(passes), BATCH):
        batch = passes[at : at + BATCH]
        longest = max(len(one.clean_ids_T) for one in batch)
        ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
        gold_BT, is_real_BT, is_answered_BT = ids_BT.clone(), ids_BT.bool(), ids_BT.bool()
        for row, one in enumerate(batch):
            here = slice(0, len(one.clean_ids_T))
            ids_BT[row, here] = torch.from_numpy(one.noised_ids_T)
            gold_BT[row, here] = torch.from_numpy(one.clean_ids_T)
            is_answered_BT[row, here] = torch.from_numpy(one.is_answered_T)
            is_real_BT[row, here] = True
        everything = torch.ones(longest, longest, dtype=torch.bool)
        logits_BTV = model(
            input_ids=ids_BT, attention_mask=hide_padding(everything, is_real_BT), use_cache=False
        ).logits
        logits_MV = logits_BTV[is_answered_BT].float()
        logsumexp_M = logits_MV.logsumexp(-1)
        gold_M = logits_MV.gather(1, gold_BT[is_answered_BT][:, None])[:, 0] - logsumexp_M
        kept.append((logits_MV.topk(TOP_K), logsumexp_M, gold_M))
    return kept


def compare(
    ours: TeacherBackend,
    plain: TransformersBackend,
    passes: Sequence[TeacherPass],
    keep: KeepTokens,
) -> dict[str, float]:
    """vLLM's logits and ids beside transformers', over every answered row."""
    hidden = [in_order(one, passes, KeepHidden()).hidden_MH for one in (ours, plain)]
    ids = [in_order(one, passes, keep).ids_MK for one in (ours, plain)]
    worst, equal, clear, near = 0.0, 0, 0, 0
    with torch.inference_mode():
        for at in range(0, len(ids[0]), 512):
            rows = slice(at, at + 512)
            got_MV, want_MV = (plain.head(torch.from_numpy(one[rows])).float() for one in hidden)
            error_M = (got_MV - want_MV).abs().amax(-1)
            worst = max(worst, error_M.max().item())
            top_MK = want_MV.topk(TOP_K + 1).values
            gap_MK = (top_MK[:, :-1] - top_MK[:, 1:]).abs()  # to the next rank
            before_MK = torch.cat([torch.full_like(gap_MK[:, :1], torch.inf), gap_MK[:, :-1]], 1)
            is_clear_MK = (torch.minimum(gap_MK, before_MK) > 2 * error_M[:, None]).numpy()
            same_MK = ids[0][rows] == ids[1][rows]
            equal += int((same_MK & is_clear_MK).sum())
            clear += int(is_clear_MK.sum())
            near += int((~is_clear_MK).sum())
    return {
        "vllm_max_logit_error": worst,
        "vllm_ids_equal": equal / clear,
        "vllm_ids_near_ties": near / (clear + near),
    }


def in_order(
    backend: TeacherBackend, passes: Sequence[TeacherPass], keep: KeepTokens | KeepHidden
) -> KeptRows:
    """The kept rows, one batch of passes after the other, by pass and position."""
    blocks = list(backend.rows(passes, keep))
    position_M = np.concatenate([block.position_M for block in blocks])
    order = np.lexsort((position_M, np.concatenate([block.pass_M for block in blocks])))
    joined = KeptRows.joined([block.kept for block in blocks])
    return KeptRows(**{name: getattr(joined, name)[order] for name in KeptRows.__slots__})


# --- shares


@dataclass
class Clock:
    """Seconds inside a model's `forward` and its head, whoever calls them."""

    seconds: float = 0.0
    _began: list[float] = field(default_factory=list)

    def start(self, *_: object) -> None:
        """A module begins; inside another it counts once."""
        self._began.append(time.perf_counter())

    def stop(self, *_: object) -> None:
        """It ends."""
        began = self._began.pop()
        if not self._began:
            self.seconds += time.perf_counter() - began


@contextmanager
def clocked(backend: TransformersBackend) -> Iterator[Clock]:
    """Counts the forward of body and head."""
    clock = Clock()
    modules = (backend._model, backend.head)
    handles = [m.register_forward_pre_hook(clock.start) for m in modules]
    handles += [m.register_forward_hook(clock.stop) for m in modules]
    yield clock
    for handle in handles:
        handle.remove()


def measure_shares(teacher: NativeTeacher, root: Path) -> dict[str, float]:
    """The forward's share of stage 1, whole: records read, aligned, noised, answered, committed."""
    sketch = {
        "pipeline": {"type": "shared_tokenizer", "vocab": VOCAB},
        "student": {"model": str(teacher.folder / "teacher"), "length": 512, "block_size": 32},
        "targets": {
            "type": "tokens",
            "k": TOP_K,
            "tail": {"type": "sketch", "step": STEP, "rank": 512, "calibration_records": 32},
        },
    }
    return {
        "forward_share": share(teacher, root / "chunks", {}),
        "forward_share_sketch": share(teacher, root / "sketch", sketch),
    }


def share(teacher: NativeTeacher, cache: Path, changes: dict[str, Any]) -> float:
    """Seconds of the forward over those of the shards; loading and calibration are over by then."""
    recipe = teacher.recipe(cache, **{"teacher.backend": "transformers"}, **changes)
    with TeacherCacheStage.open(recipe) as stage:
        backend: Any = stage._maker.teacher()
        with clocked(backend) as clock:
            began = time.perf_counter()
            for item in stage.work:
                stage.make_shard(item)
            return clock.seconds / (time.perf_counter() - began)


# --- shaping


def measure_shaping(teacher: NativeTeacher, passes: Sequence[TeacherPass]) -> dict[str, float]:
    """Our shaping of real rows beside a Cholesky factor of each row's dense metric."""
    config = teacher.recipe(teacher.folder / "unused").teacher
    backend = load_backend(config.model_copy(update={"backend": "transformers"}), block_size=None)
    hidden_NH = torch.from_numpy(in_order(backend, passes, KeepHidden()).hidden_MH)
    head_VH = backend.head.weight.detach()

    def logits_of(hidden_MH: Tensor) -> Tensor:
        return hidden_MH @ head_VH.T

    moments = Moments(head_VH, temperature=TEMPERATURE)
    for block_NH in hidden_NH.split(512):
        moments.add(block_NH, logits_of(block_NH))
    basis = fitted(find_axes(moments, None).cut(STEP, HIDDEN), hidden_NH, logits_of, num_rows=256)
    encoder = SketchEncoder.of(basis, torch.device("cpu"))
    chosen = hidden_NH[:: len(hidden_NH) // _SHAPED_ROWS][:_SHAPED_ROWS]
    target_MR = encoder.coefficients(chosen)
    seen_MKR = encoder.seen(logits_of(chosen), num_likely(VOCAB))
    few = slice(0, _PLAIN_ROWS)
    shaped = {}

    def ours() -> None:
        shaped["ours"] = round_shaped(target_MR, seen_MKR, encoder.threshold_R)

    def cholesky() -> None:
        rows = zip(target_MR[few], seen_MKR[few], strict=True)
        shaped["cholesky"] = torch.stack(
            [by_cholesky(target_R, seen_KR, encoder.threshold_R) for target_R, seen_KR in rows]
        )

    seconds = alternate(
        {"ours": ours, "cholesky": cholesky, "factor": lambda: factors(seen_MKR[few])}
    )
    agree = (shaped["ours"][few] == shaped["cholesky"]).double().mean().item()
    ours_a_row = seconds["ours"] / len(target_MR)
    return {
        "shaping_rank": basis.rank,
        "shaping_ms_a_row": 1e3 * ours_a_row,
        "shaping_over_cholesky": seconds["cholesky"] / _PLAIN_ROWS / ours_a_row,
        "shaping_over_factor_alone": seconds["factor"] / _PLAIN_ROWS / ours_a_row,
        "shaping_same_integers": agree,
    }


def factors(seen_MKR: Tensor) -> list[Tensor]:
    """The Cholesky factor of each row's dense metric, and nothing else."""
    return [torch.linalg.cholesky(metric(seen_KR), upper=True) for seen_KR in seen_MKR]


def metric(seen_KR: Tensor) -> Tensor:
    """I + S'S, dense."""
    return torch.eye(seen_KR.shape[1]) + seen_KR.T @ seen_KR


def by_cholesky(target_R: Tensor, seen_KR: Tensor, threshold_R: Tensor) -> Tensor:
    """The same rounding of one row, by the factor of its dense metric, last coefficient first."""
    upper_RR = torch.linalg.cholesky(metric(seen_KR), upper=True)
    whole_R, error_R = torch.empty_like(target_R), torch.zeros_like(target_R)
    for i in range(len(target_R) - 1, -1, -1):
        size = upper_RR[i, i]
        best = target_R[i] + upper_RR[i, i + 1 :] @ error_R[i + 1 :] / size
        whole_R[i] = shrink(best, threshold_R[i] / size**2).round()
        error_R[i] = target_R[i] - whole_R[i]
    return whole_R


# --- workers


def measure_workers(teacher: NativeTeacher) -> dict[str, float]:
    """Two worker processes beside one, in a process of its own: no engine here is in its way."""
    script = Path(__file__).with_name("workers.py")
    command = [sys.executable, str(script), "--work", str(teacher.folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    main()
