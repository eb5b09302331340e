"""What stage 1 will answer: the very masks are drawn, so nothing of it is a guess.

From a sample of the records the counts are scaled up, and so are estimates.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pipeline.config.recipe import Recipe
from pipeline.diffusion.compdemo import split_mask
from pipeline.diffusion.corrupt import corrupt
from pipeline.plan.examples import Examples, Split
from pipeline.teacher.calibrate import passes_to_run
from pipeline.teacher.examples import reserved_for
from pipeline.teacher.identity import noise_identity
from storage_schemas.examples import Pair
from storage_schemas.identity import KeptIdentity, NoiseIdentity
from storage_schemas.manifest import Counts
from storage_schemas.views import TeacherPass


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCounts:
    """What the cache will hold, and what the models read, padding left out.

    answered: teacher tokens that are answered, kept or not. teacher_tokens: what the passes read,
    block-wise the clean and the noised half; a pass that answers nothing is never run.
    calibration_*: on top, once a cache. student_tokens: what one epoch of stage 2 reads, the clean
    and the noised half.
    """

    stored: Counts
    num_shards: int
    answered: int
    passes: int
    teacher_tokens: int
    calibration_passes: int
    calibration_tokens: int
    student_tokens: int


class ViewCounts:
    """Counts view by view of the sampled records, kept: settings share most of their views."""

    def __init__(self, examples: Examples, recipe: Recipe) -> None:
        """The recipe's lengths, models and noise seed hold for every setting counted."""
        self.examples = examples
        self._noise = recipe.noise
        self._halves = 1 if recipe.teacher_block_size is None else 2
        self._kept: dict[tuple[int, int, float | None], Counter[str]] = {}

    def count(
        self, recipe: Recipe, kept: KeptIdentity, split: Split, hidden_size: int | None
    ) -> StageCounts:
        """The counts of one setting. hidden_size: the teacher's, where a tail is calibrated."""
        noise = noise_identity(recipe)
        sums: Counter[str] = Counter()
        for pair in split.cached:
            for view in range(recipe.noise.views):
                sums.update(self._of_view(pair, view, noise.demo_ratio))
        sums = self._scaled(sums)
        skips = self._scaled(Counter(skip.reason for skip in split.skips))
        passes, tokens = self._calibration(noise, kept, split, hidden_size)
        return StageCounts(
            stored=Counts(
                num_records=self.examples.num_records,
                num_examples=round(len(split.cached) * self.examples.scale),
                num_views=sums["views"],
                num_chunks=sums["chunks"],
                num_masked=sums["masked"],
                num_token_rows=sums["rows"] if kept.has_tokens else 0,
                num_joint_rows=sums["joint"] if kept.has_tokens else 0,
                skips={reason: skips[reason] for reason in sorted(skips) if skips[reason]},
            ),
            num_shards=self.examples.num_parts,
            answered=sums["rows"],
            passes=sums["passes"],
            teacher_tokens=sums["teacher"],
            calibration_passes=passes,
            calibration_tokens=tokens,
            student_tokens=sums["student"],
        )

    def _scaled(self, counts: Counter[str]) -> Counter[str]:
        return Counter({name: round(n * self.examples.scale) for name, n in counts.items()})

    def _of_view(self, pair: Pair, view: int, ratio: float | None) -> Counter[str]:
        key = (id(pair), view, ratio)  # a record's id may come again in another part
        if key not in self._kept:
            self._kept[key] = self._counted(pair, view, ratio)
        return self._kept[key]

    def _counted(self, pair: Pair, view: int, ratio: float | None) -> Counter[str]:
        noise = corrupt(
            pair, seed=self._noise.seed, view=view, eps=self._noise.eps, times=self._noise.times
        )
        size_C = np.diff(pair.chunks_C4[noise.is_masked_C, :2], axis=1)[:, 0]
        halves = (noise.is_masked_C,)
        if ratio is not None:
            halves = split_mask(
                noise.is_masked_C,
                ratio=ratio,
                seed=self._noise.seed,
                record_id=pair.record_id,
                view=view,
            )
        passes = sum(bool(is_answered_C.any()) for is_answered_C in halves)
        return Counter(
            views=1,
            chunks=len(size_C),
            masked=int(noise.is_masked_S.sum()),
            rows=int(size_C.sum()),
            joint=int(size_C[size_C > 1].sum()),
            passes=passes,
            teacher=passes * self._halves * len(pair.teacher_ids_T),
            student=2 * len(pair.student_ids_S),
        )

    def _calibration(
        self, noise: NoiseIdentity, kept: KeptIdentity, split: Split, hidden_size: int | None
    ) -> tuple[int, int]:
        """Passes and tokens; in a sample, other records stand in for the reserved ones."""
        if not kept.calibration_records:
            return 0, 0
        assert hidden_size is not None, "a calibrated tail's cost depends on the hidden size"
        pairs = split.reserved
        if not self.examples.is_whole:
            usable = len(split.cached) / max(1, len(self.examples.sampled))
            pairs = split.cached[: round(kept.calibration_records * usable)]
        reserved = reserved_for(pairs, noise, self.examples.teacher.mask_id)
        passes = list(_run(passes_to_run(reserved, kept, hidden_size)))
        return len(passes), sum(self._halves * len(one.clean_ids_T) for one in passes)


def _run(passes: Iterable[TeacherPass]) -> Iterable[TeacherPass]:
    return (one for one in passes if one.is_answered_T.any())
