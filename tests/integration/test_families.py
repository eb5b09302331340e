"""Each family that brings code of its own, from records to a trained student."""

from pathlib import Path

import pytest
from remote import make_model, publish

from pipeline.cache.reader import CacheReader
from pipeline.student_train import run_student_train
from pipeline.teacher_cache import TeacherCacheStage, run_teacher_cache
from storage_schemas.errors import CacheIdentityError, RecipeError


@pytest.fixture
def recipe_of(make_recipe, tiny, tmp_path, remote_code_cache):
    """`recipe_of("llada")`: a recipe over a tiny checkpoint of that family."""

    def make(family, **overrides):
        kind = "b" if family == "wedlm" else "a"
        tokenizer = tiny.tokenizers[f"teacher-{kind}"]
        folder = tmp_path / family
        if not folder.is_dir():
            publish(make_model(family, vocab_size=tokenizer.vocab_size), family, folder)
            tokenizer.hf.save_pretrained(folder)
        teacher = {
            "teacher.model": str(folder),
            "teacher.revision": "this-folder",
            "teacher.trust_remote_code": True,
            "teacher.family": family,
            "teacher.mask_id": tokenizer.mask_id,
        }
        return make_recipe(kind, tmp_path, **(teacher | {"train.max_steps": 3} | overrides))

    return make


@pytest.mark.parametrize("family", ["wedlm", "llada2", "dream", "llada"])
def test_a_family_runs_from_records_to_a_student(family, recipe_of, tiny):
    recipe = recipe_of(family)
    summary = run_teacher_cache(recipe)
    assert summary.is_complete
    assert summary.counts.num_views == 2 * tiny.num_records
    assert CacheReader.open(Path(recipe.cache.path)).identity.teacher.family == family
    logs: list[dict[str, float]] = []
    assert run_student_train(recipe, on_log=logs.append, shows_progress=False).is_complete
    assert [entry["step"] for entry in logs if "loss" in entry] == [1, 2, 3]


def test_a_recipe_that_contradicts_its_family_is_refused_before_any_work(recipe_of, tmp_path):
    with pytest.raises(RecipeError, match=r"attention\.type"):
        TeacherCacheStage.open(recipe_of("llada2", **{"teacher.attention": {"type": "block"}}))
    assert not (tmp_path / "cache").exists()


def test_a_cache_is_not_continued_with_other_code(recipe_of, tmp_path):
    recipe = recipe_of("llada")
    run_teacher_cache(recipe)
    code = tmp_path / "llada" / "tiny_layers.py"
    code.write_text(code.read_text().replace("100.0", "1000.0"))
    with pytest.raises(CacheIdentityError, match="weights"):
        run_teacher_cache(recipe)
