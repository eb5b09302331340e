"""`python -m pipeline.study OUTPUT`: what is not answered yet; stopped, it goes on where it was.

Several processes may share the work: each takes the runs that no other has begun.
"""

import fcntl
import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers.utils import logging as transformers_logging

from pipeline.study.arms import Question
from pipeline.study.bodies import write_bodies_of
from pipeline.study.publish import publish as publish_study
from pipeline.study.questions import questions
from pipeline.study.results import headline
from pipeline.study.run import run_one


def main(
    output: Path,
    only: Annotated[str | None, typer.Option(help="Only questions that begin so.")] = None,
    publish: Annotated[
        Path | None, typer.Option(help="Then write tables, answers and pictures into this folder.")
    ] = None,
) -> None:
    """Answer the study's questions."""
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("pipeline").setLevel(logging.ERROR)
    output, asked = output.resolve(), questions()
    for question in asked:
        if only is None or question.name.startswith(only):
            _answer(question, output)
    if publish is not None:
        publish_study(asked, output, publish)


def _answer(question: Question, output: Path) -> None:
    for label, run in question.runs():
        with _taken(output / "taken" / run.key) as is_mine:
            if not is_mine:
                continue
            row = run_one(run, output)
            if question.name.startswith("objectives"):
                row |= write_bodies_of(run, output)
        shown = {"question": question.name, "seed": run.seed, "label": label, **headline(row)}
        print("  ".join(str(value) for value in shown.values()), flush=True)


@contextmanager
def _taken(path: Path) -> Generator[bool]:
    """Whether this process has the run, while it holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


if __name__ == "__main__":
    typer.run(main)
