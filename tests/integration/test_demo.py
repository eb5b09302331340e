"""The demo from end to end, on tiny random models that stand in for the bundled ones."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from pipeline.config.recipe import load_recipe
from pipeline.demo.corpus import ASSETS
from pipeline.demo.recipes import QUICK, choose_records, with_values, write_recipes
from pipeline.student_train import run_student_train
from pipeline.teacher_cache import run_teacher_cache
from pipeline.text.tokenizer import ChatTokenizer
from tests.tiny_recipe import MODEL

_ROOT = Path(__file__).parents[2]
_SHAPE: dict[str, Any] = MODEL | {"tie_word_embeddings": True}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_RUN_TWICE = """
import sys
from pathlib import Path
from pipeline.demo.run import run_demo
for _ in range(2):
    result = run_demo(Path(sys.argv[1]), quick=True, assets=Path(sys.argv[2]))
    print("SECONDS", result.seconds.stage_1, result.seconds.stage_2)
"""


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random models of the bundled ones' kinds, with the bundled tokenizers."""
    folder = tmp_path_factory.mktemp("assets")
    for seed, (name, tokens) in enumerate(
        (("student", "student"), ("teacher-a", "teacher-a"), ("teacher-b", "student"))
    ):
        torch.manual_seed(seed)
        tokenizer = ChatTokenizer.load(str(ASSETS / f"tokenizer-{tokens}"))
        shape = _SHAPE | {"vocab_size": tokenizer.vocab_size}
        is_moe = name == "teacher-a"
        model = (
            Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape, **_EXPERTS))
            if is_moe
            else Qwen3ForCausalLM(Qwen3Config(**shape))
        )
        model.save_pretrained(folder / name)
        tokenizer.hf.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def twice(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a quick demo that was run twice in one process, and what it printed."""
    output = tmp_path_factory.mktemp("demo") / "out"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")
    }
    run = subprocess.run(
        [sys.executable, "-c", _RUN_TWICE, str(output), str(assets)],
        cwd=_ROOT,
        env=environment | {"COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    return output, run.stdout


def _results(twice: tuple[Path, str]) -> dict[str, Any]:
    return json.loads((twice[0] / "results.json").read_text(encoding="utf-8"))


def test_every_model_is_scored_on_the_same_masks_at_every_level(twice: tuple[Path, str]):
    results = _results(twice)
    assert list(results["models"]) == [
        "start",
        "cross-control",
        "cross",
        "shared-control",
        "shared",
        "teacher-b",
    ]
    masked = {str(m["content_tokens"]["masked_tokens"]) for m in results["models"].values()}
    assert len(masked) == 1
    for model in results["models"].values():
        assert len(model["content_tokens"]["nll"]) == len(results["held_out"]["levels"]) == 5
        assert all(5 < nll < 12 for nll in model["content_tokens"]["nll"])  # random: about log 4096


def test_each_student_is_compared_with_its_own_control(twice: tuple[Path, str]):
    results = _results(twice)
    pairs = [(d["model"], d["minus"]) for d in results["differences"]]
    assert pairs[:2] == [("cross", "cross-control"), ("shared", "shared-control")]
    for difference in results["differences"]:
        model, minus = (
            results["models"][difference[side]]["content_tokens"] for side in ("model", "minus")
        )
        assert difference["nll_bound"] == pytest.approx(
            model["nll_bound"] - minus["nll_bound"], abs=1e-9
        )


def test_training_changes_the_student_and_the_objective_matters(twice: tuple[Path, str]):
    models = _results(twice)["models"]
    bounds = {key: model["content_tokens"]["nll_bound"] for key, model in models.items()}
    assert len(set(bounds.values())) == len(bounds)


def test_a_control_differs_from_its_student_in_the_objective_alone(twice: tuple[Path, str]):
    for name in ("cross", "shared"):
        runs = [
            json.loads((twice[0] / "students" / folder / "run.json").read_text())
            for folder in (name, f"{name}-control")
        ]
        assert runs[0]["cache"] == runs[1]["cache"]
        assert runs[1]["recipe"].pop("objective") == {"type": "masked_nll"}
        assert runs[0]["recipe"].pop("objective")["type"] in ("reverse_calm", "tidal_kl")
        assert runs[0] == runs[1]


def test_the_report_tells_numbers_and_places(twice: tuple[Path, str]):
    output, printed = twice
    for words in ("A  TIDE-Cross", "B  TIDE-Shared", "minus CE only", "teacher B", "Accuracy"):
        assert words in printed
    for name in ("report/report.html", "results.json", "recipes", "caches", "students", "held-out"):
        assert (output / name).exists()
        assert f"{output}/{name}" in printed


def test_the_page_shows_every_student_on_held_out_views(twice: tuple[Path, str]):
    folder = twice[0] / "report"
    page = (folder / "report.html").read_text(encoding="utf-8")
    numbers = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    labels = [setting["label"] for setting in numbers["settings"]]
    assert sorted(labels) == ["cross", "cross-control", "shared", "shared-control"]
    assert [row["label"] for row in numbers["held_out"]["rows"][:2]] == ["start", "teacher B"]
    assert [part["is_held_out"] for part in numbers["views"]] == [True, True]
    assert [part["has_tokens"] for part in numbers["views"]] == [False, True]
    assert all(label in page for label in labels)
    # what it found made, in the second run, it did not time
    assert [cost["seconds"] for cost in numbers["cache_costs"]] == [None, None]


def test_the_page_and_the_table_tell_the_same(twice: tuple[Path, str]):
    numbers = json.loads((twice[0] / "report" / "report.json").read_text(encoding="utf-8"))
    gains = {
        row["label"]: row["gain"]["bound"] for row in numbers["held_out"]["rows"] if row["gain"]
    }
    for difference in _results(twice)["differences"][:2]:
        gain = gains[difference["model"]]
        assert gain["mean"] == pytest.approx(-difference["nll_bound"])
        half = (gain["high"] - gain["low"]) / 2
        assert half == pytest.approx(1.96 * difference["nll_bound_error"], rel=1e-3)


def test_a_second_run_finds_caches_and_students(twice: tuple[Path, str]):
    printed = twice[1].split("SECONDS")[1]
    assert printed.count("found finished") == 8
    seconds = [line.split()[1:] for line in twice[1].splitlines() if line.startswith("SECONDS")]
    assert len(seconds) == 2
    for folder in ("cross", "cross-control", "shared", "shared-control"):
        run = twice[0] / "students" / folder
        assert (run / "summary.json").stat().st_mtime_ns <= (
            twice[0] / "held-out" / "masks.parquet"
        ).stat().st_mtime_ns


def test_the_teacher_can_be_removed_between_the_stages(assets: Path, tmp_path: Path, caplog):
    caplog.set_level(logging.ERROR, logger="pipeline")  # put back after the test, as others warn
    copies = tmp_path / "assets"
    shutil.copytree(assets, copies)
    recipes = write_recipes(tmp_path / "out", QUICK, copies)
    for path in recipes.values():
        run_teacher_cache(load_recipe(path))
    for teacher in ("teacher-a", "teacher-b"):
        shutil.rmtree(copies / teacher)
    for path in recipes.values():
        summary = run_student_train(load_recipe(path), shows_progress=False)
        assert summary.is_complete
        assert (summary.output / "model.safetensors").exists()


def test_a_recipe_keeps_its_comments_and_takes_other_values():
    text = '# why\n[a]\nx = 1  # one\n[a.b]\nx = 2\nys = ["p"]\n'
    got = with_values(text, {"a.x": 0.5, "a.b.ys": ['q"', "r"]})
    assert got == '# why\n[a]\nx = 0.5\n[a.b]\nx = 2\nys = ["q\\"", "r"]\n'
    with pytest.raises(AssertionError, match=r"no a\.z"):
        with_values(text, {"a.z": 1})


def test_records_are_chosen_from_all_over_and_a_smaller_choice_begins_a_larger():
    small, large = choose_records("train", 50), choose_records("train", 200)
    assert small == large[:50]
    assert len({record.id.partition("::")[0] for record in large}) > 60
