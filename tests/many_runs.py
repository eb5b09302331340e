"""Stage 2 of many recipes in one torchrun, whose start costs more than a tiny run.

torchrun ... tests/many_runs.py RECIPES LOGS: JSON files, name -> recipe, and name -> log entries.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from pipeline.config.recipe import parse_recipe
from pipeline.student_train import run_student_train
from storage_schemas.errors import TidecacheError


def main(recipes: Path, logs: Path) -> None:
    """Runs them in order; of one that is refused, the error's message is what it logged."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    seen: dict[str, list[dict[str, float]] | str] = {}
    for name, fields in json.loads(recipes.read_text()).items():
        seen[name] = _run(fields)
    if torch.distributed.get_rank() == 0:
        logs.write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


def _run(fields: dict[str, Any]) -> list[dict[str, float]] | str:
    entries: list[dict[str, float]] = []
    stop_at = fields.pop("stop_at", None)
    if fields.pop("loses_its_end", False):
        _lose_end(Path(fields["train"]["output"]))
    try:
        run_student_train(
            parse_recipe(fields, where="test"),
            on_log=entries.append,
            should_stop=lambda: stop_at is not None and len(entries) == stop_at,
            shows_progress=False,
        )
    except TidecacheError as error:
        return f"{type(error).__name__}: {error}"
    return entries


def _lose_end(output: Path) -> None:
    """What a kill between the last checkpoint and the final student leaves."""
    if torch.distributed.get_rank() == 0:
        shutil.rmtree(output / "final")
        (output / "summary.json").unlink()
    torch.distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
