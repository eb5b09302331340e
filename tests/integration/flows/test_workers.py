"""Real worker processes of Dask and Ray: what they make, and what is left when they are killed."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import psutil
import pytest
import torch
from clusters import new_token, running_cluster
from tiny import files_of
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from pipeline.cache.reader import CacheReader
from pipeline.cache.status import cache_status
from pipeline.config.recipe import load_recipe
from pipeline.teacher_cache import run_teacher_cache

ENGINES = ("dask", "ray")
SHARDS = 100  # more than one worker makes while another starts
FAILED, STOPPED = 2, 143
LOADED = re.compile(r"worker (\S+): the teacher was loaded")

# A teacher with its own code on the disk: on one token, as long as a file is there, it dies as the
# kernel kills what takes too much memory.
DEADLY = """
import os, signal
from transformers import Qwen3ForCausalLM

class DeadlyForCausalLM(Qwen3ForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model.register_forward_pre_hook(self._die, with_kwargs=True)

    def _die(self, module, arguments, named):
        if (named["input_ids"] == self.config.deadly_token).any():
            if os.path.exists(self.config.deadly_file):
                os.kill(os.getpid(), signal.SIGKILL)
"""


def workers(engine: str, *more: str) -> list[str]:
    """The command line's overrides for two workers."""
    settings = [f"workers.type={engine}", "workers.count=2", "workers.threads=1", *more]
    return [word for setting in settings for word in ("--set", setting)]


def worker_pids(log: str) -> set[int]:
    """The processes that have loaded a teacher, as the run's log tells."""
    return {int(worker.rpartition(":")[2]) for worker in LOADED.findall(log)}


def committed(recipe: Path) -> list[Path]:
    return list((recipe.parent / "cache" / "ledger").glob("*.json"))


@pytest.fixture(autouse=True)
def token(monkeypatch):
    """Before the command starts: a token of this test's own, for it and for a cluster it joins."""
    for name, value in new_token().items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Where the cache that one process makes is, once it is made."""
    return tmp_path_factory.mktemp("alone") / "cache"


@pytest.mark.parametrize("engine", ENGINES)
def test_killed_and_stopped_half_way_workers_make_what_one_process_makes(
    engine, write_recipe, tidecache, alone
):
    recipe = write_recipe(records=SHARDS, records_per_part=1)
    command = tidecache("teacher-cache", str(recipe), *workers(engine))
    command.until(lambda: len(worker_pids(command.log.read_text())) == 2)
    children = command.children()
    victim, other = worker_pids(command.log.read_text())
    os.kill(victim, signal.SIGKILL)
    # The other goes on, and another takes the dead one's place; a service manager stops them all.
    command.until(lambda: len(worker_pids(command.log.read_text())) == 3)
    children += command.children()
    (third,) = worker_pids(command.log.read_text()) - {victim, other}
    for pid in (other, third, command.process.pid):
        os.kill(pid, signal.SIGTERM)
    assert command.process.wait(60) == STOPPED, command.log.read_text()
    log = command.log.read_text()
    assert "views committed; run again to go on" in log
    assert "is given up" not in log
    loads = LOADED.findall(log)
    assert len(loads) == len(set(loads)) == 3  # once a process, kept over its shards
    assert psutil.wait_procs(children, timeout=15)[1] == []

    num_made = len(committed(recipe))
    assert 3 <= num_made < SHARDS
    assert [path.name for path in (recipe.parent / "cache" / "tmp").iterdir()] == ["lock"]
    if not alone.exists():
        run_teacher_cache(load_recipe(recipe, [f"cache.path={alone}"]))
    names = {path.stem for path in committed(recipe)}
    want = {
        path: data
        for path, data in files_of(alone).items()
        if not path.startswith(("ledger/", "shards/")) or Path(path).parts[1].split(".")[0] in names
    }
    shutil.rmtree(recipe.parent / "cache" / ".prefect")  # the server's, beside what is made
    assert files_of(recipe.parent / "cache") == want


@pytest.fixture
def deadly(write_recipe, models, tmp_path):
    """A recipe whose teacher dies of one record, as long as the file `deadly` is there."""
    recipe = write_recipe(records=5, records_per_part=1)
    text = (recipe.parent / "records.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    lines[2]["messages"][0]["content"] = "Write a quicksort."
    (recipe.parent / "records.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    tokenizer = AutoTokenizer.from_pretrained(models / "teacher")
    (recipe.parent / "deadly").touch()
    tokens = [set(tokenizer(one["messages"][0]["content"]).input_ids) for one in lines]
    (token, *_) = tokens[2] - tokens[0] - tokens[1] - tokens[3] - tokens[4]
    config = Qwen3Config.from_pretrained(models / "teacher")
    config.update({"deadly_token": token, "deadly_file": str(recipe.parent / "deadly")})
    folder = tmp_path / "teacher"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    told = json.loads((folder / "config.json").read_text())
    told["auto_map"] = {"AutoModelForCausalLM": "modeling_deadly.DeadlyForCausalLM"}
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "modeling_deadly.py").write_text(DEADLY)
    own_code = {"model": folder, "trust_remote_code": "true", "revision": "here"}
    return recipe, [f"teacher.{name}={value}" for name, value in own_code.items()]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_shard_that_keeps_killing_workers_is_given_up_and_the_others_are_made(
    engine, deadly, tidecache, tmp_path
):
    recipe, teacher = deadly
    modules = {"HF_MODULES_CACHE": str(tmp_path / "modules")}  # copies of the teacher's own code
    with running_cluster(engine, tmp_path, workers=2, environment=modules) as address:
        options = workers(engine, *teacher, f"workers.address={address}")
        command = tidecache("teacher-cache", str(recipe), *options)
        assert command.process.wait(150) == FAILED, command.log.read_text()
    log = command.log.read_text()
    assert "got 1 given up" in log
    assert "p00002-v0000-0002; what is committed is kept, run again" in log
    (failure,) = cache_status(recipe.parent / "cache").failures
    assert (failure.shard, failure.kind) == ("p00002-v0000-0002", "given up")
    assert failure.reason.startswith("workers died of it: ")
    assert f"shard {failure.shard} is given up: {failure.reason}" in log
    parts = [entry.part for entry in CacheReader.open(recipe.parent / "cache").entries]
    assert parts == [0, 1, 3, 4]
    (recipe.parent / "deadly").unlink()
    rest = run_teacher_cache(load_recipe(recipe, teacher))
    assert (rest.shards_found, rest.shards_made, rest.is_complete) == (4, 1, True)
    assert cache_status(rest.address).failures == ()
