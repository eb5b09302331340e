"""How much faster two workers make stage 1 than one, on Dask and on Ray, one thread a worker.

The model and the records are those of `native_model`. Start-up of the engine and of the teacher is
apart: every run is on a warm cluster. Prints, as its last line, one JSON object: dask_speedup_2,
ray_speedup_2.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from clusters import new_token, running_cluster  # noqa: E402
from native_model import NUM_RECORDS, NativeTeacher  # noqa: E402

from flows.local import ensure_server  # noqa: E402
from pipeline.demo.corpus import ASSETS  # noqa: E402
from storage_schemas.manifest import LEDGER_FOLDER, SHARDS_FOLDER  # noqa: E402

ENGINES = ("dask", "ray")
NUM_PARTS = 32
RUNS = 3


def worker_speedup(engine: str, recipe: Path, folder: Path, *, runs: int = RUNS) -> float:
    """Wall time with one worker over that with two: medians of `runs` alternating runs.

    `recipe` is one without [workers]; its cache is made anew in `folder` in every run. Time counts
    from the first shard that is given out to the last that is committed.
    """
    seconds: dict[int, list[float]] = {1: [], 2: []}
    os.environ |= new_token()
    with ExitStack() as stack:
        address: dict[int, str] = {}
        for count in seconds:
            own = folder / f"{engine}-{count}"
            own.mkdir(parents=True)
            address[count] = stack.enter_context(running_cluster(engine, own, workers=count))
        for run in range(runs + 1):
            for count, walls in seconds.items():
                cache = folder / f"{engine}-{count}" / "cache"
                wall = _seconds(recipe, engine, count, address[count], cache)
                if run:  # the first loads the teacher
                    walls.append(wall)
                print(
                    f"{engine}: {count} workers, run {run}: {wall:.2f} s",
                    file=sys.stderr,
                    flush=True,
                )
    return statistics.median(seconds[1]) / statistics.median(seconds[2])


def _seconds(recipe: Path, engine: str, count: int, address: str, cache: Path) -> float:
    """One run that makes every shard, on workers that have the teacher from an earlier one."""
    from flows.call import call_teacher_cache
    from flows.progress import reporting_to

    for name in (LEDGER_FOLDER, SHARDS_FOLDER):
        for path in (cache / name).glob("*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    elapsed: list[float] = []
    overrides = [
        f"workers.type={engine}",
        f"workers.count={count}",
        "workers.threads=1",
        f"workers.address={address}",
        f"cache.path={cache}",
    ]
    with reporting_to(
        on_shard=lambda progress: elapsed.append(progress.elapsed), on_log=lambda metrics: None
    ):
        call_teacher_cache(recipe, overrides)
    assert len(elapsed) == NUM_PARTS, "every shard was made"
    return elapsed[-1]


def write_recipe(teacher: NativeTeacher, folder: Path) -> Path:
    """Stage 1 over the native teacher's records, in shards that two workers can share evenly."""
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f"""
pipeline = {{ type = "cross_tokenizer" }}
records = {{ type = "files", paths = ["{teacher.folder}/records.jsonl"], id_field = "id" }}
student = {{ model = "{ASSETS}/tokenizer-student", length = 1024, block_size = 32 }}
targets = {{ type = "chunks", k = 16 }}
noise = {{ views = 1 }}
cache = {{ path = "{folder}/cache", records_per_part = {NUM_RECORDS // NUM_PARTS} }}
train = {{ output = "{folder}/student" }}

[teacher]
model = "{teacher.folder}/teacher"
attention = {{ type = "full" }}
length = 512
dtype = "float32"
device = "cpu"
backend = "transformers"
"""
    )
    return recipe


def main() -> None:
    """Both engines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="keep the model and its tokenizer here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-workers-") as name:
        folder = Path(name)
        teacher = NativeTeacher.make(arguments.work or folder / "teacher")
        ensure_server(folder / ".prefect", is_quiet=True)
        recipe = write_recipe(teacher, folder)
        found = {
            f"{engine}_speedup_2": worker_speedup(engine, recipe, folder) for engine in ENGINES
        }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
