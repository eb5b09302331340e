"""A schedule that fires for real, and the event that starts stage 2 for its own cache alone."""

import json
import re
import urllib.request
import uuid
from collections import defaultdict
from datetime import UTC, datetime, timedelta

import psutil
import pytest
from prefect.events.schemas.events import Event, Resource, ResourceSpecification

from flows.events import COMMITTED, committed_event, match_of
from flows.serve import deployments
from storage_schemas.errors import RecipeError


def post(url: str, body: object) -> object:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        return json.loads(response.read() or b"null")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def committed(address: str) -> dict:
    return committed_event(address=address, digest="00ff", num_views=1, recipe="r.toml")


def test_the_trigger_answers_to_its_own_cache_alone(write_recipe):
    recipe = write_recipe()
    teacher, student = deployments(recipe, interval=timedelta(seconds=30))
    assert teacher.name == student.name
    assert teacher.parameters == student.parameters == {"recipe": str(recipe), "overrides": []}
    (trigger,) = student.triggers
    assert teacher.triggers == []
    assert trigger.expect == {COMMITTED}
    address = str(recipe.parent / "cache")
    for other, expected in ((address, True), (address + "2", False), (address[:-1], False)):
        resource = Resource(committed(other)["resource"])
        assert ResourceSpecification(trigger.match.root).matches(resource) is expected


def test_another_recipe_of_the_same_name_is_another_deployment(write_recipe):
    recipe = write_recipe()
    other = recipe.parent / "other" / recipe.name
    other.parent.mkdir()
    other.write_text(recipe.read_text())
    first, second = (deployments(path, cron="0 2 * * *")[0].name for path in (recipe, other))
    assert first != second


def test_a_schedule_that_cannot_be_is_a_users_error(write_recipe):
    with pytest.raises(RecipeError, match="got '99 2"):
        deployments(write_recipe(), cron="99 2 * * *")


def test_the_event_is_one_that_prefect_takes():
    event = Event(occurred=datetime.now(UTC), **committed("/data/cache"))
    assert event.resource.id == "tidecache.cache.00ff"
    assert ResourceSpecification(match_of("/data/cache")).matches(event.resource)


def test_a_schedule_fires_and_the_commit_starts_the_student(write_recipe, tidecache):
    recipe = write_recipe()
    summary = recipe.parent / "student" / "summary.json"
    command = tidecache("serve", str(recipe), "--interval", "20")
    command.until(lambda: "flow 'teacher-cache'" in command.log.read_text())
    found = re.search(r"http://127\.0\.0\.1:\d+", command.log.read_text())
    assert found is not None, command.log.read_text()
    other = {"id": str(uuid.uuid4()), "occurred": datetime.now(UTC).isoformat()}
    post(f"{found[0]}/api/events", [committed(str(recipe.parent / "other-cache")) | other])
    command.until(summary.exists)
    runs = post(
        f"{found[0]}/api/flow_runs/filter", {"flows": {"name": {"any_": ["student-train"]}}}
    )
    events = post(f"{found[0]}/api/events/filter", {"filter": {"event": {"name": [COMMITTED]}}})
    times = defaultdict(list)
    for event in events["events"]:
        times[event["resource"]["tidecache.cache.address"]].append(_time(event["occurred"]))
    own = times.pop(str(recipe.parent / "cache"))
    assert len(times) == 1  # the other cache's event came, long before
    assert 1 <= len(runs) <= len(own)
    assert all(_time(run["created"]) > min(own) for run in runs)
    children = command.children()
    command.process.terminate()
    assert command.process.wait(60) == 0, command.log.read_text()
    assert psutil.wait_procs(children, timeout=15)[1] == []
