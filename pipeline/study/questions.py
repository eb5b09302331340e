"""The study's questions, in the order in which they are answered.

Settings are chosen by the tuning questions, on validation files and seeds of their own; the others
use what was chosen (`CHOSEN`), new seeds and the test files, by which nothing was chosen.

The primary metric, named before the runs: held-out likelihood for the forward objectives; masked
accuracy and what is written (share that parses, token match) for the reverse ones, which seek modes
and may cost likelihood.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.study.arms import BATCH, Arm, CacheArm, Pipeline, Question

RECORDS, VIEWS, STEPS = 96, 8, 48
"""Of one seed; every view is read once."""

FEW_RECORDS, READS = 24, 32
"""Where views are counted: each record is read so many times, under old noise or new."""

TUNING_SEEDS, SEEDS = (1000,), (0, 1, 2, 3, 4)
FEW_SEEDS = SEEDS[:3]
"""Of questions beside the main ones."""
RATES = (1e-4, 3e-4, 1e-3)
MORE_STEPS = (24, 96)
"""Tried for the control and the best objective, each at its chosen rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """An objective with what of it is tried; cross-entropy alone has neither."""

    label: str
    objective: str
    temperature: float | None = None
    weight: float = 1.0


def _tried(label: str, objective: str, *values: tuple[int, int]) -> tuple[Setting, ...]:
    return tuple(
        Setting(
            label=f"{label} T={t}" + (f" weight {w}" if w != 1 else ""),
            objective=objective,
            temperature=float(t),
            weight=float(w),
        )
        for t, w in values
    )


CE = Setting(label="CE", objective="masked_nll")
TRIED: Mapping[Pipeline, tuple[Setting, ...]] = {
    "A": (
        CE,
        *_tried("CALM", "calm", (1, 1), (2, 1), (5, 1), (1, 10), (1, 30), (2, 30)),
        *_tried("Reverse CALM", "reverse_calm", (1, 1), (2, 1), (5, 1), (1, 10), (5, 10)),
        *_tried("TIDAL-CALM", "calm_tidal", (1, 1), (2, 1), (5, 1), (1, 30)),
    ),
    "B": (
        CE,
        *_tried("KL", "forward_kl", (1, 1), (2, 1), (1, 3)),
        *_tried("reverse KL", "reverse_kl", (1, 1), (2, 1), (1, 3)),
        *_tried("TIDAL", "tidal_kl", (1, 1), (2, 1), (1, 3)),
    ),
}

CHOSEN: Mapping[Pipeline, Mapping[str, tuple[str, float]]] = {
    "A": {
        "masked_nll": ("CE", 3e-4),
        "calm": ("CALM T=2", 3e-4),
        "reverse_calm": ("Reverse CALM T=1", 3e-4),
        "calm_tidal": ("TIDAL-CALM T=1", 3e-4),
    },
    "B": {
        "masked_nll": ("CE", 3e-4),
        "forward_kl": ("KL T=1 weight 3", 1e-3),
        "reverse_kl": ("reverse KL T=1 weight 3", 1e-3),
        "tidal_kl": ("TIDAL T=1 weight 3", 3e-4),
    },
}
"""By objective: setting and learning rate, the best of each on the validation files.

By likelihood; the reverse ones by masked accuracy, their primary metric.
"""

BEST: Mapping[Pipeline, str] = {"A": "calm", "B": "forward_kl"}
"""The objective that the questions about caches are asked with."""

_TARGETS: Mapping[Pipeline, Literal["chunks", "sketch 0.15"]] = {"A": "chunks", "B": "sketch 0.15"}


def questions() -> list[Question]:
    """All of them, in order."""
    return [
        tuning("B"),
        tuning("A"),
        tuning_steps("B"),
        tuning_steps("A"),
        objectives("B"),
        objectives("A"),
        views("B"),
        targets(),
        temperature(),
        axes(),
        times("B"),
        views("A"),
        ratio(),
        finished(),
    ]


def tuning(pipeline: Pipeline) -> Question:
    """Every setting that was tried; the control has as many rates as the objectives."""
    return Question(
        name=f"tuning {pipeline}",
        asks="which temperature and learning rate each objective gets",
        split="validation",
        seeds=TUNING_SEEDS,
        control=f"CE, {RATES[0]:g}",
        arms={
            f"{setting.label}, {rate:g}": _arm(pipeline, setting, rate)
            for rate in RATES
            for setting in TRIED[pipeline]
        },
    )


def tuning_steps(pipeline: Pipeline) -> Question:
    """Half and twice the steps, for the control and the best objective."""
    both = {"CE": "masked_nll", "best": BEST[pipeline]}
    return Question(
        name=f"steps {pipeline}",
        asks="whether the comparison hangs on the number of steps",
        split="validation",
        seeds=TUNING_SEEDS,
        control=f"CE, {STEPS}",
        arms={
            f"{label}, {steps}": replace(chosen(pipeline, objective), steps=steps)
            for steps in (STEPS, *MORE_STEPS)
            for label, objective in both.items()
        },
    )


def objectives(pipeline: Pipeline) -> Question:
    """The main comparison: same start, steps and views, each at the rate that suits it best."""
    arms = {
        "A": {
            "CE only": chosen("A", "masked_nll"),
            "CALM": chosen("A", "calm"),
            "Reverse CALM": chosen("A", "reverse_calm"),
            "TIDAL-CALM + CompDemo": chosen("A", "calm_tidal", compdemo=0.5),
        },
        "B": {
            "CE only": chosen("B", "masked_nll"),
            "KL": chosen("B", "forward_kl"),
            "reverse KL": chosen("B", "reverse_kl"),
            "TIDAL": chosen("B", "tidal_kl"),
            "TIDAL + CompDemo": chosen("B", "tidal_kl", compdemo=0.5),
        },
    }
    return _test_question(
        f"objectives {pipeline}", "does the teacher help, and by which objective", arms[pipeline]
    )


def views(pipeline: Pipeline) -> Question:
    """From one view, read again and again, to noise that is never seen twice."""
    best = chosen(pipeline, BEST[pipeline])
    cache = replace(best.cache, records=FEW_RECORDS)
    live = replace(cache, views=READS, targets="chunks" if pipeline == "A" else "exact")
    arms = {
        f"views {number}": replace(best, cache=replace(cache, views=number))
        for number in (1, 2, 4, 8, 16)
    }
    return _test_question(
        f"views {pipeline}",
        "how many views a record equal a live teacher",
        {"live": replace(best, cache=live), **arms},
        seeds=FEW_SEEDS,
    )


def targets() -> Question:
    """What is kept of a row: everything, sketches, a top k."""
    best = chosen("B", BEST["B"])
    kinds = ("exact", "sketch 0.15", "top 64 even", "top 8 even")
    return _test_question(
        "targets",
        "what the student loses by sparse targets",
        {kind: replace(best, cache=replace(best.cache, targets=kind)) for kind in kinds},
        seeds=FEW_SEEDS,
    )


def temperature() -> Question:
    """T of Reverse CALM, whose threshold on the teacher's probability is 0.5^T."""
    mine, rate = _setting("A", "reverse_calm")
    assert mine.temperature is not None, "Reverse CALM has a temperature"
    others = [t for t in (1.0, 2.0, 5.0, 10.0) if t != mine.temperature]
    return _test_question(
        "knob: T in Reverse CALM",
        "where the threshold 0.5^T should lie",
        {"CE only": chosen("A", "masked_nll")}
        | {
            f"T = {t:g}, threshold {0.5**t:.3g}": _arm("A", replace(mine, temperature=t), rate)
            for t in (mine.temperature, *others)
        },
        seeds=FEW_SEEDS,
    )


def axes() -> Question:
    """TIDAL's two axes and one of them alone."""
    both = chosen("B", "tidal_kl")
    arms = {"both axes": both} | {
        f"{axis} alone": replace(both, settings=(*both.settings, f"tidal.axes={axis}"))
        for axis in ("training", "timestep")
    }
    return _test_question("knob: TIDAL's axes", "which of them helps", arms, seeds=FEW_SEEDS)


def times(pipeline: Pipeline) -> Question:
    """The times of a record's views: spread out, or drawn independently."""
    best = chosen(pipeline, BEST[pipeline])
    return _test_question(
        f"knob: times of a record's views, {pipeline}",
        "does it help to spread them",
        {
            "stratified": best,
            "independent": replace(best, cache=replace(best.cache, times="independent")),
        },
        seeds=FEW_SEEDS,
    )


def ratio() -> Question:
    """CompDemo's share of shown positions, and none."""
    arms = {f"ratio {share:g}": chosen("B", "tidal_kl", compdemo=share) for share in (0.5, 0.25)}
    return _test_question(
        "knob: CompDemo's ratio",
        "how much a pass should be shown",
        {**arms, "no CompDemo": chosen("B", "tidal_kl")},
        seeds=FEW_SEEDS,
    )


def finished() -> Question:
    """Further steps from the demo's own student, which has come to rest: where do they lead?"""
    kinds = {"CE": CE, "KL T=1": next(s for s in TRIED["B"] if s.label == "KL T=1")}
    return Question(
        name="finished start",
        asks="whether so few steps help a student that is trained to rest",
        split="validation",
        seeds=TUNING_SEEDS,
        control=f"CE, {RATES[0]:g}",
        arms={
            f"{label}, {rate:g}": replace(_arm("B", setting, rate), start="finished")
            for rate in RATES[:2]
            for label, setting in kinds.items()
        },
    )


def chosen(pipeline: Pipeline, objective: str, *, compdemo: float | None = None) -> Arm:
    """An objective at its chosen setting and rate."""
    return _arm(pipeline, *_setting(pipeline, objective), compdemo=compdemo)


def _setting(pipeline: Pipeline, objective: str) -> tuple[Setting, float]:
    label, rate = CHOSEN[pipeline][objective]
    (setting,) = [s for s in TRIED[pipeline] if (s.objective, s.label) == (objective, label)]
    return setting, rate


def _arm(
    pipeline: Pipeline, setting: Setting, learning_rate: float, *, compdemo: float | None = None
) -> Arm:
    settings: list[str] = []
    if setting.temperature is not None:
        settings.append(f"temperature={setting.temperature}")
    if setting.weight != 1:
        settings.append(f"weight={setting.weight}")
    return Arm(
        cache=CacheArm(
            pipeline=pipeline,
            records=RECORDS,
            views=VIEWS,
            targets=_TARGETS[pipeline],
            compdemo=compdemo,
        ),
        objective=setting.objective,
        settings=tuple(settings),
        learning_rate=learning_rate,
        steps=STEPS,
    )


def _test_question(
    name: str, asks: str, arms: dict[str, Arm], *, seeds: tuple[int, ...] = SEEDS
) -> Question:
    """Its control is the first arm."""
    return Question(
        name=name, asks=asks, split="test", seeds=seeds, control=next(iter(arms)), arms=arms
    )


assert STEPS * BATCH == RECORDS * VIEWS == FEW_RECORDS * READS, "every question has equal steps"
