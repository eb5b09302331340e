"""One run: its cache if it is not there yet, its student, and the student's scores.

Axes: R held-out record, L noise level.
"""

import fcntl
import hashlib
import json
import shutil
import time
import tomllib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from pipeline.config.models import StudentConfig
from pipeline.config.recipe import Recipe, parse_recipe
from pipeline.demo.corpus import ASSETS, write_jsonl
from pipeline.demo.train_models import train
from pipeline.evaluate.heldout import HeldOut, evaluate_held_out
from pipeline.evaluate.scores import HeldOutScores
from pipeline.student.model import load_student
from pipeline.student_train import run_student_train
from pipeline.study.arms import BATCH, Arm, CacheArm, Run, Targets, digest
from pipeline.study.data import (
    BLOCK_SIZE,
    CALIBRATION_RECORDS,
    LENGTH,
    TEACHER_LENGTH,
    held_out,
    student_tokenizer,
    training_records,
)
from pipeline.teacher_cache import run_teacher_cache

_TEACHERS = {"A": "teacher-a", "B": "teacher-b"}
_RECIPES = {"A": "demo_cross.toml", "B": "demo_shared.toml"}
_TARGETS: dict[Targets, tuple[str, ...]] = {
    "chunks": ("targets.k=0",),
    "sketch 0.15": ("targets.tail.type=sketch", "targets.tail.grad_error=0.15"),
    "top 8 even": ("targets.tail.type=even", "targets.k=8"),
    "top 64 even": ("targets.tail.type=even", "targets.k=64"),
    "exact": ("targets.tail.type=even", "targets.k=4096"),
}


def run_one(run: Run, output: Path) -> dict[str, Any]:
    """The run's row; what it is based on is made, or found, under `output`."""
    start = make_start(output) if run.arm.start == "early" else weights_digest(ASSETS / "student")
    path = output / "rows" / f"{run.key}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    cache_row = make_cache(run.arm.cache, run.seed, output)
    recipe = student_recipe(run.arm, run.seed, output)
    began = time.monotonic()
    summary = run_student_train(recipe, shows_progress=False)
    seconds = time.monotonic() - began
    scores = score(Path(recipe.train.output) / "final", run)
    row = {
        "run": asdict(run),
        "start": start,
        "cache": cache_row,
        "steps": summary.steps,
        "seconds": seconds,
        "metrics": summary.metrics,
        "scores": score_fields(scores),
    }
    write_json(path, row)
    for checkpoint in Path(recipe.train.output).glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return row


def make_start(output: Path) -> str:
    """Train what every student starts from, if it is not there yet; a digest of its weights."""
    folder = start_folder(output)
    with _alone(folder):
        train("student-early", folder)
    return weights_digest(folder)


def weights_digest(folder: Path) -> str:
    """Sixteen hex digits of a model's weights."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]


def start_folder(output: Path) -> Path:
    """Where the start is."""
    return output / "start"


def make_cache(arm: CacheArm, seed: int, output: Path) -> dict[str, Any]:
    """Stage 1 for this seed; what it cost and holds. One process at a time makes it."""
    folder = output / "caches" / cache_name(arm, seed)
    about = folder.with_suffix(".json")
    with _alone(folder):
        if about.exists():
            return json.loads(about.read_text(encoding="utf-8"))
        recipe = cache_recipe(arm, seed, output)
        with_reserved = _reserves(arm.targets)
        records = training_records(seed, arm.records, with_reserved=with_reserved)
        path = records_path(arm, seed, output)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(records, path)
        summary = run_teacher_cache(recipe)
        row = {
            "digest": summary.digest,
            "seconds": summary.seconds,
            # without the basis of sketches, once a cache: for so few positions it would be most
            "bytes": sum(file.stat().st_size for file in _files(folder / "shards")),
            "counts": summary.counts.model_dump(mode="json"),
        }
        write_json(about, row)
        return row


def cache_recipe(arm: CacheArm, seed: int, output: Path) -> Recipe:
    """The demo's recipe of that pipeline, with the arm's noise and targets."""
    fields = tomllib.loads((files("flows") / "recipes" / _RECIPES[arm.pipeline]).read_text("utf-8"))
    fields["noise"].pop("compdemo", None)
    name = cache_name(arm, seed)
    overrides = [
        *_TARGETS[arm.targets],
        f"records.paths={json.dumps([str(records_path(arm, seed, output))])}",
        f"student.model={json.dumps(str(start_folder(output)))}",
        f"student.length={LENGTH}",
        f"student.block_size={BLOCK_SIZE}",
        f"teacher.model={json.dumps(str(ASSETS / _TEACHERS[arm.pipeline]))}",
        f"teacher.length={TEACHER_LENGTH}",
        f"cache.path={json.dumps(str(output / 'caches' / name))}",
        "cache.records_per_part=64",
        f"noise.seed={seed}",
        f"noise.views={arm.views}",
        f"noise.times={arm.times}",
        "objective.type=masked_nll",
    ]
    if arm.compdemo is not None:
        overrides.append(f"noise.compdemo.ratio={arm.compdemo}")
    if _reserves(arm.targets):
        overrides.append(f"targets.tail.calibration_records={CALIBRATION_RECORDS}")
    return parse_recipe(fields, where=name, overrides=overrides)


def student_recipe(arm: Arm, seed: int, output: Path) -> Recipe:
    """The same, with the arm's objective, rate and steps."""
    recipe = cache_recipe(arm.cache, seed, output)
    views = arm.cache.records * arm.cache.views
    name = f"{arm.key}-{seed}"
    overrides = [
        f"objective.type={arm.objective}",
        *(f"objective.{setting}" for setting in arm.settings),
        f"train.output={json.dumps(str(output / 'students' / name))}",
        f"train.epochs={max(1, -(-arm.steps * BATCH // views))}",
        f"train.max_steps={arm.steps}",
        f"train.batch_size={BATCH}",
        f"train.learning_rate={arm.learning_rate}",
        f"train.seed={seed}",
        "train.loader_workers=0",
    ]
    if arm.start == "finished":
        overrides.append(f"student.model={json.dumps(str(ASSETS / 'student'))}")
    return parse_recipe(recipe.model_dump(mode="json"), where=name, overrides=overrides)


def student_folder(run: Run, output: Path) -> Path:
    """Where a run's student is."""
    return output / "students" / f"{run.arm.key}-{run.seed}"


def records_path(arm: CacheArm, seed: int, output: Path) -> Path:
    """Where the records of an arm's cache are."""
    return output / "records" / f"{cache_name(arm, seed)}.jsonl"


def cache_name(arm: CacheArm, seed: int) -> str:
    """The folder of an arm's cache under a seed."""
    return f"{digest(asdict(arm))}-{seed}"


def score(model: Path, run: Run) -> HeldOutScores:
    """A student's scores on the half of the held-out files that the run is judged on."""
    return score_model(model, _masks(run.split))


def score_model(path: Path, masks: HeldOut) -> HeldOutScores:
    """The scores of any model that reads as the student does."""
    return evaluate_held_out(
        load_model(path), masks, mask_id=student_tokenizer().mask_id, block_size=BLOCK_SIZE
    )


def load_model(path: Path) -> PreTrainedModel:
    """A saved student, or a teacher that reads as the student does."""
    return load_student(StudentConfig(model=str(path), length=LENGTH, block_size=BLOCK_SIZE))


def score_fields(scores: HeldOutScores) -> dict[str, Any]:
    """What is kept of them: by record what the bound needs, by level the sums over records."""
    content = scores.content
    return {
        "fingerprint": scores.fingerprint,
        "record_ids": list(scores.record_ids),
        "bound_R": content.bound_R.tolist(),
        "tokens_R": content.num_maskable_R.tolist(),
        "correct_R": content.num_correct_RL.sum(1).tolist(),
        "masked_R": content.num_masked_RL.sum(1).tolist(),
        "levels": list(content.levels),
        "nll_L": content.nll_L.tolist(),
        "accuracy_L": content.accuracy_L.tolist(),
    }


@cache
def _masks(split: Any) -> HeldOut:
    return held_out(split)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _reserves(targets: Targets) -> bool:
    return targets.startswith("sketch")


def write_json(path: Path, row: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(json.dumps(row), encoding="utf-8")
    scratch.replace(path)


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """No other process of the study makes this cache meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
