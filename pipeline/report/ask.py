"""Every student is loaded once: scored on held-out text, and asked about the cached views."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from pipeline.config.models import StudentConfig
from pipeline.evaluate.heldout import HeldOut, HeldOutScores, evaluate_held_out
from pipeline.report.answers import Answers, student_answers
from pipeline.report.runs import FinishedRun
from pipeline.report.text import Text
from pipeline.report.views import CachedViews
from pipeline.student.model import load_student
from pipeline.text.tokenizer import ChatTokenizer
from storage_schemas.errors import CacheIdentityError, RecipeError

OnProgress = Callable[[str, int, int], None]
"""What is done now, how much of it, and of how much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the caller has found out already, so that it is not done again.

    scores: by the folder of a run. references: models that are no run, by what they are called;
    without any, the runs' start is scored. stage_1_seconds: by the cache's address.
    """

    held_out: HeldOut | None = None
    scores: Mapping[str, HeldOutScores] = field(default_factory=dict[str, HeldOutScores])
    references: Mapping[str, HeldOutScores] = field(default_factory=dict[str, HeldOutScores])
    stage_1_seconds: Mapping[str, float] = field(default_factory=dict[str, float])


NOTHING_KNOWN = Known()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """Who is asked about what."""

    runs: tuple[FinishedRun, ...]
    tokenizer: ChatTokenizer
    text: Text | None
    views: tuple[CachedViews, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """scores and answers by the folder of a run; the answers to each of the caches, in order."""

    scores: Mapping[str, HeldOutScores]
    references: Mapping[str, HeldOutScores]
    answers: tuple[Mapping[str, Answers], ...]
    notes: tuple[str, ...]


def ask_students(asking: Asking, known: Known, on_progress: OnProgress) -> Told:
    """One model is in memory at a time, on a GPU where there is one."""
    for views in asking.views:
        _check_reads_alike(views, asking)
    scores: dict[str, HeldOutScores] = {}
    answers: tuple[dict[str, Answers], ...] = tuple({} for _ in asking.views)
    for run in asking.runs:
        name = str(run.folder)
        is_scored = asking.text is None or name in known.scores
        if is_scored and not asking.views:
            continue
        config = run.recipe.student.model_copy(update={"model": str(run.student), "revision": None})
        model = _load(config)
        if asking.text is not None and not is_scored:
            scores[name] = _score(model, asking.text, asking, f"{name}: held out", on_progress)
        for number, views in enumerate(asking.views):
            on_progress(f"{name}: cached views", number, len(asking.views))
            answers[number][name] = student_answers(model, views, mask_id=asking.tokenizer.mask_id)
            on_progress(f"{name}: cached views", number + 1, len(asking.views))
        del model
    references, notes = dict(known.references), list[str]()
    if asking.text is not None and not references:
        references, notes = _starts(asking, asking.text, on_progress)
    return Told(
        scores={**known.scores, **scores},
        references=references,
        answers=answers,
        notes=tuple(notes),
    )


def _starts(
    asking: Asking, text: Text, on_progress: OnProgress
) -> tuple[dict[str, HeldOutScores], list[str]]:
    """What training began with, where it is still there."""
    configs = {run.recipe.student.model: run.recipe.student for run in asking.runs}
    scores: dict[str, HeldOutScores] = {}
    notes: list[str] = []
    for place, config in configs.items():
        label = "start" if len(configs) == 1 else f"start: {Path(place).name}"
        try:
            model = _load(config)
        except RecipeError:
            notes.append(f"The start {place} is no longer there, so it was not scored.")
            continue
        scores[label] = _score(model, text, asking, f"{label}: held out", on_progress)
    return scores, notes


def _load(config: StudentConfig) -> PreTrainedModel:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return cast("Any", load_student(config)).to(device)


def _score(
    model: PreTrainedModel, text: Text, asking: Asking, what: str, on_progress: OnProgress
) -> HeldOutScores:
    return evaluate_held_out(
        model,
        text.held_out,
        mask_id=asking.tokenizer.mask_id,
        block_size=asking.runs[0].recipe.student.block_size,
        on_progress=lambda done, total: on_progress(what, done, total),
    )


def _check_reads_alike(views: CachedViews, asking: Asking) -> None:
    block_size = asking.runs[0].recipe.student.block_size
    wanted = [
        ("the student's tokenizer", views.student_tokenizer, asking.tokenizer.fingerprint),
        ("the block size", views.block_size, block_size),
    ]
    for what, got, want in wanted:
        if got != want:
            raise CacheIdentityError(
                f"{views.address}: expected a cache made for these students, got another "
                f"{what.removeprefix('the ')}: the cache has {got}, the students have {want}; name "
                "a cache of their own with --cache"
            )
