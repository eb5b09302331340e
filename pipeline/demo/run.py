"""The demo: both pipelines and their controls on the bundled models and real text, then a report.

What is finished already, caches and students, is found and kept; only the scores are taken anew.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from transformers.utils import logging as transformers_logging

from pipeline.config.models import StudentConfig
from pipeline.config.recipe import load_recipe
from pipeline.demo.bars import Bars, show_bars
from pipeline.demo.corpus import ASSETS
from pipeline.demo.page import make_page
from pipeline.demo.recipes import FULL, QUICK, choose_records, write_recipes
from pipeline.demo.report import print_report, write_results
from pipeline.demo.result import Comparison, DemoResult, Row, Seconds
from pipeline.demo.stages import run_stage_1, run_stage_2, start_prefect
from pipeline.evaluate.heldout import HeldOut, draw_held_out, evaluate_held_out, paired_difference
from pipeline.student.model import load_student
from pipeline.text.tokenizer import ChatTokenizer

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Student:
    """One run of stage 2; its folder is students/KEY."""

    key: str
    label: str
    recipe: str
    overrides: tuple[str, ...] = ()


_CONTROL = ("objective.type=masked_nll",)
_STUDENTS = (
    _Student(key="cross-control", label="A  CE only", recipe="cross", overrides=_CONTROL),
    _Student(key="cross", label="A  TIDE-Cross", recipe="cross"),
    _Student(key="shared-control", label="B  CE only", recipe="shared", overrides=_CONTROL),
    _Student(key="shared", label="B  TIDE-Shared", recipe="shared"),
)


def run_demo(output: Path, *, quick: bool = False, assets: Path = ASSETS) -> DemoResult:
    """Runs what is not finished under `output`, scores every model, and prints the report.

    `assets` holds the folders student, teacher-a and teacher-b.
    """
    began = time.monotonic()
    console = Console()
    console.print("Reading the standard library, and starting Prefect ...")
    _quiet()
    size = QUICK if quick else FULL
    recipes = write_recipes(output, size, assets)
    start_prefect(output)
    with show_bars(console) as bars:
        caches, stage_1 = _timed(lambda: fill_caches(recipes, bars))
        _, stage_2 = _timed(lambda: train_students(recipes, output, bars))
        (rows, held_out), evaluation = _timed(
            lambda: score_models(output, assets, recipes, size.held_out_records, bars)
        )
        _, report = _timed(lambda: make_page(output, recipes, rows, held_out, caches, bars))
    result = DemoResult(
        output=output,
        rows=rows,
        comparisons=compare(rows),
        seconds=Seconds(
            stage_1=stage_1,
            stage_2=stage_2,
            evaluation=evaluation,
            report=report,
            total=time.monotonic() - began,
        ),
    )
    write_results(result)
    print_report(result, console)
    return result


def fill_caches(recipes: Mapping[str, Path], bars: Bars) -> list[dict[str, Any]]:
    """Stage 1 of both pipelines, and its results."""
    results: list[dict[str, Any]] = []
    for letter, name in (("A", "cross"), ("B", "shared")):
        with bars.bar(f"{letter}  teacher's answers", "shards") as advance:
            results.append(run_stage_1(recipes[name], (), advance))
    return results


def train_students(recipes: Mapping[str, Path], output: Path, bars: Bars) -> None:
    """Stage 2 of both pipelines and of their controls: same start, same steps, same views."""
    for student in _STUDENTS:
        folder = (output / "students" / student.key).resolve()
        overrides = (*student.overrides, f"train.output={folder}")
        with bars.bar(student.label, "steps") as advance:
            run_stage_2(recipes[student.recipe], overrides, advance)


def score_models(
    output: Path, assets: Path, recipes: Mapping[str, Path], num_records: int, bars: Bars
) -> tuple[tuple[Row, ...], HeldOut]:
    """Every model on the same masks; teacher B reads what the students read, teacher A does not."""
    configs = [load_recipe(path).student for path in recipes.values()]
    assert all(config == configs[0] for config in configs), "one student, read in one way"
    student = configs[0]
    tokenizer = ChatTokenizer.load(student.model)
    held_out = store_held_out(
        output / "held-out" / "masks.parquet", tokenizer, student, num_records
    )
    models = {
        "start": ("start", assets / "student"),
        **{s.key: (s.label, output / "students" / s.key / "final") for s in _STUDENTS},
        "teacher-b": ("teacher B", assets / "teacher-b"),
    }
    rows: list[Row] = []
    for key, (label, path) in models.items():
        model = load_student(student.model_copy(update={"model": str(path)}))
        with bars.bar(f"held-out likelihood: {label}", "masks") as advance:
            scores = evaluate_held_out(
                model,
                held_out,
                mask_id=tokenizer.mask_id,
                block_size=student.block_size,
                on_progress=advance,
            )
        rows.append(Row(key=key, label=label, model=path, scores=scores))
    return tuple(rows), held_out


def store_held_out(
    path: Path, tokenizer: ChatTokenizer, student: StudentConfig, num_records: int
) -> HeldOut:
    """The held-out masks, read back from the file that they are kept in."""
    drawn, _ = draw_held_out(
        choose_records("held_out", num_records),
        tokenizer,
        length=student.length,
        block_size=student.block_size,
    )
    drawn.save(path)
    return HeldOut.load(path)


def compare(rows: tuple[Row, ...]) -> tuple[Comparison, ...]:
    """Each distilled student minus its control, then every model minus the start."""
    scores = {row.key: row.scores for row in rows}
    pairs = [("cross", "cross-control"), ("shared", "shared-control")]
    pairs += [(key, "start") for key in scores if key != "start"]
    return tuple(
        Comparison(key=key, minus=minus, difference=paired_difference(scores[key], scores[minus]))
        for key, minus in pairs
    )


def _quiet() -> None:
    """The bars say it all: other bars, and warnings about what is meant to be so, would disturb."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("pipeline").setLevel(logging.ERROR)


def _timed(work: Callable[[], _T]) -> tuple[_T, float]:
    """What it returns, and the seconds it took."""
    began = time.monotonic()
    return work(), time.monotonic() - began
