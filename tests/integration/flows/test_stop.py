"""Real processes, real SIGTERM: what was begun is finished, and nothing is left running."""

import psutil

from pipeline.cache.reader import CacheReader
from pipeline.config.recipe import load_recipe
from pipeline.teacher_cache import run_teacher_cache

STOPPED = 143


def test_a_stopped_teacher_cache_leaves_whole_shards_and_no_process(write_recipe, tidecache):
    recipe = write_recipe(records=400, records_per_part=1)
    ledger = recipe.parent / "cache" / "ledger"
    command = tidecache("teacher-cache", str(recipe))
    command.until(lambda: len(list(ledger.glob("*.json"))) > 2)
    children = command.children()
    assert any("flows.server_process" in child.cmdline() for child in children)
    command.process.terminate()
    assert command.process.wait(60) == STOPPED, command.log.read_text()
    assert "views committed; run again to go on" in command.log.read_text()
    assert "Traceback" not in command.log.read_text()
    assert psutil.wait_procs(children, timeout=15)[1] == []
    reader = CacheReader.open(recipe.parent / "cache")
    assert 2 < len(reader.entries) < 400
    for entry in reader.entries:
        assert len(reader.read_shard(entry).views) == 2


def test_without_prefect_a_stop_is_the_same(write_recipe, tidecache):
    recipe = write_recipe(records=400, records_per_part=1)
    ledger = recipe.parent / "cache" / "ledger"
    command = tidecache("teacher-cache", str(recipe), "--no-prefect")
    command.until(lambda: len(list(ledger.glob("*.json"))) > 2)
    assert command.children() == []
    command.process.terminate()
    assert command.process.wait(60) == STOPPED, command.log.read_text()
    assert not (recipe.parent / "cache" / ".prefect").exists()
    num_made = len(list(ledger.glob("*.json")))
    assert num_made < 400
    summary = run_teacher_cache(load_recipe(recipe), should_stop=lambda: True)
    assert (summary.shards_found, summary.is_complete) == (num_made, False)


def test_a_stopped_training_saves_a_checkpoint_and_goes_on_from_it(write_recipe, tidecache):
    recipe = write_recipe()
    run_teacher_cache(load_recipe(recipe))
    steps = ("--set", "train.max_steps=3000", "--set", "train.epochs=3000")
    command = tidecache("student-train", str(recipe), *steps, "--no-prefect")
    command.until(lambda: "step 3 " in command.log.read_text())
    command.process.terminate()
    assert command.process.wait(60) == STOPPED, command.log.read_text()
    (checkpoint,) = (recipe.parent / "student").glob("checkpoint-*")
    done = int(checkpoint.name.removeprefix("checkpoint-"))
    assert f"stopped at step {done}; run again to go on" in command.log.read_text()
    command = tidecache("student-train", str(recipe), *steps, "--no-prefect")
    command.until(lambda: " loss " in command.log.read_text())
    assert f"step {done + 1} " in command.log.read_text()
