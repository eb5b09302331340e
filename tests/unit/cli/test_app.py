import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app as cli
from storage_schemas.errors import CacheCorruptError, CacheIdentityError

ROOT = Path(__file__).parents[3]
RECIPE = """
pipeline = {type = "cross_tokenizer"}
records = {type = "files", paths = ["records.jsonl"]}
student = {model = "student"}
teacher = {model = "teacher", attention = {type = "full"}}
targets = {type = "chunks"}
cache = {path = "cache"}
train = {output = "student"}
"""
HEAVY = ("torch", "transformers", "prefect", "polars", "zarr", "numpy")


@pytest.fixture
def run():
    runner = CliRunner()
    return lambda *arguments: runner.invoke(cli.app, arguments)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return str(path)


def test_help_names_every_command(run):
    result = run("--help")
    assert result.exit_code == 0
    names = ("demo", "teacher-cache", "student-train", "sweep", "generate", "evaluate", "report")
    for name in (*names, "inspect", "serve"):
        assert name in result.output
        assert run(name, "--help").exit_code == 0


def test_the_version_is_printed(run):
    result = run("--version")
    assert result.exit_code == 0
    assert result.output.strip()


def test_help_imports_nothing_heavy():
    code = f"import pipeline.cli, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("command", ["teacher-cache", "student-train"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no-such.toml",), "expected a recipe (TOML) at no-such.toml, got no such file"),
        (("{recipe}", "--set", "objective.typ=calm"), "objective"),
        (("{recipe}", "--set", "nonsense"), "expected an override like 'objective.type=calm'"),
        (("{recipe}", "--set", "noise.views=0"), "noise.views"),
    ],
)
def test_a_wrong_recipe_is_one_message_and_exit_code_2(run, recipe, command, arguments, message):
    result = run(command, *(argument.format(recipe=recipe) for argument in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("error", "code"), [(CacheCorruptError("torn"), 3), (CacheIdentityError("other"), 2)]
)
def test_exit_codes_tell_a_corrupt_cache_from_a_users_error(run, recipe, monkeypatch, error, code):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "_teacher_cache_plain", fail)
    result = run("teacher-cache", recipe, "--no-prefect")
    assert result.exit_code == code
    assert result.stderr.strip() == str(error)


def test_ctrl_c_exits_130(run, recipe, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_student_train_plain", interrupt)
    assert run("student-train", recipe, "--no-prefect").exit_code == 130


def test_the_overrides_reach_the_recipe_and_the_result_is_shown(run, recipe, monkeypatch):
    seen = []
    monkeypatch.setattr(
        cli, "_teacher_cache_plain", lambda loaded: seen.append(loaded) or {"views": 7}
    )
    result = run(
        "teacher-cache", recipe, "--no-prefect", "--set", "noise.views=7", "--set", "noise.seed=3"
    )
    assert result.exit_code == 0
    assert (seen[0].noise.views, seen[0].noise.seed) == (7, 3)
    assert result.stdout == "views  7\n"


@pytest.mark.parametrize(
    "arguments",
    [(), ("--cron", "0 2 * * *", "--interval", "5"), ("--interval", "0"), ("--cron", "often")],
)
def test_serve_needs_one_schedule_that_can_be(run, recipe, arguments):
    result = run("serve", recipe, *arguments)
    assert result.exit_code == 2
    assert "expected" in result.stderr


def test_bugs_keep_their_traceback(run, recipe, monkeypatch):
    monkeypatch.setattr(cli, "_teacher_cache_plain", lambda _: 1 / 0)
    result = run("teacher-cache", recipe, "--no-prefect")
    assert isinstance(result.exception, ZeroDivisionError)


def test_the_entry_point_is_what_pyproject_names():
    assert importlib.util.find_spec("pipeline.cli") is not None
    assert f"tidecache = {json.dumps('pipeline.cli:main')}" in (ROOT / "pyproject.toml").read_text()
