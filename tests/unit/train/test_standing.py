"""Which evaluation is the best, and when patience ends, follow from the log alone."""

import math

import pytest

from pipeline.train.standing import Best, Standing


def history(*values):
    """An evaluation every third step, among entries that hold none."""
    for i, value in enumerate(values, start=1):
        yield {"step": 3 * i - 1, "loss": 1.0}
        yield {"step": 3 * i, "loss": 1.0, "held_out_nll": value}


def test_without_an_evaluation_nothing_is_best_and_nothing_ends():
    standing = Standing.of([{"step": 1, "loss": 2.0}])
    assert standing == Standing(best=None, num_since=0)
    assert not standing.is_over(1)


@pytest.mark.parametrize(
    ("values", "best", "num_since"),
    [
        ((5.0,), Best(step=3, nll=5.0), 0),
        ((5.0, 4.0, 4.5), Best(step=6, nll=4.0), 1),
        ((5.0, 6.0, 4.0), Best(step=9, nll=4.0), 0),  # the count begins anew
        ((5.0, 5.0, 5.0), Best(step=3, nll=5.0), 2),  # an equal one is no better one
        ((5.0, math.nan), Best(step=3, nll=5.0), 1),
        ((math.nan, 7.0), Best(step=6, nll=7.0), 0),
    ],
)
def test_the_first_of_the_lowest_is_the_best(values, best, num_since):
    assert Standing.of(history(*values)) == Standing(best=best, num_since=num_since)


def test_patience_counts_evaluations_without_a_better_one():
    values = (5.0, 4.0, 4.1, 4.2, 4.3)
    ended = [Standing.of(history(*values[:n])).is_over(2) for n in range(1, 6)]
    assert ended == [False, False, False, True, True]
    assert not Standing.of(history(*values)).is_over(None)
