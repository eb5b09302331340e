"""A short look at the live teacher: tokens a second, and rows that it really gave."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from pipeline.config.recipe import Recipe
from pipeline.diffusion.compdemo import teacher_passes
from pipeline.diffusion.corrupt import corrupt
from pipeline.plan.examples import Examples, Split
from pipeline.teacher.answer import all_finite, answer_views
from pipeline.teacher.backend import TeacherBackend
from pipeline.teacher.calibrate import calibrate
from pipeline.teacher.examples import reserved_for
from pipeline.teacher.identity import noise_identity
from pipeline.teacher.keep import Keep, keep_of
from pipeline.teacher.load import load_backend
from storage_schemas.basis import Basis
from storage_schemas.examples import Pair
from storage_schemas.identity import KeptIdentity
from storage_schemas.manifest import Calibration
from storage_schemas.shard import ShardContent, StoredView
from storage_schemas.views import Corruption


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the teacher gave: a shard of its answers, and how fast it read them.

    seconds: of the scoring and keeping of `teacher_tokens`, after one view to warm up.
    """

    teacher_tokens: int
    seconds: float
    content: ShardContent
    basis: Basis | None
    calibration: Calibration | None

    @property
    def tokens_per_second(self) -> float:
        """What the teacher reads in a second, padding not counted."""
        return self.teacher_tokens / self.seconds


def measure_teacher(
    recipe: Recipe, examples: Examples, split: Split, kept: KeptIdentity, *, num_views: int
) -> Measured:
    """Loads the teacher, calibrates where the tail asks for it, and scores that many views.

    The views are spread over the sampled records. Of a sample, other records stand in for the
    reserved ones.
    """
    noise, mask_id = noise_identity(recipe), examples.teacher.mask_id
    basis, calibration = None, None
    with closing(load_backend(recipe.teacher, block_size=recipe.teacher_block_size)) as backend:
        if kept.calibration_records:
            own = split.reserved if examples.is_whole else split.cached[: kept.calibration_records]
            made = calibrate(backend, reserved_for(own, noise, mask_id), kept)
            basis, calibration = made.basis, made.report
        keep = keep_of(kept, basis)
        views = _spread(split.cached, recipe, num_views)
        _content(recipe, backend, views[:1], keep, mask_id)
        began = time.perf_counter()
        content = _content(recipe, backend, views, keep, mask_id)
        seconds = time.perf_counter() - began
    halves = 1 if recipe.teacher_block_size is None else 2
    tokens = sum(
        halves * len(one.clean_ids_T)
        for pair, noised in views
        for one in teacher_passes(
            pair, noised, mask_id=mask_id, seed=noise.seed, demo_ratio=noise.demo_ratio
        )
        if one.is_answered_T.any()
    )
    return Measured(
        teacher_tokens=tokens,
        seconds=seconds,
        content=content,
        basis=basis,
        calibration=calibration,
    )


def _spread(pairs: Sequence[Pair], recipe: Recipe, count: int) -> list[tuple[Pair, Corruption]]:
    """Views at even distances among all of them."""
    noise = recipe.noise
    last = len(pairs) * noise.views - 1
    numbers = np.unique(np.linspace(0, last, min(count, last + 1)).round().astype(int))
    places = [divmod(int(number), noise.views) for number in numbers]
    return [
        (pairs[i], corrupt(pairs[i], seed=noise.seed, view=view, eps=noise.eps, times=noise.times))
        for i, view in places
    ]


def _content(
    recipe: Recipe,
    backend: TeacherBackend,
    views: Sequence[tuple[Pair, Corruption]],
    keep: Keep,
    mask_id: int,
) -> ShardContent:
    """A shard of these views, each of an example of its own, with the teacher's answers."""
    noise = noise_identity(recipe)
    answers = answer_views(
        backend, views, mask_id=mask_id, seed=noise.seed, demo_ratio=noise.demo_ratio, keep=keep
    )
    found = all_finite(views, answers)
    return ShardContent(
        part=0,
        view_start=0,
        view_stop=recipe.noise.views,
        examples=tuple(pair for pair, _ in views),
        views=tuple(
            StoredView(example=row, corruption=noised, targets=targets)
            for row, ((_, noised), targets) in enumerate(zip(views, found, strict=True))
        ),
        skips=(),
    )
