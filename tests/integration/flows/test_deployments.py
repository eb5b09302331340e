"""flows/prefect.yaml on a real server with a real worker: what one does, and what may happen."""

import json
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.cache.inspect import scan_views
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

NUM_RECORDS = 24


@pytest.fixture(scope="module")
def ops(tmp_path_factory) -> Iterator[Operations]:
    with operations(tmp_path_factory.mktemp("operations")) as made:
        made.worker("teacher", "student")
        yield made


@pytest.fixture
def deployed(ops: Operations, write_recipe) -> Path:
    """A recipe of this test's own, deployed."""
    recipe = write_recipe(records=NUM_RECORDS, records_per_part=1)
    ops.deploy(recipe, str(recipe.parent / "cache"))
    return recipe


@pytest.fixture(scope="module")
def deployed_once(ops: Operations, tmp_path_factory) -> None:
    """Deployments that are only looked at."""
    ops.deploy(tmp_path_factory.mktemp("once") / "recipe.toml", "/data/cache")


@pytest.mark.parametrize(
    ("deployment", "parameters", "complaint"),
    [
        (TEACHER, {"views": 0}, "views"),
        (TEACHER, {"overrides": ["no value"]}, "overrides"),
        (TEACHER, {"recipe": ""}, "recipe"),
        (STUDENT, {"objective": "distil"}, "objective"),
        (STUDENT, {"temperature": 0}, "temperature"),
        (STUDENT, {"output": ""}, "output"),
    ],
)
@pytest.mark.usefixtures("deployed_once")
def test_the_server_refuses_what_cannot_be(ops, deployment, parameters, complaint):
    with pytest.raises(urllib.error.HTTPError) as refusal:
        ops.run(deployment, **parameters)
    assert f"Validation failed for field '{complaint}" in refusal.value.read().decode()


@pytest.mark.usefixtures("deployed_once")
def test_a_form_shows_each_parameter_by_itself_and_says_what_it_is(ops):
    for name in (TEACHER, STUDENT):
        fields = ops.deployment(name)["parameter_openapi_schema"]["properties"].values()
        assert all(field["description"] for field in fields)
        assert not [field for field in fields if field.get("type") == "object" or "$ref" in field]


def test_by_hand_with_other_parameters_then_the_chain_then_the_student_alone(ops, deployed):
    ops.ends(ops.run(TEACHER, views=1), "COMPLETED")
    views = scan_views(deployed.parent / "cache").select("view").collect()
    assert views["view"].to_list() == [0] * NUM_RECORDS
    chained = ops.chained(deployed)
    ops.ends(chained["id"], "COMPLETED")
    assert chained["created_by"]["type"] == "AUTOMATION"
    assert (deployed.parent / "student" / "summary.json").exists()
    other = deployed.parent / "calm"
    again = ops.run(STUDENT, objective="calm", temperature=1.0, seed=3, output=str(other))
    ops.ends(again, "COMPLETED")
    recipe = json.loads((other / "final" / "recipe.json").read_text())
    assert (recipe["objective"]["type"], recipe["objective"]["temperature"]) == ("calm", 1.0)
    assert recipe["train"]["seed"] == 3
    asked = [run for run in ops.runs("teacher-cache", deployed) if run["start_time"]]
    assert len(asked) == 1


def test_a_schedule_starts_the_teacher_and_the_commit_the_student(ops, deployed):
    teacher = ops.deployment(TEACHER)
    (nightly,) = teacher["schedules"]
    assert nightly["schedule"]["cron"] == "0 2 * * *"
    often = {"schedule": {"interval": 15}, "active": True}
    (added,) = ops.api("POST", f"deployments/{teacher['id']}/schedules", [often])
    ops.until(lambda: any(run["start_time"] for run in ops.runs("teacher-cache", deployed)))
    ops.api("DELETE", f"deployments/{teacher['id']}/schedules/{added['id']}")
    first = next(run for run in ops.runs("teacher-cache", deployed) if run["start_time"])
    assert first["auto_scheduled"]
    ops.ends(first["id"], "COMPLETED")
    ops.ends(ops.chained(deployed)["id"], "COMPLETED")
    assert (deployed.parent / "student" / "summary.json").exists()


def goes_on(ops: Operations, output: Path, overrides: list[str]) -> None:
    """The same training, run again, takes the step after its last checkpoint first."""
    saved = last_saved(output)
    again = ops.run(STUDENT, overrides=overrides, output=str(output))
    ops.until(lambda: f"step {saved + 1} of" in ops.log(again))
    ops.cancel(again)
    ops.ends(again, "CANCELLED")
    assert "step 1 of" not in ops.log(again)


def test_a_cancelled_training_saves_a_checkpoint_leaves_no_process_and_goes_on(ops, deployed):
    ops.ends(ops.run(TEACHER), "COMPLETED")
    ops.ends(ops.chained(deployed)["id"], "COMPLETED")
    output = deployed.parent / "long"
    run = ops.run(STUDENT, overrides=LONG, output=str(output))
    family = ops.family_at_step(run, 3)
    ops.cancel(run)
    ops.ends(run, "CANCELLED")
    assert psutil.wait_procs(family, timeout=15)[1] == []
    assert len(list(output.glob("checkpoint-*"))) == 1
    assert last_saved(output) >= 3
    goes_on(ops, output, LONG)


def test_a_killed_teacher_is_marked_and_the_next_run_makes_only_what_is_missing(ops, deployed):
    run = ops.run(TEACHER)
    ops.until(lambda: len(ledger_of(deployed)) >= 2)
    ops.flow_process(run).kill()
    ops.ends(run, "CRASHED")
    kept = ledger_of(deployed)
    assert 2 <= len(kept) < NUM_RECORDS, "killed in mid-run"
    assert ops.runs("student-train", deployed) == [], "an unfinished cache starts no student"
    again = ops.run(TEACHER)
    ops.ends(again, "COMPLETED")
    assert f"{len(kept)} shards found" in ops.log(again)
    made = ledger_of(deployed)
    assert len(made) == NUM_RECORDS
    assert kept.items() <= made.items()
    ops.ends(ops.chained(deployed)["id"], "COMPLETED")


def test_a_killed_training_is_marked_and_the_next_run_goes_on_from_its_checkpoint(ops, deployed):
    ops.ends(ops.run(TEACHER), "COMPLETED")
    ops.ends(ops.chained(deployed)["id"], "COMPLETED")
    output = deployed.parent / "long"
    overrides = [*LONG, "train.save_steps=5"]
    run = ops.run(STUDENT, overrides=overrides, output=str(output))
    family = ops.family_at_step(run, 7)
    family[0].kill()
    ops.ends(run, "CRASHED")
    assert psutil.wait_procs(family, timeout=15)[1] == []
    goes_on(ops, output, overrides)


def test_a_run_whose_worker_and_machine_are_gone_is_marked(ops, deployed):
    text = (ROOT / "flows" / "lost_runs.yaml").read_text()
    assert "within: 600" in text
    quick = deployed.parent / "lost_runs.yaml"
    quick.write_text(text.replace("within: 600", "within: 40"))  # the shortest heartbeat is 30 s
    ops.prefect("automation", "create", "--from-file", str(quick))
    lost = ops.worker("lost", PREFECT_FLOWS_HEARTBEAT_FREQUENCY="30")
    run = ops.run(TEACHER, queue="lost", views=1)
    process = ops.flow_process(run)
    ops.until(lambda: ledger_of(deployed))
    lost.kill()
    process.kill()
    assert ops.state(run)["type"] == "RUNNING"
    ops.ends(run, "CRASHED")
    assert "no heartbeat" in ops.state(run)["message"]
