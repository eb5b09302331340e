"""Gains, worked by hand, and which number of views is within noise of a live teacher."""

import math

import polars as pl
import pytest

from pipeline.study.answers import gain, gains, views_to_match

RECORDS = pl.DataFrame(
    {
        "split": ["test"] * 3,
        "record_id": ["a.py::f", "a.py::g", "b.py::h"],
        "file": ["a.py", "a.py", "b.py"],
        "tokens": [1, 1, 2],
    }
)


def _run(question: str, label: str, seed: int, bounds: list[float], accuracy: float = 0.5):
    return {
        "question": question,
        "label": label,
        "is_control": label in ("CE only", "live"),
        "seed": seed,
        "split": "test",
        "bound": sum(bounds) / 4,
        "bound_R": bounds,
        "accuracy": accuracy,
    }


def test_a_gain_is_the_control_minus_the_label_seed_by_seed():
    runs = pl.DataFrame(
        [
            _run("q", "KL", 1, [2.0, 2.0, 4.0], 0.6),  # other order than the control's
            _run("q", "KL", 0, [3.0, 3.0, 2.0], 0.7),
            _run("q", "CE only", 0, [3.0, 3.0, 6.0], 0.5),
            _run("q", "CE only", 1, [4.0, 4.0, 8.0], 0.5),
        ]
    )
    (found,) = gains(runs, RECORDS, "q")
    # seed 0: 3 - 2 = 1, seed 1: 4 - 2 = 2; mean 1.5, standard error 0.5, t at one degree 12.706
    assert found.over_seeds.mean == pytest.approx(1.5)
    assert found.over_seeds.high == pytest.approx(1.5 + 12.7062 * 0.5, abs=1e-3)
    # mean over seeds by file: a.py ((0 + 4) / 2 = 2) of 2 tokens, b.py ((4 + 4) / 2 = 4) of 2
    assert found.over_files.mean == pytest.approx(1.5)
    assert found.over_files.low == pytest.approx(1.0)
    assert found.over_files.high == pytest.approx(2.0)
    assert found.accuracy.mean == pytest.approx(0.15)


def test_seeds_that_only_one_side_has_are_left_out():
    runs = pl.DataFrame(
        [
            _run("q", "CE only", 0, [1.0, 1.0, 2.0]),
            _run("q", "CE only", 1, [9.0, 9.0, 9.0]),
            _run("q", "KL", 0, [1.0, 1.0, 1.0]),
        ]
    )
    found = gain(runs, RECORDS, "q", "KL", "CE only")
    assert found.over_seeds.mean == pytest.approx(0.25)
    assert found.over_seeds.num == 1
    assert math.isnan(found.over_seeds.low)


@pytest.mark.parametrize(
    ("above", "expected"),
    [
        ({1: 0.5, 2: 0.2, 4: 0.0}, 4),
        ({1: 0.5, 2: 0.0, 4: 0.0}, 2),
        ({1: 0.0, 2: 0.2, 4: 0.0}, 4),  # a lucky few views are no proof
        ({1: 0.5, 2: 0.2, 4: 0.2}, None),
        ({1: -0.5, 2: -0.5, 4: -0.5}, 1),  # better than live is not worse
    ],
)
def test_views_match_from_where_all_larger_numbers_do(
    above: dict[int, float], expected: int | None
):
    runs = pl.DataFrame(
        [
            _run("views B", label, seed, [x, x, 2 * x])
            for seed, noise in enumerate((-0.01, 0.0, 0.01))
            for label, x in [
                ("live", 1.0),
                *((f"views {views}", 1.0 + extra + noise) for views, extra in above.items()),
            ]
        ]
    )
    found, ahead = views_to_match(runs, RECORDS, "views B")
    assert found == expected
    assert ahead[4].over_seeds.mean == pytest.approx(above[4])


def test_one_seed_is_within_no_noise():
    runs = pl.DataFrame(
        [_run("views B", "live", 0, [1.0, 1.0, 2.0]), _run("views B", "views 1", 0, [1.0] * 3)]
    )
    assert views_to_match(runs, RECORDS, "views B")[0] is None


def test_a_difference_that_only_the_seeds_hide_is_no_noise():
    """On every file the cache is worse, though seeds differ too much to tell."""
    runs = pl.DataFrame(
        [
            _run("views B", label, seed, [x, x, 2 * x])
            for seed, luck in enumerate((-0.3, 0.0, 0.6))
            for label, x in (("live", 1.0), ("views 1", 1.1 + luck))
        ]
    )
    found, ahead = views_to_match(runs, RECORDS, "views B")
    assert ahead[1].over_seeds.low < 0 < ahead[1].over_files.low
    assert found is None
