"""Which tasks are asked, with which settings, and what comes of it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.benchmarks.needs import check_math, runs_code
from pipeline.benchmarks.sandbox import isolation
from storage_schemas.errors import RecipeError

if TYPE_CHECKING:
    from pipeline.benchmarks.lm import TidecacheLM

LONG, SHORT = 256, 3
"""New tokens, one a step, of tasks that are answered by a text and by a letter (TIDE section 7)."""

PAPER = {
    "gsm8k_cot": LONG,
    "minerva_math": LONG,
    "bbh": LONG,
    "mmlu_pro": LONG,
    "humaneval_instruct": LONG,
    "mbpp_instruct": LONG,
    "hellaswag_gen": SHORT,
    "mmlu_generative_dream": SHORT,
}
SHOTS = {"bbh": 3}
LOCAL = ("standard_library_choice", "humaneval_local")
RUNS_CODE = frozenset({"humaneval_instruct", "mbpp_instruct", "humaneval_local"})
_IN_THE_SANDBOX = frozenset({"humaneval_local"})
_FOLDERS = (  # of lm-evaluation-harness, where the paper's tasks are
    "gsm8k",
    "minerva_math",
    "benchmarks",
    "bbh/cot_fewshot",
    "mmlu_pro",
    "humaneval",
    "mbpp",
)
_SETS = {"paper": tuple(PAPER), "local": LOCAL}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """One number: of a task, its metric (with the filter that read the answers), and its error."""

    task: str
    metric: str
    value: float
    error: float | None


def task_names(asked: Sequence[str]) -> tuple[str, ...]:
    """`paper` and `local` stand for their tasks; each task once."""
    names = [name for word in asked for name in _SETS.get(word, (word,))]
    return tuple(dict.fromkeys(names))


def check_tasks(names: Sequence[str], *, allow_code_execution: bool) -> None:
    """Raise before anything is loaded: a package is missing, a name unknown, code not allowed."""
    if find_spec("lm_eval") is None:
        raise RecipeError(
            "expected lm-evaluation-harness to be installed for --tasks, got no such package; run "
            "pip install 'tidecache[evaluate]'"
        )
    others = [name for name in names if name not in {*LOCAL, *PAPER}]
    index: Mapping[str, Any] = task_manager(is_ours=False).task_index if others else {}
    unknown = [name for name in others if name not in index]
    if unknown:
        raise RecipeError(
            f"expected tasks of lm-evaluation-harness's or tidecache's, got {', '.join(unknown)}; "
            f"'paper' and 'local' name sets, and `lm_eval ls tasks` lists all"
        )
    code = [name for name in names if name in RUNS_CODE or runs_code(name, index)]
    if code and not allow_code_execution:
        raise RecipeError(
            f"{', '.join(code)}: these tasks run code that the student writes; expected "
            f"--allow-code-execution, got none. Give it where such code can do no harm"
        )
    check_math(names)


@cache
def task_manager(*, is_ours: bool) -> Any:
    """Knows the paper's tasks and ours; else all of the harness's, whose reading takes a while."""
    import lm_eval.tasks

    own = files("pipeline.benchmarks") / "tasks"
    stock = Path(str(lm_eval.tasks.__file__)).parent
    folders = [stock / folder for folder in _FOLDERS] if is_ours else []
    return cast("Any", lm_eval.tasks).TaskManager(
        include_path=[str(folder) for folder in (*folders, own)], include_defaults=not is_ours
    )


def run_tasks(
    lm: "TidecacheLM",
    names: Sequence[str],
    *,
    limit: int | None = None,
    allow_code_execution: bool = False,
) -> dict[str, dict[str, Any]]:
    """The harness's results by task; a task of the paper's gets the paper's settings.

    Code runs only if it is allowed. `limit` asks that many questions of each task.
    """
    check_tasks(names, allow_code_execution=allow_code_execution)
    if allow_code_execution:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # what the stock tasks' checker asks for
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        found |= _run(lm, name, limit=limit, allow_code_execution=allow_code_execution)
    for name in _IN_THE_SANDBOX & found.keys():
        found[name]["isolation"] = isolation()
    return found


def scores(results: dict[str, dict[str, Any]]) -> list[TaskScore]:
    """The numbers among them, in order; the error is the harness's standard error."""
    found: list[TaskScore] = []
    for task, values in results.items():
        for key, value in values.items():
            metric, _, way = key.partition(",")
            if not isinstance(value, int | float) or "_stderr" in metric or not way:
                continue
            error = values.get(f"{metric}_stderr,{way}")
            found.append(
                TaskScore(
                    task=task,
                    metric=metric if way == "none" else f"{metric} ({way})",
                    value=float(value),
                    error=float(error) if isinstance(error, int | float) else None,
                )
            )
    return found


def _run(
    lm: "TidecacheLM", name: str, *, limit: int | None, allow_code_execution: bool
) -> dict[str, dict[str, Any]]:
    import lm_eval

    from pipeline.benchmarks.local import TASKS

    is_paper = name in PAPER
    try:
        output = cast("Any", lm_eval).simple_evaluate(
            lm,
            tasks=[TASKS[name]() if name in TASKS else name],
            task_manager=task_manager(is_ours=name in TASKS or is_paper),
            num_fewshot=SHOTS.get(name, 0) if is_paper else None,
            gen_kwargs={"max_gen_toks": PAPER[name]} if is_paper else None,
            apply_chat_template=True,
            limit=limit,
            log_samples=False,
            confirm_run_unsafe_code=allow_code_execution,
            bootstrap_iters=1000,
        )
    except (ImportError, OSError) as error:  # a failed download is an OSError
        raise RecipeError(
            f"task {name}: expected its data and what it computes with to be there, got: {error}; "
            f"the data comes from the Hub, and minerva_math wants pip install 'lm-eval[math]'"
        ) from error
    return {
        task: {**values, "asked": _asked(output, task)}
        for task, values in cast("dict[str, dict[str, Any]]", output["results"]).items()
    }


def _asked(output: Any, task: str) -> dict[str, Any]:
    """What the numbers are of: the task's version, its shots, questions and generation settings."""
    return {
        "version": output["versions"].get(task),
        "num_fewshot": output["n-shot"].get(task),
        "questions": output["n-samples"].get(task, {}).get("effective"),
        "generation": output["configs"].get(task, {}).get("generation_kwargs"),
    }
