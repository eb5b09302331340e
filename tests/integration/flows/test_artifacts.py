"""What Prefect's server knows of runs: artifacts and asset events, read back through its API."""

import json
import logging
import signal
import time
from collections.abc import Callable

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.exceptions import CancelledRun

import pipeline.teacher_cache
from flows.artifacts import artifact_key
from flows.assets import asset_of
from flows.student_train import student_train
from flows.teacher_cache import teacher_cache
from pipeline.cache.status import cache_status
from storage_schemas.errors import CacheWriteError

pytestmark = pytest.mark.usefixtures("prefect_server")

Stage = pipeline.teacher_cache.TeacherCacheStage
NUM_SHARDS = 3
LONGER = ("train.max_steps=4",)


def artifacts(what: str, address: object) -> list:
    """All artifacts of a key, the youngest first."""
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[artifact_key(what, str(address))]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=wanted)
    return sorted(found, key=lambda artifact: artifact.created, reverse=True)


def table(address: object) -> list[dict]:
    return json.loads(artifacts("shards", address)[0].data)


def asset_events(address: object, *, count: int = 1) -> list[dict]:
    """The asset events about one address, the youngest first, once there are so many."""
    key = asset_of(str(address)).key
    wanted = {"event": {"prefix": ["prefect.asset."]}, "resource": {"id": [key]}}
    deadline = time.monotonic() + 30
    while True:
        with get_client(sync_client=True) as client:
            answer = client.request("POST", "/events/filter", json={"filter": wanted})
        events = answer.json()["events"]
        if len(events) >= count or time.monotonic() > deadline:
            return events
        time.sleep(0.2)


@pytest.fixture
def fail_at(monkeypatch) -> Callable[[int, BaseException | Callable[[], object]], None]:
    """Does something before the n-th shard of a run is made; an error is raised."""
    real = Stage.make_shard

    def install(number: int, action: BaseException | Callable[[], object]) -> None:
        calls: list[str] = []

        def make_shard(self, item):
            calls.append(item.shard)
            if len(calls) == number:
                if isinstance(action, BaseException):
                    raise action
                action()
            return real(self, item)

        monkeypatch.setattr(Stage, "make_shard", make_shard)

    return install


def test_each_shard_is_a_row_and_the_progress_is_the_caches(write_recipe):
    recipe = write_recipe()
    result = teacher_cache(str(recipe))
    cache = recipe.parent / "cache"
    rows = table(cache)
    assert [row["state"] for row in rows] == ["committed"] * NUM_SHARDS
    assert sum(row["views"] for row in rows) == result["views"]
    assert sum(row["bytes"] for row in rows) == cache_status(cache).num_bytes
    assert {row["shard"] for row in rows} == {path.stem for path in (cache / "ledger").iterdir()}
    assert all(row["seconds"] > 0 and row["positions"] > 0 and row["worker"] for row in rows)
    (progress,) = artifacts("progress", cache)
    assert progress.data == 100
    assert "3 of 3 shards of this run committed; 0 were there before" in progress.description
    teacher_cache(str(recipe), ("noise.views=3",))
    assert len(artifacts("progress", cache)) == 2  # one a run: Prefect shows them as a history
    assert "3 were there before" in artifacts("progress", cache)[0].description


def test_a_failed_shard_is_named_with_its_reason_wherever_an_operator_looks(
    write_recipe, fail_at, caplog
):
    recipe = write_recipe()
    fail_at(2, CacheWriteError("the disk is full"))
    state = teacher_cache(str(recipe), return_state=True)
    cache = recipe.parent / "cache"
    shard = "p00001-v0000-0002"
    assert state.is_failed()
    assert state.message == f"shard {shard}: the disk is full"
    failed, committed = table(cache)
    assert (failed["shard"], failed["state"]) == (shard, "failed")
    assert failed["reason"] == "the disk is full"
    assert (committed["shard"], committed["state"]) == ("p00000-v0000-0002", "committed")
    assert f"shard {shard} failed: the disk is full" in caplog.text
    (noted,) = cache_status(cache).failures
    assert (noted.shard, noted.reason) == (shard, "the disk is full")
    (progress,) = artifacts("progress", cache)
    assert progress.data == pytest.approx(100 / NUM_SHARDS)
    assert "1 not made" in progress.description


def test_a_complete_cache_is_an_asset_and_the_student_is_made_from_it(write_recipe):
    recipe = write_recipe()
    made = teacher_cache(str(recipe))
    trained = student_train(str(recipe))
    cache, student = recipe.parent / "cache", recipe.parent / "student"
    referenced, materialized = asset_events(cache, count=2)
    assert referenced["event"] == "prefect.asset.referenced"
    assert materialized["event"] == "prefect.asset.materialization.succeeded"
    assert materialized["payload"]["digest"] == made["digest"]
    (materialized,) = asset_events(student)
    assert materialized["event"] == "prefect.asset.materialization.succeeded"
    assert materialized["payload"]["steps"] == trained["steps"]
    upstream = [one for one in materialized["related"] if one["prefect.resource.role"] == "asset"]
    assert [one["prefect.resource.id"] for one in upstream] == [asset_of(str(cache)).key]


def test_a_student_that_was_stopped_is_not_made_yet(write_recipe, monkeypatch):
    recipe = write_recipe()
    teacher_cache(str(recipe))
    monkeypatch.setattr("flows.student_train.report_metrics", lambda _: stop_on_first)
    with pytest.raises(CancelledRun, match="stopped at step 2; run again to go on"):
        student_train(str(recipe), LONGER)
    monkeypatch.undo()
    student_train(str(recipe), LONGER)
    (materialized,) = asset_events(recipe.parent / "student")  # the second run's alone
    assert materialized["payload"]["steps"] == 4


def stop_on_first(metrics: dict[str, float]) -> None:
    if metrics["step"] == 1:
        signal.raise_signal(signal.SIGTERM)


def test_a_student_that_fails_says_so_of_its_asset(write_recipe, monkeypatch):
    recipe = write_recipe()
    teacher_cache(str(recipe))

    def fail(metrics: dict[str, float]) -> None:
        raise RuntimeError("the loss is gone")

    monkeypatch.setattr("flows.student_train.report_metrics", lambda _: fail)
    with pytest.raises(RuntimeError, match="the loss is gone"):
        student_train(str(recipe))
    (event,) = asset_events(recipe.parent / "student")
    assert event["event"] == "prefect.asset.materialization.failed"


def test_the_curve_goes_on_where_a_stopped_run_was(write_recipe, monkeypatch):
    recipe = write_recipe()
    teacher_cache(str(recipe))
    output = recipe.parent / "student"
    (recipe.parent / "report.html").touch()
    monkeypatch.setattr("flows.student_train.report_metrics", lambda _: stop_on_first)
    with pytest.raises(CancelledRun):
        student_train(str(recipe), LONGER)
    assert artifacts("training", output)[0].data == 50
    monkeypatch.undo()
    student_train(str(recipe), LONGER)
    curve = artifacts("curve", output)[0].data
    steps = [line.split("|")[1].strip() for line in curve.splitlines() if line.startswith("| ")]
    assert steps == ["step", "---:", "1", "2", "3", "4"]
    assert artifacts("training", output)[0].data == 100
    page = recipe.parent / "report.html"
    assert artifacts("report", output)[0].data == f"[{page}]({page.as_uri()})"


def test_a_server_that_refuses_artifacts_costs_one_warning_and_no_shard(
    write_recipe, monkeypatch, caplog
):
    def refuse(*_, **__):
        raise ConnectionError("gone")

    monkeypatch.setattr("prefect.client.orchestration.SyncPrefectClient.create_artifact", refuse)
    with caplog.at_level(logging.WARNING):
        assert teacher_cache(str(write_recipe()))["shards_made"] == NUM_SHARDS
    warnings = [line for line in caplog.messages if "Prefect's UI may not show" in line]
    assert len(warnings) == 1
    assert "gone" in warnings[0]


def test_a_server_that_goes_away_costs_one_warning_and_no_shard(write_recipe, tidecache):
    num_shards = 60
    recipe = write_recipe(records=num_shards, records_per_part=1)
    ledger = recipe.parent / "cache" / "ledger"
    command = tidecache("teacher-cache", str(recipe))
    command.until(lambda: len(list(ledger.glob("*.json"))) > 2)
    (server,) = [one for one in command.children() if "flows.server_process" in one.cmdline()]
    server.kill()
    command.until(lambda: len(list(ledger.glob("*.json"))) == num_shards)
    command.until(lambda: "Prefect's UI may not show" in command.log.read_text())
    assert command.log.read_text().count("Prefect's UI may not show") == 1
