"""How much faster two workers make stage 1 than one, on Dask and on Ray, one thread a worker.

Start-up of the engine and of the teacher is apart: every run is on a warm cluster. Prints, as its
last line, one JSON object: dask_speedup_2, ray_speedup_2.
"""

import json
import os
import random
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

from flows.local import ensure_server  # noqa: E402
from pipeline.demo.corpus import ASSETS  # noqa: E402
from storage_schemas.manifest import LEDGER_FOLDER, SHARDS_FOLDER  # noqa: E402

ENGINES = ("dask", "ray")
NUM_RECORDS, NUM_PARTS = 256, 16
SHORTEST, LONGEST = 64, 256  # tokens of a sequence
RUNS = 3
TEACHER = {  # about 50 million parameters
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 2048,
    "tie_word_embeddings": True,
}


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
                print(f"{engine}: {count} workers, run {run}: {wall:.2f} s", flush=True)
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


def write_inputs(folder: Path) -> Path:
    """A random native teacher, records of SHORTEST to LONGEST tokens, and a recipe over them."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tokenizer-student")
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), **TEACHER)).save_pretrained(
        folder / "teacher"
    )
    tokenizer.save_pretrained(folder / "teacher")
    draw = random.Random(0)
    words = [word for word in tokenizer.get_vocab() if word.isalpha() and word.isascii()]
    lines = [
        {
            "id": f"r{i}",
            "messages": [
                {"role": "user", "content": "Write."},
                {"role": "assistant", "content": " ".join(draw.choices(words, k=length // 2))},
            ],
        }
        for i, length in enumerate(draw.choices(range(SHORTEST, LONGEST + 1), k=NUM_RECORDS))
    ]
    records = folder / "records.jsonl"
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f"""
pipeline = {{ type = "shared_tokenizer", vocab = {len(tokenizer)} }}
records = {{ type = "files", paths = ["{records}"], id_field = "id" }}
student = {{ model = "{folder}/teacher", length = {LONGEST}, block_size = 32 }}
targets = {{ type = "tokens", k = 16, tail = {{ type = "even" }} }}
noise = {{ views = 1 }}
cache = {{ path = "{folder}/cache", records_per_part = {NUM_RECORDS // NUM_PARTS} }}
objective = {{ type = "tidal_kl" }}
train = {{ output = "{folder}/student" }}

[teacher]
model = "{folder}/teacher"
attention = {{ type = "full" }}
length = {LONGEST}
dtype = "float32"
device = "cpu"
batch_tokens = 2048
backend = "transformers"
"""
    )
    return recipe


def main() -> None:
    """Both engines, on a model of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ensure_server(folder / ".prefect", is_quiet=True)
        recipe = write_inputs(folder)
        found = {
            f"{engine}_speedup_2": round(worker_speedup(engine, recipe, folder), 3)
            for engine in ENGINES
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
