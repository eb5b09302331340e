"""What a worker process keeps between its shards: one cache, with its teacher loaded.

Nothing here loads torch before the process has its GPUs and its threads.
"""

import json
import os
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows.gpus import claim_gpus
from flows.stop import go_deaf_to_sigterm
from pipeline.config.recipe import Recipe, parse_recipe
from pipeline.shards.work import MadeShard, RecordsFound, WorkItem

if TYPE_CHECKING:
    from pipeline.teacher_cache import JoinedCache


@dataclass(frozen=True, slots=True)
class _Held:
    key: tuple[str, RecordsFound]
    cache: "JoinedCache"


_TURN = threading.Lock()
_held: _Held | None = None


def make_shard(recipe: str, found: RecordsFound, item: WorkItem) -> MadeShard:
    """Make one shard, one at a time, with the teacher that the last shard has left loaded.

    `recipe` is resolved JSON. Another recipe than the last one's takes that one's place.
    """
    with _TURN:
        return _cache_of((recipe, found)).make_shard(item)


def _cache_of(key: tuple[str, RecordsFound]) -> "JoinedCache":
    global _held
    if _held is not None and _held.key != key:
        _held.cache.close()
        _held = None
    if _held is None:
        text, found = key
        recipe = parse_recipe(json.loads(text), where="the run's recipe")
        _settle(recipe)
        from pipeline.teacher_cache import JoinedCache  # here: it loads torch

        _held = _Held(key, JoinedCache(recipe, found))
    return _held.cache


def _settle(recipe: Recipe) -> None:
    """This process's GPUs and threads, before torch asks for them."""
    go_deaf_to_sigterm()  # Ray runs this in the main thread; Dask's have a plugin
    config, teacher = recipe.workers, recipe.teacher
    assert config is not None, "a worker's recipe has workers"
    claim_gpus(teacher.device, teacher.tensor_parallel)
    threads = config.threads or max(1, len(os.sched_getaffinity(0)) // config.count)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if "torch" in sys.modules:  # of a cluster that has done other work
        sys.modules["torch"].set_num_threads(threads)
