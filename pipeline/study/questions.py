"""The study's questions, in the order in which they are answered.

Settings are chosen by the tuning questions, on validation files and seeds of their own; the others
use what was chosen (`CHOSEN`), new seeds and the test files, which nothing saw before.
"""

from collections.abc import Iterable

from pipeline.study.arms import Arm, CacheArm, Question

RECORDS, VIEWS, STEPS = 96, 8, 48
"""Of one seed; every view is read once."""

TUNING_SEEDS = (1000, 1001)
RATES = (1e-4, 3e-4, 1e-3)

_A = CacheArm(pipeline="A", records=RECORDS, views=VIEWS, targets="chunks")
_A_DEMO = CacheArm(pipeline="A", records=RECORDS, views=VIEWS, targets="chunks", compdemo=0.5)
_B = CacheArm(pipeline="B", records=RECORDS, views=VIEWS, targets="sketch 0.15")
_B_DEMO = CacheArm(pipeline="B", records=RECORDS, views=VIEWS, targets="sketch 0.15", compdemo=0.5)


def tuning() -> list[Question]:
    """Every setting that was tried; the control has as many rates as the objectives."""
    tried_b = {
        "CE": (_B, "masked_nll", ()),
        "KL T=1": (_B, "forward_kl", ("temperature=1.0",)),
        "KL T=2": (_B, "forward_kl", ("temperature=2.0",)),
        "reverse KL T=1": (_B, "reverse_kl", ("temperature=1.0",)),
        "TIDAL T=1": (_B, "tidal_kl", ("temperature=1.0",)),
        "TIDAL T=2": (_B, "tidal_kl", ("temperature=2.0",)),
    }
    tried_a = {
        "CE": (_A, "masked_nll", ()),
        **{f"CALM T={t}": (_A, "calm", (f"temperature={t}.0",)) for t in (1, 2, 5)},
        **{f"Reverse CALM T={t}": (_A, "reverse_calm", (f"temperature={t}.0",)) for t in (1, 2, 5)},
        **{f"TIDAL-CALM T={t}": (_A, "calm_tidal", (f"temperature={t}.0",)) for t in (2, 5)},
    }
    return [_tuning("tuning B", tried_b, RATES), _tuning("tuning A", tried_a, RATES)]


def _tuning(
    name: str, tried: dict[str, tuple[CacheArm, str, tuple[str, ...]]], rates: Iterable[float]
) -> Question:
    arms = {
        f"{label}, {rate:g}": Arm(
            cache=cache, objective=objective, settings=settings, learning_rate=rate, steps=STEPS
        )
        for rate in rates
        for label, (cache, objective, settings) in tried.items()
    }
    return Question(
        name=name,
        asks="which temperature and rate",
        split="validation",
        seeds=TUNING_SEEDS,
        control="CE, 0.0003",
        arms=arms,
    )


def questions() -> list[Question]:
    """All of them, in order."""
    return [*tuning()]
