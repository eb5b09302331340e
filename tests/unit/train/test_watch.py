"""What people watch of a run: its log, held-out likelihood, the best student, what made it."""

import json
import re
import shutil
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import lines, steps_of, write_lines
from transformers import AutoModelForCausalLM

from pipeline.cache.reader import CacheReader
from pipeline.config.recipe import resolved_json
from pipeline.evaluate.heldout import LEVELS, HeldOut, evaluate_held_out
from pipeline.student_train import run_student_train
from pipeline.teacher_cache import run_teacher_cache
from pipeline.train.metrics_log import metrics_frame, scan_metrics
from pipeline.train.pace import TIMINGS
from storage_schemas.errors import CacheMissingError, RecipeError

STEPS = 6
PAGE = (Path(__file__).parents[3] / "docs" / "training.md").read_text("utf-8")
SPEED = 0.3  # a learning rate that ruins the student soon: nothing after the first step is better


@pytest.fixture(scope="module")
def cache(tiny, tmp_path_factory):
    recipe = tiny.recipe("b", tmp_path_factory.mktemp("cache"))
    run_teacher_cache(recipe)
    return recipe.cache.path


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    """Records whose ids the cache does not hold."""
    rows = [line | {"id": f"unseen/{i}"} for i, line in enumerate(lines())]
    path = write_lines(tmp_path_factory.mktemp("unseen") / "records.jsonl", rows)
    return {"type": "files", "paths": [str(path)], "id_field": "id"}


@pytest.fixture
def recipe_of(tiny, cache, tmp_path):
    """A recipe over the cache; its output is `name` in this test's folder."""

    def make(name="out", *, held_out=None, **overrides):
        folders = {"cache.path": cache, "train.output": str(tmp_path / name)}
        tables = {} if held_out is None else {"held_out": held_out}
        return tiny.recipe("b", tmp_path, **folders, **overrides, **tables)

    return make


def train(recipe, *, stop_after=None):
    """All log entries of a run, and its summary; stopped after a number of its steps."""
    logs: list[dict[str, float]] = []
    steps = iter(range(1, 1000))
    summary = run_student_train(
        recipe,
        on_log=logs.append,
        should_stop=lambda: next(steps) == stop_after,
        shows_progress=False,
    )
    return logs, summary


def stored(folder: Path, name: str):
    return json.loads((folder / name).read_text())


def as_killed(out: Path, *, before: int) -> None:
    """What a run that was killed after step `before` has left, of one that ran to its end."""
    (out / "summary.json").unlink()
    shutil.rmtree(out / "final")
    for folder in out.glob("checkpoint-*"):
        if int(folder.name.removeprefix("checkpoint-")) > before:
            shutil.rmtree(folder)


def without_times(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.drop(TIMINGS)


# --- the log


def test_entries_become_rows_and_what_is_not_said_is_null():
    frame = metrics_frame(
        [
            {"step": 2, "epoch": 0.1, "loss": 3, "lambda": 0.2},
            {"step": 4, "epoch": 0.2, "loss": 2.5, "held_out_nll": 1.5},
            {"step": 4, "train_runtime": 7.0, "train_loss": 2.75},  # the Trainer's last words
        ]
    )
    want = pl.DataFrame(
        {
            "step": [2, 4],
            "loss": [3.0, 2.5],
            "held_out_nll": [None, 1.5],
            "lambda": [0.2, None],
        },
        schema={"step": pl.Int64, **dict.fromkeys(["loss", "held_out_nll", "lambda"], pl.Float64)},
    )
    assert_frame_equal(frame, want)


def test_without_an_entry_there_is_an_empty_table():
    assert metrics_frame([]).schema == {"step": pl.Int64}


def test_the_log_holds_every_entry_as_it_was_told(recipe_of, tmp_path):
    logs, _ = train(recipe_of())
    frame = scan_metrics(tmp_path / "out").collect()
    assert frame["step"].to_list() == list(range(1, STEPS + 1))
    assert {
        "loss", "masked_nll", "tidal_kl", "lambda", "time", "agreement", "learning_rate",
        "grad_norm", "tokens_per_s", "wait_share", "progress",
    } == {*frame.columns} - {"step"}  # fmt: skip
    for row, entry in zip(frame.iter_rows(named=True), logs, strict=True):
        assert row == {name: entry[name] for name in row}


def test_a_killed_run_goes_on_without_a_double_or_missing_entry(recipe_of, tmp_path):
    recipe = recipe_of(**{"train.save_steps": 2, "train.keep_checkpoints": 9})
    train(recipe)
    out = tmp_path / "out"
    whole = scan_metrics(out).collect()
    as_killed(out, before=2)  # the file still holds what came after the checkpoint
    logs, _ = train(recipe)
    assert [entry["step"] for entry in logs] == [3, 4, 5, 6]
    again = scan_metrics(out).collect()
    assert_frame_equal(without_times(again), without_times(whole))
    assert_frame_equal(again.head(2), whole.head(2))  # those are the first run's, times too


def test_a_checkpoint_between_two_entries_makes_one(recipe_of, tmp_path):
    recipe = recipe_of(**{"train.save_steps": 4, "train.log_steps": 3, "train.keep_checkpoints": 9})
    whole, _ = train(recipe)
    assert [entry["step"] for entry in whole] == [3, 4, 6]
    as_killed(tmp_path / "out", before=4)
    rest, _ = train(recipe)
    assert steps_of(rest) == steps_of(whole[2:])  # steps 5 and 6, in both runs


def test_the_last_steps_are_told_where_none_was_due(recipe_of):
    logs, _ = train(recipe_of(**{"train.log_steps": 4}))
    assert [entry["step"] for entry in logs] == [4, 6]


def test_a_log_that_the_kill_has_lost_comes_back_from_the_checkpoint(recipe_of, tmp_path):
    recipe = recipe_of(**{"train.save_steps": 4, "train.keep_checkpoints": 9})
    train(recipe)
    out = tmp_path / "out"
    whole = scan_metrics(out).collect()
    as_killed(out, before=4)
    (out / "metrics.parquet").unlink()
    train(recipe)
    assert_frame_equal(without_times(scan_metrics(out).collect()), without_times(whole))


def test_the_pages_query_shows_the_curve_and_its_table_every_column(recipe_of, unseen, tmp_path):
    logs, _ = train(recipe_of(held_out={"records": unseen, "every_steps": 2}))
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names = {"run": str(tmp_path / "out")}
    exec(compile(code, "page", "exec"), names)
    curve = names["curve"].collect()
    assert curve["held_out_nll"].to_list() == [
        entry["held_out_nll"] for entry in logs if "held_out_nll" in entry
    ]
    told = set(re.findall(r"`(\w[\w.]*)`", PAGE))
    assert {*scan_metrics(names["run"]).collect_schema()} <= told | {
        f"held_out_nll_at_{level}" for level in LEVELS
    }


def test_a_run_without_a_log_is_named(tmp_path):
    with pytest.raises(CacheMissingError, match=r"nowhere/metrics\.parquet, got none"):
        scan_metrics(tmp_path / "nowhere")


def test_timings_are_plausible_and_the_time_left_ends_at_zero(recipe_of):
    logs, _ = train(recipe_of())
    assert all(entry["tokens_per_s"] > 0 for entry in logs)
    assert all(0 < entry["wait_share"] < 1 for entry in logs)
    assert [entry["steps"] for entry in logs] == [STEPS] * STEPS
    assert all(entry["seconds_left"] > 0 for entry in logs[:-1])
    assert logs[-1]["seconds_left"] == 0


# --- trackers


def test_tensorboard_shows_terms_pace_and_held_out_likelihood(recipe_of, unseen, tmp_path):
    held_out = {"records": unseen, "every_steps": 3}
    logs, _ = train(recipe_of(held_out=held_out, **{"train.trackers": ["tensorboard"]}))
    events = EventAccumulator(str(next((tmp_path / "out" / "runs").iterdir())))
    events.Reload()
    shown = {tag.removeprefix("train/") for tag in events.Tags()["scalars"]}
    assert shown >= {"loss", "tidal_kl", "lambda", "agreement", "tokens_per_s", "held_out_nll"}
    told = [(entry["step"], entry["held_out_nll"]) for entry in logs if "held_out_nll" in entry]
    got = [(event.step, event.value) for event in events.Scalars("train/held_out_nll")]
    assert got == [(step, pytest.approx(value, rel=1e-6)) for step, value in told]


def test_a_tracker_that_is_not_installed_is_refused_with_how_to_get_it(recipe_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    with pytest.raises(RecipeError, match=r"expected wandb to be installed.*pip install wandb"):
        train(recipe_of(**{"train.trackers": ["wandb"]}))


# --- held-out likelihood


def test_held_out_figures_are_those_of_the_checkpoints_student(recipe_of, unseen, tiny, tmp_path):
    recipe = recipe_of(
        held_out={"records": unseen, "every_steps": 4, "max_records": 5},
        **{"train.save_steps": 4, "train.keep_checkpoints": 9, "train.log_steps": 5},
    )
    logs, summary = train(recipe)
    measured = {entry["step"]: entry for entry in logs if "held_out_nll" in entry}
    assert [*measured] == [4, 6]  # every fourth, and the last
    assert [entry["step"] for entry in logs] == [4, 5, 6]  # an evaluation is an entry
    masks = HeldOut.load(tmp_path / "out" / "held-out.parquet")
    assert [record.record_id for record in masks.records] == [f"unseen/{i}" for i in range(5)]
    for step, entry in measured.items():
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "out" / f"checkpoint-{step:.0f}", dtype=torch.float32
        )
        content = evaluate_held_out(model, masks, mask_id=4095, block_size=16).content
        assert entry["held_out_nll"] == content.nll_bound
        assert entry["held_out_nll_error"] == content.nll_bound_error
        assert entry["held_out_accuracy"] == content.accuracy
        assert entry["held_out_nll_at_0.5"] == content.nll_L[2]
    assert summary.metrics["held_out_nll"] == measured[6]["held_out_nll"]


def test_evaluating_changes_nothing_in_the_training(recipe_of, unseen, tmp_path):
    plain, _ = train(recipe_of("plain"))
    watched, _ = train(recipe_of("watched", held_out={"records": unseen, "every_steps": 2}))
    for one, other in zip(steps_of(plain), steps_of(watched), strict=True):
        assert one == {name: other[name] for name in one}
    final = "final/model.safetensors"
    assert (tmp_path / "plain" / final).read_bytes() == (tmp_path / "watched" / final).read_bytes()


def test_every_run_over_the_same_records_has_the_same_masks(recipe_of, unseen, tmp_path):
    held_out = {"records": unseen, "every_steps": 6}
    train(recipe_of("one", held_out=held_out))
    train(recipe_of("two", held_out=held_out, **{"train.seed": 5, "objective.weight": 2.0}))
    one, two = (HeldOut.load(tmp_path / run / "held-out.parquet") for run in ("one", "two"))
    assert one.fingerprint == two.fingerprint


def test_records_that_are_trained_on_are_refused_by_name(recipe_of, tiny, tmp_path):
    records = {"type": "files", "paths": [str(tiny.records)], "id_field": "id"}
    with pytest.raises(RecipeError) as caught:
        train(recipe_of(held_out={"records": records, "max_records": 7}))
    message = str(caught.value)
    assert "got 7 of 7 that the cache at" in message
    assert "'lib/clamp.py::clamp'" in message
    assert "and 4 others; name other records" in message
    assert not (tmp_path / "out" / "run.json").exists()


# --- an early end, and the best student


@pytest.fixture
def early(recipe_of, unseen):
    def make(name="out"):
        held_out = {"records": unseen, "every_steps": 1, "patience": 2}
        return recipe_of(
            name,
            held_out=held_out,
            **{
                "train.max_steps": 20,
                "train.learning_rate": SPEED,
                "train.warmup_share": 0.0,
                "train.keep_checkpoints": 1,
            },
        )

    return make


def test_patience_ends_a_run_which_is_then_finished(early, tmp_path):
    logs, summary = train(early())
    values = [entry["held_out_nll"] for entry in logs]
    best = values.index(min(values))
    assert len(values) == best + 1 + 2 == summary.steps < 20
    assert (summary.is_complete, summary.stopped_early) == (True, True)
    assert (summary.best_step, summary.metrics["held_out_nll_best"]) == (best + 1, min(values))
    assert stored(tmp_path / "out", "summary.json")["stopped_early"] is True
    assert train(early()) == ([], summary)


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_stopped_run_goes_on_and_ends_early_at_the_same_step(early, tmp_path, stop_after):
    undisturbed, whole = train(early("undisturbed"))
    first, stopped = train(early("stopped"), stop_after=stop_after)
    assert (stopped.is_complete, stopped.stopped_early) == (False, False)
    rest, summary = train(early("stopped"))
    assert steps_of(first + rest) == steps_of(undisturbed)
    assert (summary.steps, summary.best_step) == (whole.steps, whole.best_step)
    for name in ("best", "final"):
        one, other = (tmp_path / run / name for run in ("stopped", "undisturbed"))
        weights = "model.safetensors"
        assert (one / weights).read_bytes() == (other / weights).read_bytes()


def test_a_run_killed_after_its_early_end_takes_no_further_step(early, tmp_path):
    _, whole = train(early())
    as_killed(tmp_path / "out", before=whole.steps)
    logs, summary = train(early())
    assert logs == []
    assert (summary.steps, summary.stopped_early) == (whole.steps, True)
    assert (tmp_path / "out" / "final" / "model.safetensors").exists()


def test_the_best_student_outlives_its_checkpoint_and_is_the_best(early, tmp_path):
    logs, summary = train(early())
    out = tmp_path / "out"
    assert [path.name for path in out.glob("checkpoint-*")] == [f"checkpoint-{summary.steps}"]
    model = AutoModelForCausalLM.from_pretrained(out / "best", dtype=torch.float32)
    masks = HeldOut.load(out / "held-out.parquet")
    scores = evaluate_held_out(model, masks, mask_id=4095, block_size=16)
    assert scores.content.nll_bound == min(entry["held_out_nll"] for entry in logs)
    assert stored(out / "best", "tidecache.json")["step"] == summary.best_step
    assert (out / "best" / "tokenizer.json").exists()
    assert not [*out.glob("best.*")]


@pytest.mark.parametrize("is_last", [False, True])
def test_a_best_student_that_a_kill_has_lost_is_made_anew(recipe_of, unseen, tmp_path, is_last):
    """The kill fell between the checkpoint of its step and the folder."""
    recipe = recipe_of(
        held_out={"records": unseen, "every_steps": 2},
        **{"train.learning_rate": 1e-4, "train.keep_checkpoints": 9},
    )
    logs, whole = train(recipe)
    values = [entry["held_out_nll"] for entry in logs if "held_out_nll" in entry]
    assert values == sorted(values, reverse=True)  # so that every evaluation is a new best
    out = tmp_path / "out"
    best = (out / "best" / "model.safetensors").read_bytes()
    as_killed(out, before=STEPS if is_last else 2)
    (out / "best").rename(out / "best.old")
    _, summary = train(recipe)
    assert (summary.best_step, summary.metrics["held_out_nll_best"]) == (
        whole.best_step,
        whole.metrics["held_out_nll_best"],
    )
    assert (out / "best" / "model.safetensors").read_bytes() == best
    assert not [*out.glob("best.*")]


# --- what made it


def test_every_saved_student_says_what_made_it(recipe_of, unseen, cache, tmp_path):
    recipe = recipe_of(held_out={"records": unseen, "every_steps": 3}, **{"train.save_steps": 3})
    _, summary = train(recipe)
    for folder, step in {
        "checkpoint-3": 3,
        "checkpoint-6": 6,
        "final": 6,
        "best": summary.best_step,
    }.items():
        out = tmp_path / "out" / folder
        stamp = stored(out, "tidecache.json")
        assert stamp["step"] == step
        assert stamp["cache"] == {
            "address": cache,
            "digest": CacheReader.open(cache).identity.digest,
        }
        assert (out / "recipe.json").read_text() == resolved_json(recipe)
