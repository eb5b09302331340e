"""The comparison: what it shows, in which order, and over seeds; and its picture."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from pipeline.sweep.plot import curves_figure, draw_plot
from pipeline.sweep.result import RunResult
from pipeline.sweep.table import run_table, seed_table

SEEDS = """
grid.train.seed = [0, 1, 2]
[[runs]]
name = "ce"
set.objective.type = "masked_nll"
[[runs]]
name = "calm"
set.objective.type = "calm"
"""


@pytest.fixture
def results(expand):
    """`results(text, loss=[...])`: finished runs with those last values."""

    def make(text: str, **metrics: list[float | None]) -> list[RunResult]:
        return [
            RunResult(
                run=run,
                state="finished",
                steps=10,
                seconds=2.0,
                metrics={n: v[i] for n, v in metrics.items() if v[i] is not None},
                curve=pl.DataFrame({"step": [5, 10], "masked_nll": [2.0, 1.0]}),
            )
            for i, run in enumerate(expand(text))
        ]

    return make


def test_only_what_differs_has_a_column(results):
    found = results(
        'grid = {objective.type = ["calm", "masked_nll"], train.epochs = [3]}', loss=[1.0, 2.0]
    )
    table = run_table(found)
    assert table.columns == [
        *("run", "state", "objective.type", "steps", "seconds", "loss", "error"),
    ]
    assert table["objective.type"].to_list() == ["calm", "masked_nll"]


def test_a_run_that_sets_nothing_shows_the_recipes_value(results):
    found = results("""
        [[runs]]
        name = "as-it-is"
        [[runs]]
        name = "warm"
        set.objective.temperature = 2.0
        [[runs]]
        name = "ce"
        set.objective.type = "masked_nll"
    """)
    assert run_table(found)["objective.temperature"].to_list() == [5.0, 2.0, None]


def test_without_held_out_likelihood_runs_keep_their_order(results):
    table = run_table(results("grid = {train.seed = [2, 0, 1]}", loss=[3.0, 1.0, 2.0]))
    assert table["train.seed"].to_list() == [2, 0, 1]


def test_the_best_held_out_bound_comes_first_and_runs_without_one_last(results):
    table = run_table(
        results(
            "grid = {train.seed = [0, 1, 2, 3]}",
            held_out_nll=[1.0, None, 0.5, 9.0],
            held_out_nll_best=[0.9, None, 0.4, 0.1],
        )
    )
    assert table["train.seed"].to_list() == [3, 2, 0, 1]


def test_mean_and_deviation_over_seeds(results):
    # ce: 1, 2, 3 -> mean 2, variance (1 + 0 + 1) / 2 = 1; calm: 4, 4, 7 -> mean 5, variance 3
    seeds = seed_table(results(SEEDS, loss=[1.0, 2.0, 3.0, 4.0, 4.0, 7.0]))
    assert seeds is not None
    assert seeds["runs"].to_list() == ["ce", "calm"]
    assert seeds["seeds"].to_list() == [3, 3]
    assert seeds["loss"].to_list() == [2.0, 5.0]
    np.testing.assert_allclose(seeds["loss_std"], [1.0, 3**0.5])
    assert "train.seed" not in seeds.columns


def test_seeds_that_have_not_finished_do_not_count(results):
    found = results(SEEDS, loss=[1.0, 2.0, 3.0, 4.0, 4.0, 7.0])
    for i in (1, 2, 3, 4, 5):
        found[i] = dataclasses.replace(found[i], state="unfinished")
    seeds = seed_table(found)
    assert seeds is not None
    assert seeds.select("runs", "seeds", "loss", "loss_std").rows() == [("ce", 1, 1.0, None)]


def test_runs_that_differ_in_more_than_the_seed_are_no_group(results):
    text = 'grid.objective.type = ["calm", "masked_nll"]'
    assert seed_table(results(text, loss=[1.0, 2.0])) is None


def test_nothing_finished_makes_no_table_of_seeds(results):
    found = [dataclasses.replace(each, state="not begun") for each in results(SEEDS)]
    assert seed_table(found) is None


def test_settings_of_several_kinds_are_text(results):
    table = run_table(results('grid.train.trackers = [[], ["wandb", "trackio"]]'))
    assert table["train.trackers"].to_list() == ["none", "wandb+trackio"]


def test_the_plot_has_a_line_a_setting_and_faint_ones_for_its_seeds(results):
    found = results(SEEDS, held_out_nll=[2.0, 2.0, 2.0, 1.0, 1.0, 1.0])
    figure = curves_figure(found)
    (axes,) = figure.axes  # neither held-out likelihood nor CALM was logged
    strong = [line for line in axes.get_lines() if line.get_alpha() is None]
    faint = [line for line in axes.get_lines() if line.get_alpha() is not None]
    assert [line.get_label() for line in strong] == ["calm", "ce"]  # as the table has them
    assert len({line.get_color() for line in strong}) == 2
    assert len(faint) == 6
    np.testing.assert_array_equal(strong[0].get_xdata(), [5, 10])
    np.testing.assert_array_equal(strong[0].get_ydata(), [2, 1])


def test_the_mean_ends_where_the_shortest_seed_has_come_to(results):
    found = results("grid.train.seed = [0, 1]")
    longer = pl.DataFrame({"step": [5, 10, 15], "masked_nll": [4.0, 3.0, 2.0]})
    found[1] = dataclasses.replace(found[1], curve=longer)
    mean = curves_figure(found).axes[0].get_lines()[-1]
    np.testing.assert_array_equal(mean.get_xdata(), [5, 10])
    np.testing.assert_array_equal(mean.get_ydata(), [3, 2])


def test_held_out_likelihood_has_a_panel_where_it_was_measured(results):
    found = results("grid.train.seed = [0, 1]")
    curve = found[0].curve.with_columns(held_out_nll=pl.Series([None, 3.0]))
    found[0] = dataclasses.replace(found[0], curve=curve)
    _, held_out = curves_figure(found).axes
    (line,) = held_out.get_lines()
    assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == [(10, 3)]


def test_runs_that_logged_nothing_are_left_out_of_the_plot(results, tmp_path):
    found = results(SEEDS)
    found[0] = dataclasses.replace(found[0], curve=pl.DataFrame())
    found[4] = dataclasses.replace(found[4], curve=pl.DataFrame({"step": [1]}))
    assert len(curves_figure(found).axes[0].get_lines()) == 2 + 1 + 2 + 1
    draw_plot(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
