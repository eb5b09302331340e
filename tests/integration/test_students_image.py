"""The files that the student's image has, and no others, run stage 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.recipe import load_recipe
from pipeline.teacher_cache import run_teacher_cache
from tests.images import DOCKERFILES, rehearse
from tests.tiny_recipe import save_models, write_recipe_file

# An editable installation would find in the checkout what the image leaves out.
PROGRAM = """
import sys
sys.meta_path = [one for one in sys.meta_path if getattr(one, "__name__", "") != "_EditableFinder"]
from pipeline.cli import main
main()
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    recipe = write_recipe_file(folder / "tiny", save_models(folder / "models"))
    run_teacher_cache(load_recipe(recipe))
    return recipe


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("src")
    files = rehearse.context(DOCKERFILES["student"])
    for name, rest in rehearse.instructions(DOCKERFILES["student"]):
        if name == "COPY":
            rehearse.copy(rest, {}, files, source)
    return source


def tidecache(image: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=image,
        env=os.environ | {"PYTHONPATH": str(image)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_student_is_trained_without_the_teachers_code(image, recipe):
    done = tidecache(image, "student-train", str(recipe), "--no-prefect")
    assert done.returncode == 0, done.stderr
    assert (recipe.parent / "student" / "final" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "command",
    [
        ("teacher-cache", "RECIPE"),
        ("plan", "RECIPE"),
        ("serve", "RECIPE", "--interval", "60"),
        ("verify", "CACHE", "--fidelity", "1"),
        ("demo",),
    ],
    ids=lambda command: command[0],
)
def test_a_command_of_stage_1_says_where_to_run_it(image, recipe, command):
    names = {"RECIPE": str(recipe), "CACHE": str(recipe.parent / "cache")}
    done = tidecache(image, *(names.get(word, word) for word in command))
    assert done.returncode == 2
    assert "expected the teacher's code for" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_cache_can_be_verified_without_the_teachers_code(image, recipe):
    done = tidecache(image, "verify", str(recipe.parent / "cache"))
    assert done.returncode == 0, done.stderr
