"""One training process among several, started by torchrun.

`tidecache student-train` starts it so for a recipe with [launch]. By hand, on each of two hosts:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:PORT \\
        -m pipeline.launch RECIPE --set train.batch_size=16
"""

import argparse
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from pipeline.config.recipe import load_recipe
from pipeline.launch.link import SOCKET_VARIABLE, Link
from pipeline.launch.messages import Failed, Finished, Logged
from storage_schemas.errors import TidecacheError

if TYPE_CHECKING:
    from pipeline.config.recipe import Recipe
    from pipeline.train.summary import TrainSummary

_LOG = logging.getLogger("tidecache")
_USER_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Train this process's share; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.launch", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    options = parser.parse_args(arguments)
    stop = threading.Event()
    # never the default: torchrun's own SIGTERM may follow one that came from elsewhere
    signal.signal(signal.SIGTERM, _sets(stop))
    rank = int(os.environ.get("RANK", "0"))
    address = os.environ.pop(SOCKET_VARIABLE, None)  # not for what this process starts
    if address is None:
        return _train_by_hand(options.recipe, options.overrides, rank, stop)
    try:
        link = Link(address, rank=rank, stop=stop)
    except OSError:
        return 1  # the launcher has ended meanwhile
    _train_linked(options.recipe, options.overrides, link, rank, stop)
    return 0  # how it ended has been told, so torchrun has nothing to report


def _sets(stop: threading.Event) -> Callable[[int, FrameType | None], None]:
    def ask(signum: int, frame: FrameType | None) -> None:
        stop.set()

    return ask


def _train_linked(
    recipe: Path, overrides: Sequence[str], link: Link, rank: int, stop: threading.Event
) -> None:
    def on_log(metrics: dict[str, float]) -> None:
        if rank == 0:
            link.send(Logged(rank=rank, metrics=metrics))

    try:
        summary = _train(load_recipe(recipe, overrides), on_log, rank, stop)
    except Exception as error:  # the launcher raises it again
        link.send(
            Failed(
                rank=rank,
                error=type(error).__name__,
                message=str(error),
                trace=traceback.format_exc(),
            )
        )
        link.close()
        os._exit(
            0
        )  # the other processes may never come to where an orderly end would wait for them
    link.send(Finished(rank=rank, summary=asdict(summary) | {"output": str(summary.output)}))
    link.close()


def _train_by_hand(recipe: Path, overrides: Sequence[str], rank: int, stop: threading.Event) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    def on_log(metrics: dict[str, float]) -> None:
        if rank == 0:
            _LOG.info("%s", "  ".join(f"{name} {value:.6g}" for name, value in metrics.items()))

    try:
        summary = _train(load_recipe(recipe, overrides), on_log, rank, stop)
    except TidecacheError as error:
        sys.stderr.write(f"{error}\n")
        return _USER_ERROR
    if rank == 0 and summary.is_complete:
        sys.stdout.write(json.dumps(asdict(summary) | {"output": str(summary.output)}) + "\n")
    elif rank == 0:
        _LOG.info("stopped at step %d; run again to go on", summary.steps)
    return 0


def _train(
    recipe: "Recipe", on_log: Callable[[dict[str, float]], None], rank: int, stop: threading.Event
) -> "TrainSummary":
    from torch import distributed  # here: what a user can mend is told before torch is loaded
    from transformers.utils import logging as transformers_logging

    from pipeline.student_train import run_student_train

    if rank > 0:  # what the first says once is enough
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
    summary = run_student_train(
        recipe, on_log=on_log, should_stop=stop.is_set, shows_progress=False
    )
    if distributed.is_initialized():
        distributed.destroy_process_group()
    return summary


if __name__ == "__main__":
    sys.exit(main())
