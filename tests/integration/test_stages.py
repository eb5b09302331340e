"""Both pipelines from records to a trained student, and what a cache may be used for again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import assert_same, files_of, steps_of
from transformers import AutoModelForCausalLM

from pipeline.cache.reader import CacheReader
from pipeline.student_train import run_student_train
from pipeline.teacher_cache import TeacherCacheStage, run_teacher_cache
from storage_schemas.errors import CacheIdentityError, RecipeError
from storage_schemas.run_notes import WANTED_FILE


def train(recipe):
    logs: list[dict[str, float]] = []
    summary = run_student_train(recipe, on_log=logs.append, shows_progress=False)
    assert summary.is_complete
    return steps_of(logs)


def views_of(recipe):
    """(record, view) -> what is stored of it."""
    reader = CacheReader.open(Path(recipe.cache.path))
    stored = {}
    for entry in reader.entries:
        content = reader.read_shard(entry)
        for view in content.views:
            pair = content.examples[view.example]
            stored[pair.record_id, view.corruption.view] = (pair, view.corruption, view.targets)
    return stored


@pytest.mark.parametrize("kind", ["a", "b"])
def test_a_pipeline_runs_from_records_to_a_student(kind, make_recipe, tiny, tmp_path):
    recipe = make_recipe(kind, tmp_path)
    seen: list[tuple[str, int, int]] = []
    summary = run_teacher_cache(
        recipe, on_shard=lambda p: seen.append((p.entry.shard, p.done, p.total))
    )
    assert (summary.shards_made, summary.shards_found, summary.is_complete) == (3, 0, True)
    assert seen == [(f"p0000{i}-v0000-0002", i + 1, 3) for i in range(3)]
    assert summary.counts.num_examples == tiny.num_records
    assert summary.counts.num_views == 2 * tiny.num_records
    assert summary.counts.skips == {}
    assert json.loads((tmp_path / "cache" / "recipe.json").read_text())["noise"]["views"] == 2

    logs = train(recipe)
    assert [entry["step"] for entry in logs] == [1, 2, 3, 4, 5, 6]
    AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "final")


@pytest.mark.parametrize("kind", ["a", "b"])
def test_a_second_run_finds_every_shard_and_asks_no_teacher(kind, make_recipe, tmp_path, tiny):
    recipe = make_recipe(kind, tmp_path)
    run_teacher_cache(recipe)
    before = files_of(tmp_path / "cache")
    with TeacherCacheStage.open(recipe) as stage:
        assert (stage.work, stage.num_committed) == ((), 3)
    again = run_teacher_cache(recipe)
    assert (again.shards_made, again.shards_found) == (0, 3)
    assert files_of(tmp_path / "cache") == before


def test_the_student_needs_neither_teacher_nor_records(make_recipe, tiny, tmp_path):
    teacher = shutil.copytree(tiny.folder / "teacher-b", tmp_path / "teacher-b")
    records = shutil.copy(tiny.records, tmp_path / "records.jsonl")
    recipe = make_recipe(
        "b", tmp_path, **{"teacher.model": str(teacher), "records.paths": [str(records)]}
    )
    run_teacher_cache(recipe)
    with_teacher = train(recipe)
    shutil.rmtree(teacher)
    records.unlink()
    without = make_recipe(
        "b",
        tmp_path,
        **{
            "teacher.model": str(teacher),
            "records.paths": [str(records)],
            "train.output": str(tmp_path / "again"),
        },
    )
    assert train(without) == with_teacher


def test_one_cache_trains_many_students(make_recipe, tmp_path):
    """Objective, temperature, schedule and weights belong to stage 2: none needs stage 1."""
    first = make_recipe("b", tmp_path)
    run_teacher_cache(first)
    before = files_of(tmp_path / "cache")
    objectives = [
        {"type": "masked_nll"},
        {"type": "tidal_kl"},
        {"type": "tidal_kl", "temperature": 1.0},
        {"type": "tidal_kl", "tidal": {"lambda_max": 0.5, "growth": "linear"}},
        {"type": "tidal_kl", "weight": 3.0},
        {"type": "reverse_calm", "temperature": 5.0},
    ]
    last = []
    for i, objective in enumerate(objectives):
        overrides = {"train.output": str(tmp_path / f"out-{i}"), "train.max_steps": 2}
        recipe = make_recipe("b", tmp_path, objective=objective, **overrides)
        assert run_teacher_cache(recipe).shards_made == 0
        last.append(train(recipe)[-1]["loss"])
    assert len(set(last)) == len(objectives)
    assert files_of(tmp_path / "cache") == before


@pytest.mark.parametrize("kind", ["a", "b"])
def test_more_views_extend_a_cache_and_leave_its_shards_alone(kind, make_recipe, tmp_path):
    run_teacher_cache(make_recipe(kind, tmp_path / "grown"))
    before = files_of(tmp_path / "grown" / "cache")
    grown = make_recipe(kind, tmp_path / "grown", **{"noise.views": 5})
    summary = run_teacher_cache(grown)
    assert (summary.shards_made, summary.counts.num_views) == (3, 60)
    after = files_of(tmp_path / "grown" / "cache")
    assert {path for path in before if after[path] != before[path]} == {WANTED_FILE}

    at_once = make_recipe(kind, tmp_path / "at_once", **{"noise.views": 5})
    run_teacher_cache(at_once)
    got, want = views_of(grown), views_of(at_once)
    assert got.keys() == want.keys()
    for key in want:
        assert_close(got[key], want[key])


def assert_close(got, want):
    """Noise bit for bit; the teacher's answers within float32, for it saw other batches."""
    for one, other in zip(got[:2], want[:2], strict=True):
        assert_same(one, other)
    targets, others = got[2], want[2]
    np.testing.assert_array_equal(targets.chunk_C, others.chunk_C)
    np.testing.assert_array_equal(targets.pass_C, others.pass_C)
    np.testing.assert_allclose(targets.logp_C, others.logp_C, atol=1e-4, rtol=1e-5)
    if targets.tokens is not None:
        np.testing.assert_allclose(
            targets.tokens.logsumexp_MJ, others.tokens.logsumexp_MJ, atol=1e-4, rtol=1e-5
        )
        # stored as float16 distances: a step of float16 at 16 is 2^-6
        np.testing.assert_allclose(
            targets.tokens.logits_MK, others.tokens.logits_MK, atol=2**-6, rtol=0
        )


@pytest.mark.parametrize("kind", ["a", "b"])
def test_neither_the_cut_into_parts_nor_the_teachers_batches_change_what_is_stored(
    kind, make_recipe, tmp_path
):
    recipes = [
        make_recipe(
            kind,
            tmp_path / str(i),
            **{"cache.records_per_part": per_part, "teacher.batch_tokens": tokens},
        )
        for i, (per_part, tokens) in enumerate([(5, 512), (1, 512), (12, 100)])
    ]
    for recipe in recipes:
        run_teacher_cache(recipe)
    want = views_of(recipes[0])
    for recipe in recipes[1:]:
        got = views_of(recipe)
        assert got.keys() == want.keys()
        for key in want:
            assert_close(got[key], want[key])


@pytest.mark.parametrize("kind", ["a", "b"])
def test_two_runs_of_one_recipe_are_equal_bit_for_bit(kind, make_recipe, tmp_path):
    logs = []
    for name in ("one", "two"):
        recipe = make_recipe(kind, tmp_path / name)
        run_teacher_cache(recipe)
        logs.append(train(recipe))
    assert files_of(tmp_path / "one" / "cache") == files_of(tmp_path / "two" / "cache")
    assert logs[0] == logs[1]
    first, second = (
        (tmp_path / name / "out" / "final" / "model.safetensors").read_bytes()
        for name in ("one", "two")
    )
    assert first == second


def test_another_identity_is_refused_with_every_field_that_differs(make_recipe, tmp_path, tiny):
    run_teacher_cache(make_recipe("b", tmp_path))
    before = files_of(tmp_path / "cache")
    rows = tiny.records.read_text().splitlines()[:-1]
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("\n".join(rows) + "\n")
    other = make_recipe(
        "b",
        tmp_path,
        **{
            "noise.seed": 7,
            "noise.compdemo": {"ratio": 0.25},
            "targets.k": 8,
            "teacher.model": str(tiny.folder / "student"),
            "student.length": 64,
            "records.paths": [str(fewer)],
            "cache.records_per_part": 4,
        },
    )
    with pytest.raises(CacheIdentityError) as caught:
        run_teacher_cache(other)
    message = str(caught.value)
    for name in (
        "noise.seed: the cache has 0, the recipe asks for 7",
        "noise.demo_ratio: the cache has 0.5, the recipe asks for 0.25",
        "kept.top_k: the cache has 16, the recipe asks for 8",
        "teacher.weights",
        "lengths.student_length: the cache has 96, the recipe asks for 64",
        "records:",
        "layout.records_per_part: the cache has 5, the recipe asks for 4",
    ):
        assert name in message
    assert "teacher_tokenizer" not in message
    assert "name another cache folder" in message
    assert files_of(tmp_path / "cache") == before


def test_a_student_that_the_cache_does_not_fit_is_refused_with_every_reason(
    make_recipe, tmp_path, tiny
):
    run_teacher_cache(make_recipe("b", tmp_path, **{"pipeline.vocab": 1000}))
    tokenizer = shutil.copytree(tiny.folder / "student", tmp_path / "student")
    config = json.loads((tokenizer / "tokenizer_config.json").read_text())
    template = tokenizer / "chat_template.jinja"
    if template.exists():
        template.write_text(template.read_text() + " ")
    else:
        config["chat_template"] += " "
        (tokenizer / "tokenizer_config.json").write_text(json.dumps(config))
    other = make_recipe(
        "b",
        tmp_path,
        **{
            "student.model": str(tokenizer),
            "student.length": 64,
            "targets.temperatures": [1.0, 3.0],
            "objective.temperature": 3.0,
        },
    )
    with pytest.raises(CacheIdentityError) as caught:
        run_student_train(other, shows_progress=False)
    message = str(caught.value)
    for name in (
        "the student's tokenizer: the cache has",
        "student.length: the cache has 96, the recipe asks for 64",
        "pipeline.vocab: the cache has 1000, the recipe asks for 4096",
        "objective.temperature: the cache has logsumexps at [1.0, 2.0], the recipe asks for 3.0",
    ):
        assert name in message
    assert not (tmp_path / "out").exists()


def test_token_objectives_need_a_cache_of_tokens(make_recipe, tmp_path):
    chunks = {"targets": {"type": "chunks"}, "objective": {"type": "reverse_calm"}}
    run_teacher_cache(make_recipe("b", tmp_path, **chunks))
    with pytest.raises(CacheIdentityError, match=r"'tidal_kl' needs token distributions"):
        run_student_train(make_recipe("b", tmp_path), shows_progress=False)


def test_a_stop_is_honoured_between_shards_and_the_next_run_goes_on(make_recipe, tmp_path):
    undisturbed = make_recipe("a", tmp_path / "undisturbed")
    run_teacher_cache(undisturbed)
    recipe = make_recipe("a", tmp_path / "stopped")
    calls = iter([False, True])
    stopped = run_teacher_cache(recipe, should_stop=lambda: next(calls))
    assert (stopped.shards_made, stopped.is_complete) == (1, False)
    rest = run_teacher_cache(recipe)
    assert (rest.shards_made, rest.shards_found, rest.is_complete) == (2, 1, True)
    got, want = (files_of(tmp_path / name / "cache") for name in ("stopped", "undisturbed"))
    assert got == want


def test_a_cache_that_is_moved_is_the_same_cache(make_recipe, tmp_path):
    run_teacher_cache(make_recipe("a", tmp_path))
    moved = tmp_path / "moved"
    (tmp_path / "cache").rename(moved)
    recipe = make_recipe("a", tmp_path, **{"cache.path": str(moved)})
    assert run_teacher_cache(recipe).shards_made == 0
    train(recipe)


def test_a_cache_that_grew_is_another_run(make_recipe, tmp_path):
    recipe = make_recipe("a", tmp_path)
    run_teacher_cache(recipe)
    train(recipe)
    run_teacher_cache(make_recipe("a", tmp_path, **{"noise.views": 3}))
    with pytest.raises(RecipeError, match=r"differs in cache\.shards; name another train\.output"):
        train(recipe)
