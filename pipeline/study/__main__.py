"""`python -m pipeline.study OUTPUT`: what is not answered yet; stopped, it goes on where it was.

Several processes may share the work: each takes the runs that no other has begun.
"""

import fcntl
import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers.utils import logging as transformers_logging

from pipeline.study.questions import questions
from pipeline.study.run import run_one


def main(
    output: Path,
    only: Annotated[str | None, typer.Option(help="Only questions that begin so.")] = None,
) -> None:
    """Answer the questions."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("pipeline").setLevel(logging.ERROR)
    output = output.resolve()
    for question in questions():
        if only is not None and not question.name.startswith(only):
            continue
        for run in question.runs():
            label = next(name for name, arm in question.arms.items() if arm == run.arm)
            with _taken(output / "taken" / run.key) as is_mine:
                if not is_mine:
                    continue
                row = run_one(run, output)
            scores = row["scores"]
            bound = sum(scores["bound_R"]) / sum(scores["tokens_R"])
            accuracy = sum(scores["correct_R"]) / sum(scores["masked_R"])
            print(
                f"{question.name:12} {run.seed:5} {label:28} {bound:.4f} {accuracy:.4f} "
                f"{row['seconds']:.0f} s",
                flush=True,
            )


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
