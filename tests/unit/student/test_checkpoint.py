"""A saved student is read as the recipe beside it says."""

import json

import pytest

from pipeline.config.recipe import resolved_json
from pipeline.student.checkpoint import saved_student
from storage_schemas.errors import RecipeError


@pytest.fixture
def folder(make_recipe, tmp_path):
    recipe = make_recipe("b", tmp_path, **{"student.mask_id": 7})
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "recipe.json").write_text(resolved_json(recipe))
    return tmp_path / "final"


def test_block_size_and_mask_are_those_of_training(folder, make_recipe, tmp_path):
    want = make_recipe("b", tmp_path).student
    got = saved_student(str(folder))
    assert (got.model, got.block_size, got.length) == (str(folder), want.block_size, want.length)
    assert got.mask_id == 7


def test_a_block_size_that_is_asked_for_overrules_the_recipe(folder):
    got = saved_student(str(folder), block_size=36)
    assert (got.block_size, got.length) == (36, 108)  # of 96, to whole blocks


def test_without_a_recipe_the_block_size_has_to_be_given(tmp_path):
    with pytest.raises(RecipeError, match=r"recipe\.json.*got none.*--block-size"):
        saved_student(str(tmp_path))
    assert saved_student(str(tmp_path), block_size=8).block_size == 8
    assert saved_student("owner/name", block_size=8).model == "owner/name"


def test_a_runs_folder_is_told_from_its_student(folder):
    with pytest.raises(RecipeError, match=f"folder of its run; take {folder}"):
        saved_student(str(folder.parent))


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RecipeError, match="got no such folder"):
        saved_student(str(tmp_path / "nowhere"))


def test_a_recipe_beside_a_checkpoint_cannot_ask_for_its_code_to_be_run(folder):
    path = folder / "recipe.json"
    fields = json.loads(path.read_text())
    fields["student"] |= {"trust_remote_code": True, "revision": "main"}
    path.write_text(json.dumps(fields))
    got = saved_student(str(folder))
    assert not got.trust_remote_code
    assert got.revision is None
