"""What an operator waits for and may lose, with a real Prefect server and worker on loopback.

`make bench-operations`; the last line is JSON. deploy_to_first_shard_s: from `prefect deploy` to
the first shard in the ledger, of a run started by hand as soon as the deployment is there, with a
worker that waits. cancel_to_exit_s: from the cancellation of a training that has a loader process
to the end of its last process. orphans: processes of the cancelled and of the killed runs that are
still there after that. kill_resume_lost: what was committed before a SIGKILL and is made again by
the next run: shards of stage 1, and steps of stage 2 up to its last checkpoint.
doc_commands_run: commands of README and docs that were run, some in a shorter form;
doc_commands_not_run: those that cannot be, as tests/doc_commands.py says of each. hostile_inputs,
hostile_accepted: recipes, manifests, shards and checkpoints that mean harm.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.doc_commands import run_doc_commands
from tests.operations import (
    LONG,
    ROOT,
    STUDENT,
    TEACHER,
    Operations,
    last_saved,
    ledger_of,
    operations,
)
from tests.tiny_recipe import save_models, write_recipe_file

RECORDS = 48
SETTLE_SECONDS = 10


def main() -> None:
    """Measure, and print the line."""
    with tempfile.TemporaryDirectory(prefix="bench-operations-") as name:
        folder = Path(name)
        (folder / "models").mkdir()
        models = save_models(folder / "models")
        recipe = write_recipe_file(folder / "tiny", models, records=RECORDS, records_per_part=1)
        with operations(folder / "prefect") as ops:
            figures = {**deploy_and_kill(ops, recipe), **cancel_and_kill(ops, recipe)}
    figures["kill_resume_lost"] = figures.pop("shards_lost") + figures.pop("steps_lost")
    print(json.dumps({**figures, **documents(), **hostile()}), flush=True)


def deploy_and_kill(ops: Operations, recipe: Path) -> dict[str, float]:
    """Stage 1: deployed, started, killed in the middle, and resumed."""
    ops.worker()
    began = time.monotonic()
    ops.deploy(recipe, str(recipe.parent / "cache"))
    run = ops.run(TEACHER)
    ops.until(lambda: ledger_of(recipe))
    to_first_shard = time.monotonic() - began
    ops.flow_process(run).kill()
    ops.ends(run, "CRASHED")
    kept = ledger_of(recipe)
    assert 0 < len(kept) < RECORDS, "killed before its end"
    again = ops.run(TEACHER)
    ops.ends(again, "COMPLETED")
    made = ledger_of(recipe)
    assert len(made) == RECORDS, "the resumed run made all that was missing"
    return {
        "deploy_to_first_shard_s": round(to_first_shard, 1),
        "shards_lost": len(kept.items() - made.items()),
    }


def cancel_and_kill(ops: Operations, recipe: Path) -> dict[str, float]:
    """Stage 2: cancelled in the middle; another student killed after a checkpoint, and resumed."""
    chained = ops.chained(recipe)["id"]
    ops.ends(chained, "COMPLETED")
    cancelled = ops.run(STUDENT, overrides=LONG, output=str(recipe.parent / "cancelled"))
    first = ops.family_at_step(cancelled, 3)
    began = time.monotonic()
    ops.cancel(cancelled)
    psutil.wait_procs(first, timeout=120)
    to_exit = time.monotonic() - began
    ops.ends(cancelled, "CANCELLED")
    assert list((recipe.parent / "cancelled").glob("checkpoint-*")), "a checkpoint was saved"

    output = recipe.parent / "killed"
    overrides = [*LONG, "train.save_steps=5"]
    killed = ops.run(STUDENT, overrides=overrides, output=str(output))
    second = ops.family_at_step(killed, 7)
    second[0].kill()
    ops.ends(killed, "CRASHED")
    saved = last_saved(output)
    again = ops.run(STUDENT, overrides=overrides, output=str(output))
    third = ops.family_at_step(again, saved + 1)
    resumed = next(line for line in ops.log(again).splitlines() if line.startswith("step "))
    ops.cancel(again)
    ops.end_of(again)
    orphans = psutil.wait_procs([*first, *second, *third], timeout=SETTLE_SECONDS)[1]
    return {
        "cancel_to_exit_s": round(to_exit, 1),
        "orphans": len(orphans),
        "steps_lost": saved + 1 - int(resumed.split()[1]),
    }


def documents() -> dict[str, int]:
    """Commands of the pages: run as they stand or in a shorter form, and not run at all."""
    results = run_doc_commands()
    for result in results:
        if not result.ok:
            print(f"FAILED {result.page}: {result.command}\n{result.detail}", file=sys.stderr)
    tried = [result for result in results if result.status != "not run"]
    return {
        "doc_commands_run": len(tried),
        "doc_commands_not_run": len(results) - len(tried),
        "doc_commands_failed": sum(not result.ok for result in results),
    }


def hostile() -> dict[str, int]:
    """What the list of hostile inputs says of itself, in a process of its own."""
    command = [sys.executable, str(ROOT / "tests" / "hostile" / "cases.py")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    *refused_not, figures = done.stdout.splitlines()
    print(*refused_not, sep="\n", file=sys.stderr)
    return json.loads(figures)


if __name__ == "__main__":
    main()
