"""Which tasks are asked with which settings; what is refused before anything is loaded."""

import json
from pathlib import Path

import datasets
import evaluate
import pytest
import yaml
from typer.testing import CliRunner

from pipeline.benchmarks.lm import TidecacheLM
from pipeline.benchmarks.local import choice_questions, humaneval_problems
from pipeline.benchmarks.run import (
    LOCAL,
    LONG,
    PAPER,
    RUNS_CODE,
    SHORT,
    check_tasks,
    run_tasks,
    scores,
    task_manager,
    task_names,
)
from pipeline.cli.app import app
from pipeline.cli.generate import load
from pipeline.demo.corpus import ASSETS, documented_functions
from pipeline.generate.decoding import Decoding
from storage_schemas.errors import RecipeError

TASKS = Path(__file__).parents[3] / "pipeline" / "benchmarks" / "tasks"


@pytest.fixture(scope="module")
def lm() -> TidecacheLM:
    student = load(str(ASSETS / "student"), block_size=16, device="cpu", dtype="float32")
    decoding = Decoding(max_new_tokens=LONG, block_size=16, steps_per_block=16)
    return TidecacheLM(student.model, student.tokenizer, decoding)


def test_the_papers_eight_tasks_are_known_to_the_harness():
    assert len(PAPER) == 8
    assert set(PAPER) <= set(task_manager(is_ours=True).all_tasks)
    assert {name for name, tokens in PAPER.items() if tokens == SHORT} == {
        "hellaswag_gen",
        "mmlu_generative_dream",
    }
    assert LONG == 256


WHAT_IS_FETCHED = {
    "gsm8k_cot": "openai/gsm8k",
    "bbh": "SaylorTwift/bbh",
    "mmlu_pro": "TIGER-Lab/MMLU-Pro",
    "hellaswag_gen": "Rowan/hellaswag",
    "mmlu_generative_dream": "cais/mmlu",
    "humaneval_instruct": "code_eval",  # before its data: the Hub's own metric
    "mbpp_instruct": "code_eval",
}


@pytest.mark.parametrize("name", sorted(WHAT_IS_FETCHED))
def test_each_of_the_papers_tasks_resolves_up_to_its_download(
    name: str, lm: TidecacheLM, monkeypatch: pytest.MonkeyPatch
):
    """The network alone is closed: what is asked for there is noted, and the error says so."""
    asked: list[str] = []

    def unreachable(path: str, *_: object, **__: object) -> None:
        asked.append(path)
        raise ConnectionError(f"no way to {path}")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr(evaluate, "load", unreachable)
    with pytest.raises(RecipeError, match=f"task {name}: .*no way to"):
        run_tasks(lm, [name], allow_code_execution=True)
    assert asked[0] == WHAT_IS_FETCHED[name]


def test_sets_stand_for_their_tasks_once():
    assert task_names(["local", "gsm8k_cot", "humaneval_local"]) == (*LOCAL, "gsm8k_cot")
    assert task_names(["paper"]) == tuple(PAPER)


@pytest.mark.parametrize(
    "name",
    [
        *sorted(RUNS_CODE),
        "humaneval",
        "mbpp_plus",  # marked in a file that it includes
        "humaneval_infilling",  # a group
    ],
)
def test_code_runs_only_where_it_is_allowed(name: str):
    with pytest.raises(RecipeError, match="--allow-code-execution"):
        check_tasks([name], allow_code_execution=False)
    check_tasks([name], allow_code_execution=True)


@pytest.mark.parametrize("name", ["gsm8k_cot", "bbh", "mmlu", "hellaswag_gen"])
def test_tasks_that_run_no_code_are_not_refused(name: str):
    check_tasks([name], allow_code_execution=False)


def test_formulas_need_their_packages_before_any_task_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.benchmarks.needs.version", lambda _: "4.13.2")
    with pytest.raises(RecipeError, match=r"minerva_math.*4\.13\.2.*lm-eval\[math\]"):
        check_tasks(["gsm8k_cot", "minerva_math"], allow_code_execution=False)


def test_an_unknown_task_is_named():
    with pytest.raises(RecipeError, match="no_such_task"):
        check_tasks(["gsm8k_cot", "no_such_task"], allow_code_execution=False)


def test_the_local_questions_are_real_and_always_the_same():
    questions = choice_questions()["test"]
    assert len(questions) == 200
    prompts = {record.messages[0].content for record in documented_functions("held_out")}
    for row in questions:
        assert row["prompt"] in prompts
        assert len(set(row["choices"])) == 4
    assert len(set(questions["answer"])) == 4
    assert choice_questions()["test"].to_list() == questions.to_list()
    assert len(humaneval_problems()["test"]) == 164


HELLASWAG = [
    {
        "activity_label": "Cooking",
        "ctx": "A man cuts bread. He",
        "endings": ["flies.", "eats it.", "swims.", "is bread."],
        "label": "1",
    }
] * 2
MMLU = [
    {
        "subject": "high_school_biology",
        "question": "What is alive?",
        "choices": list("wxyz"),
        "answer": 2,
    }
] * 2


@pytest.mark.parametrize(
    ("name", "rows", "split", "answer", "heading"),
    [
        ("hellaswag_gen", HELLASWAG, "validation", "B", "Cooking: A man cuts bread. He"),
        ("mmlu_generative_dream", MMLU, "test", "C", "about high school biology"),
    ],
)
def test_our_tasks_ask_and_read_letters(
    name: str, rows: list, split: str, answer: str, heading: str, lm: TidecacheLM, tmp_path: Path
):
    """On local rows with the columns of the real data sets, which are on the Hub."""
    from lm_eval import simple_evaluate

    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = yaml.safe_load((TASKS / f"{name}.yaml").read_text())
    assert config["generation_kwargs"]["max_gen_toks"] == SHORT
    config |= {"dataset_path": "json", "dataset_kwargs": {"data_files": {split: str(data)}}}
    config.pop("dataset_name", None)

    asked: list[str] = []

    class Says(TidecacheLM):
        def generate_until(self, requests, disable_tqdm=False):
            asked.extend(request.args[0] for request in requests)
            return [f" {answer}.", "none of them"]

    lm.__class__, real = Says, lm.__class__
    try:
        found = simple_evaluate(
            lm, tasks=[config], num_fewshot=0, apply_chat_template=True, log_samples=False
        )
    finally:
        lm.__class__ = real
    assert heading in asked[0]
    assert found["results"][name]["exact_match,letter"] == 0.5


def test_local_tasks_run_to_the_end_with_a_real_student(lm: TidecacheLM):
    results = run_tasks(lm, task_names(["local"]), limit=2, allow_code_execution=True)
    found = {(score.task, score.metric): score.value for score in scores(results)}
    assert set(found) == {
        ("standard_library_choice", "acc"),
        ("standard_library_choice", "acc_norm"),
        ("humaneval_local", "pass@1"),
    }
    assert all(0 <= value <= 1 for value in found.values())


@pytest.mark.parametrize("draws", ["1", "2"])
def test_the_command_scores_records_and_tasks_and_writes_both(draws: str, tmp_path: Path):
    records = tmp_path / "held.jsonl"
    lines = [
        {"id": r.id, "messages": [{"role": m.role, "content": m.content} for m in r.messages]}
        for r in documented_functions("held_out")[:6]
    ]
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = tmp_path / "scores.json"
    arguments = ["evaluate", str(ASSETS / "student"), "--block-size", "16", "--device", "cpu"]
    arguments += ["--records", str(records), "--draws", draws, "--length", "128"]
    arguments += ["--tasks", "standard_library_choice", "--limit", "2", "--output", str(output)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(output.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert found["records"]["num_draws"] == int(draws)
    error = found["records"]["monte_carlo_error"]
    assert error is None if draws == "1" else error > 0
    assert len(set(found["records"]["fingerprints"])) == int(draws)
    assert 0 < found["records"]["nats_per_byte"] < found["records"]["nll_bound"]
    assert "acc,none" in found["tasks"]["standard_library_choice"]
    asked = found["tasks"]["standard_library_choice"]["asked"]
    assert (asked["questions"], asked["num_fewshot"]) == (2, 0)
    assert (found["batch_size"], found["decoding"]["block_size"]) == (8, 16)
    assert found["recipe"] is None
    assert "nats a byte" in done.output


def test_the_command_wants_something_to_do():
    done = CliRunner().invoke(app, ["evaluate", "x"])
    assert done.exit_code == 2
