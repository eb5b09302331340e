"""Fidelity: the live teacher beside what is stored of it."""

import shutil
from pathlib import Path

import pytest

from pipeline.cache.reader import CacheReader
from pipeline.cache.verify import verify_cache
from pipeline.fidelity import keep_fidelity, measure_fidelity
from pipeline.teacher_cache import run_teacher_cache
from storage_schemas.errors import CacheIdentityError, CacheMissingError, RecipeError

SKETCH = {"type": "sketch", "calibration_records": 4, "step": 0.02}
KINDS = {
    "chunks": ("a", {}),
    "chunks and a top k to look at": ("a", {"targets.k": 4}),
    "even": ("b", {}),
    "whole rows": ("b", {"targets.k": 4096, "targets.logits_dtype": "float32"}),
    "mean logit": ("b", {"targets.tail": {"type": "mean_logit", "calibration_records": 4}}),
    "sketch": ("b", {"targets.k": 0, "targets.tail": SKETCH}),
}
ALL_VIEWS = 1000


@pytest.fixture(scope="module")
def made(make_recipe, tmp_path_factory):
    caches: dict[str, str] = {}

    def make(kind: str) -> str:
        if kind not in caches:
            letter, overrides = KINDS[kind]
            recipe = make_recipe(letter, tmp_path_factory.mktemp("cache"), **overrides)
            caches[kind] = run_teacher_cache(recipe).address
        return caches[kind]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_chunk_likelihoods_are_the_live_teachers(kind, made):
    fidelity = measure_fidelity(made(kind), num_views=ALL_VIEWS)
    entries = CacheReader.open(made(kind)).entries
    assert fidelity.views == sum(entry.counts.num_views for entry in entries)
    assert fidelity.positions > 0
    assert fidelity.chunk_logp_error.max < 1e-4  # other batches, other sums
    assert (fidelity.grad_error is None) is kind.startswith("chunks")
    assert set(fidelity.kl) == (set() if kind.startswith("chunks") else {"1.0", "2.0"})


def test_whole_rows_are_exact(made):
    fidelity = measure_fidelity(made("whole rows"), num_views=ALL_VIEWS)
    assert all(value.max < 1e-5 for value in fidelity.kl.values())
    assert fidelity.grad_error.max < 1e-4


def test_a_sketch_is_as_near_as_its_calibration_said(made):
    fidelity = measure_fidelity(made("sketch"), num_views=ALL_VIEWS)
    said = CacheReader.open(made("sketch")).manifest.calibration
    for temperature, kl in said.kl.items():
        assert kl / 2 < fidelity.kl[temperature].mean < kl * 2
    assert said.grad_error / 2 < fidelity.grad_error.mean < said.grad_error * 2
    nearer, even = fidelity, measure_fidelity(made("even"), num_views=ALL_VIEWS)
    assert nearer.grad_error.p95 < even.grad_error.p50
    for value in (fidelity.grad_error, *fidelity.kl.values()):
        assert 0 < value.p50 < value.p95 <= value.max


def test_equal_calls_choose_equal_views_spread_over_the_shards(made):
    one, two = (measure_fidelity(made("sketch"), num_views=3) for _ in range(2))
    assert one.model_copy(update={"measured_at": ""}) == two.model_copy(update={"measured_at": ""})
    assert one.views == 3
    assert one.positions < measure_fidelity(made("sketch"), num_views=ALL_VIEWS).positions


def test_the_manifest_keeps_the_figures_and_the_cache_stays_what_it_is(made, make_recipe, tmp_path):
    cache = Path(shutil.copytree(made("sketch"), tmp_path / "cache"))
    before = CacheReader.open(cache).manifest
    assert before.fidelity is None
    for num_views in (2, 4):
        fidelity = measure_fidelity(cache, num_views=num_views)
        keep_fidelity(cache, fidelity)
        after = CacheReader.open(cache).manifest
        assert after.fidelity == fidelity
        assert after.fidelity.views == num_views
        assert after.model_copy(update={"fidelity": None}) == before
    assert verify_cache(cache).is_sound
    letter, overrides = KINDS["sketch"]
    again = run_teacher_cache(make_recipe(letter, tmp_path, **overrides))
    assert (again.shards_made, again.digest) == (0, before.digest)


def test_the_same_teacher_may_lie_elsewhere_and_another_is_refused(made, tiny, tmp_path):
    moved = shutil.copytree(tiny.folder / "teacher-b", tmp_path / "moved")
    found = measure_fidelity(
        made("even"), num_views=2, overrides=[f"teacher.model={moved}", "teacher.batch_tokens=300"]
    )
    assert found.chunk_logp_error.max < 1e-4
    other = tiny.folder / "student"
    with pytest.raises(CacheIdentityError, match=r"teacher\.weights: the cache has"):
        measure_fidelity(made("even"), num_views=2, overrides=[f"teacher.model={other}"])
    with pytest.raises(CacheIdentityError, match=r"teacher\.dtype"):
        measure_fidelity(made("even"), num_views=2, overrides=["teacher.dtype=bfloat16"])


def test_what_is_missing_or_makes_no_sense_is_said(made, tmp_path):
    with pytest.raises(RecipeError, match="expected a view or more to score again, got 0"):
        measure_fidelity(made("even"), num_views=0)
    cache = Path(shutil.copytree(made("even"), tmp_path / "cache"))
    (cache / "recipe.json").unlink()
    with pytest.raises(CacheMissingError, match="expected the recipe that made this cache"):
        measure_fidelity(cache, num_views=1)


def test_a_cache_in_an_object_store_is_measured_and_keeps_the_figures_there(
    make_recipe, bucket, tmp_path
):
    recipe = make_recipe("b", tmp_path, **{"cache.path": f"{bucket}/cache"})
    cache = run_teacher_cache(recipe).address
    fidelity = measure_fidelity(cache, num_views=3)
    keep_fidelity(cache, fidelity)
    assert CacheReader.open(cache).manifest.fidelity == fidelity
    assert verify_cache(cache).is_sound
