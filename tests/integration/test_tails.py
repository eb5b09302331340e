"""Every kind of tail through both stages, and against a live teacher."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from live import live_reader, train
from tiny import files_of

import pipeline.teacher_cache
from pipeline.cache.reader import CacheReader
from pipeline.student_train import run_student_train
from pipeline.teacher_cache import TeacherCacheStage, run_teacher_cache
from storage_schemas.errors import CacheIdentityError, RecipeError
from storage_schemas.run_notes import WANTED_FILE
from storage_schemas.targets import KeptTargets

CALIBRATION = 6  # of 12 records, on average
SHARED = 1024
# What rounding leaves of a sketch of step 0.01, of TIDAL's loss and of the whole gradient.
FINE_LOSS, FINE_GRADIENT = 2e-3, 1e-4

TAILS = {
    "even": {"type": "even"},
    "mean_logit": {"type": "mean_logit", "calibration_records": CALIBRATION},
    "step": {"type": "sketch", "step": 0.1, "calibration_records": CALIBRATION},
    "fine": {"type": "sketch", "step": 0.01, "calibration_records": CALIBRATION},
    "bytes": {"type": "sketch", "bytes": 20, "calibration_records": CALIBRATION},
    "grad_error": {"type": "sketch", "grad_error": 0.15, "calibration_records": CALIBRATION},
}
NEEDS_BASIS = [name for name in TAILS if name != "even"]


@pytest.fixture
def recipe_of(make_recipe):
    """`recipe_of(name, folder)`: pipeline B with that tail and k = 8 of 1024 shared columns."""

    def recipe(name, folder, *, k=8, **overrides):
        targets = {"type": "tokens", "k": k, "tail": TAILS[name]}
        options = {"pipeline.vocab": SHARED, "train.max_steps": 2, "targets": targets}
        return make_recipe("b", folder, **(options | overrides))

    return recipe


@pytest.fixture
def calibrations(monkeypatch):
    """What every calibration of this test was given, and it goes on as always."""
    calls: list[object] = []
    calibrate = pipeline.teacher_cache.calibrate

    def counted(backend, reserved, kept):
        calls.append(reserved)
        return calibrate(backend, reserved, kept)

    monkeypatch.setattr(pipeline.teacher_cache, "calibrate", counted)
    return calls


def contents(recipe):
    reader = CacheReader.open(Path(recipe.cache.path))
    basis = reader.read_basis()
    coder = basis.coder if basis is not None else None
    return [reader.read_shard(entry, coder) for entry in reader.entries]


def cached_ids(recipe):
    return {pair.record_id for content in contents(recipe) for pair in content.examples}


def first_step(recipe, output, reader=None):
    """The losses and the gradient of the first step, from the cache or from a live teacher."""
    to_train = recipe.train.model_copy(update={"output": str(output)})
    (logs, *_), gradient = train(
        recipe.model_copy(update={"train": to_train}),
        reader or CacheReader.open(Path(recipe.cache.path)),
        steps=1,
    )
    return logs, gradient


@pytest.mark.parametrize("name", TAILS)
def test_a_tail_runs_from_records_to_a_student(name, recipe_of, tiny, tmp_path, calibrations):
    recipe = recipe_of(name, tmp_path)
    summary = run_teacher_cache(recipe)
    assert summary.is_complete
    assert len(calibrations) == (name in NEEDS_BASIS)
    num_reserved = summary.counts.skips.get("reserved_for_calibration", 0)
    assert summary.counts.num_records == tiny.num_records
    assert summary.counts.num_examples + num_reserved == tiny.num_records
    assert (num_reserved > 0) == (name in NEEDS_BASIS)
    if name in NEEDS_BASIS:
        (reserved,) = calibrations
        calibrated = {pair.record_id for pair in [*reserved.calibration, *reserved.search]}
        assert len(calibrated) == num_reserved
        assert not calibrated & cached_ids(recipe)
        assert {skip.record_id for one in contents(recipe) for skip in one.skips} == calibrated
    trained = run_student_train(recipe, shows_progress=False)
    assert trained.is_complete
    assert trained.metrics["tidal_kl"] > 0
    assert np.isfinite(list(trained.metrics.values())).all()


@pytest.mark.parametrize("name", NEEDS_BASIS)
def test_a_second_run_finds_the_cache_and_calibrates_no_more(
    name, recipe_of, tmp_path, calibrations
):
    recipe = recipe_of(name, tmp_path)
    run_teacher_cache(recipe)
    before = files_of(tmp_path / "cache")
    again = run_teacher_cache(recipe)
    assert (again.shards_made, len(calibrations)) == (0, 1)
    assert files_of(tmp_path / "cache") == before


def test_two_runs_of_one_sketch_are_equal_bit_for_bit(recipe_of, tmp_path):
    for place in ("one", "two"):
        run_teacher_cache(recipe_of("grad_error", tmp_path / place))
    assert files_of(tmp_path / "one" / "cache") == files_of(tmp_path / "two" / "cache")


def test_more_views_extend_a_sketch_cache_with_the_same_basis(recipe_of, tmp_path, calibrations):
    run_teacher_cache(recipe_of("step", tmp_path))
    before = files_of(tmp_path / "cache")
    grown = recipe_of("step", tmp_path, **{"noise.views": 3})
    summary = run_teacher_cache(grown)
    assert len(calibrations) == 1
    assert summary.shards_made == 3
    after = files_of(tmp_path / "cache")
    assert {path for path in before if after[path] != before[path]} == {WANTED_FILE}
    run_student_train(grown, shows_progress=False)


@pytest.mark.parametrize(
    ("name", "field", "least"),
    # the gradient's error, a mean over some forty rows, jumps by a few rows' integers
    [("bytes", "bytes_per_position", 0.97), ("grad_error", "grad_error", 0.7)],
)
def test_what_is_asked_for_is_met_from_below(name, field, least, recipe_of, tmp_path):
    recipe = recipe_of(name, tmp_path)
    run_teacher_cache(recipe)
    report = CacheReader.open(Path(recipe.cache.path)).manifest.calibration
    assert report is not None
    asked = TAILS[name][name]
    assert least * asked <= getattr(report, field) <= asked
    assert report.positions > 0
    assert report.search_positions > 0
    assert report.hidden_size == 32
    assert report.kl.keys() == {"1.0", "2.0"}


def test_a_short_calibration_says_what_it_costs(recipe_of, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="pipeline.teacher.calibrate"):
        run_teacher_cache(
            recipe_of(
                "step",
                tmp_path,
                targets={
                    "type": "tokens",
                    "tail": {"type": "sketch", "step": 0.1, "calibration_records": 3},
                },
            )
        )
    report = CacheReader.open(tmp_path / "cache").manifest.calibration
    warned = "14 times the hidden size" in caplog.text
    assert warned == (report.positions < 14 * report.hidden_size)


@pytest.fixture(scope="module")
def errors(make_recipe, tmp_path_factory):
    """By tail: relative error of the first loss and gradient against the live teacher's."""
    found = {}
    for name in ("even", "mean_logit", "step", "fine"):
        folder = tmp_path_factory.mktemp(name)
        recipe = make_recipe(
            "b",
            folder,
            targets={"type": "tokens", "k": 8, "tail": TAILS[name]},
            **{"pipeline.vocab": SHARED, "teacher.batch_tokens": 700},
        )
        run_teacher_cache(recipe)
        cached, gradient = first_step(recipe, folder / "cached")
        live, live_gradient = first_step(
            recipe, folder / "live", live_reader(recipe, batch_tokens=700)
        )
        assert cached["masked_nll"] == live["masked_nll"]  # the same batch, the same student
        moved = (gradient - live_gradient).norm() / live_gradient.norm()
        found[name] = (abs(cached["tidal_kl"] / live["tidal_kl"] - 1), moved.item())
    return found


def test_a_fine_sketch_gives_the_live_teachers_first_step(errors):
    loss, gradient = errors["fine"]
    assert loss < FINE_LOSS
    assert gradient < FINE_GRADIENT


def test_a_sketch_is_nearer_to_the_live_teacher_than_tails_at_the_same_k(errors):
    for other in ("even", "mean_logit"):
        for name in ("fine", "step"):
            assert all(one < two for one, two in zip(errors[name], errors[other], strict=True))


@pytest.mark.parametrize("k", [0, 8])
def test_chunks_are_trained_from_whatever_else_is_there_to_look_at(k, make_recipe, tmp_path):
    recipe = make_recipe(
        "b",
        tmp_path,
        targets={"type": "chunks", "k": k},
        objective={"type": "reverse_calm"},
        **{"pipeline.vocab": SHARED, "train.max_steps": 2},
    )
    summary = run_teacher_cache(recipe)
    assert summary.counts.skips == {}
    assert (summary.counts.num_token_rows > 0) == (k > 0)
    for content in contents(recipe):
        for view in content.views:
            if k:
                assert isinstance(view.targets.tokens, KeptTargets)
                assert view.targets.tokens.ids_MK.shape[1] == k
                assert view.targets.tokens.temperatures == (1.0,)
            else:
                assert view.targets.tokens is None
    assert run_student_train(recipe, shows_progress=False).is_complete
    asks_tokens = make_recipe("b", tmp_path, **{"pipeline.vocab": SHARED})
    with pytest.raises(CacheIdentityError, match="at most a top k to look at"):
        run_student_train(asks_tokens, shows_progress=False)


def test_a_sketch_needs_no_top_k(recipe_of, tmp_path):
    with_one, without = (recipe_of("step", tmp_path / str(k), k=k) for k in (8, 0))
    for recipe in (with_one, without):
        run_teacher_cache(recipe)
    for content in contents(without):
        assert all(view.targets.tokens.ids_MK.shape[1] == 0 for view in content.views)
    one = first_step(with_one, tmp_path / "one")
    other = first_step(without, tmp_path / "other")
    assert one[0] == other[0]
    assert torch.equal(one[1], other[1])


def test_no_fewer_records_than_the_calibration_takes_are_accepted(recipe_of, tmp_path, tiny):
    for count in (tiny.num_records, 256):
        tail = {"type": "sketch", "step": 0.1, "calibration_records": count}
        recipe = recipe_of("step", tmp_path, targets={"type": "tokens", "tail": tail})
        with pytest.raises(RecipeError) as caught:
            run_teacher_cache(recipe)
        assert (
            f"expected fewer targets.tail.calibration_records than the {tiny.num_records} records "
            f"there are, got {count}: they are never cached"
        ) in str(caught.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("made", "asked", "line"),
    [
        ("even", "mean_logit", 'kept.tail.type: the cache has "even", the recipe asks for '),
        ("even", "step", 'kept.tail.type: the cache has "even", the recipe asks for "sketch"'),
        ("step", "fine", "kept.tail.amount: the cache has 0.1, the recipe asks for 0.01"),
        ("step", "bytes", 'kept.tail.asks: the cache has "step", the recipe asks for "bytes"'),
    ],
)
def test_another_tail_is_another_cache(made, asked, line, recipe_of, tmp_path, calibrations):
    run_teacher_cache(recipe_of(made, tmp_path))
    calibrations.clear()
    before = files_of(tmp_path / "cache")
    with pytest.raises(CacheIdentityError) as caught:
        run_teacher_cache(recipe_of(asked, tmp_path))
    assert line in str(caught.value)
    assert calibrations == []
    assert files_of(tmp_path / "cache") == before


def test_two_runs_that_open_a_new_sketch_cache_at_once_end_with_one_basis(
    recipe_of, tmp_path, monkeypatch
):
    """While one run calibrates another makes the cache; the first drops its own basis for that."""
    calibrate = pipeline.teacher_cache.calibrate
    stages: list[TeacherCacheStage] = []
    dropped = []

    def raced(backend, reserved, kept):
        if not stages:
            monkeypatch.setattr(pipeline.teacher_cache, "calibrate", calibrate)
            stages.append(TeacherCacheStage.open(recipe))
        found = calibrate(backend, reserved, kept)
        dropped.append(replace(found.basis, base_V=found.basis.base_V + 1))
        return replace(found, basis=dropped[0])

    monkeypatch.setattr(pipeline.teacher_cache, "calibrate", raced)
    recipe = recipe_of("step", tmp_path)
    stages.append(TeacherCacheStage.open(recipe))
    stored = CacheReader.open(tmp_path / "cache", allow_empty=True).read_basis()
    assert not np.array_equal(dropped[0].base_V, stored.base_V)
    for stage in stages:
        np.testing.assert_array_equal(stage._writer.basis.base_V, stored.base_V)
        np.testing.assert_array_equal(stage._writer.basis.decode_RV, stored.decode_RV)
    assert stages[0].work == stages[1].work
    for i, item in enumerate(stages[0].work):  # turn by turn
        stages[i % 2].make_shard(item)
    for stage in stages:
        stage.close()
    assert run_teacher_cache(recipe).shards_made == 0
    assert run_student_train(recipe, shows_progress=False).is_complete
