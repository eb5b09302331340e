"""What an operator sees of a run, on a real server: artifacts, assets, a failed shard's reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.events.filters import EventFilter, EventNameFilter

from flows.artifacts import artifact_key
from flows.assets import asset_of
from flows.curve_pages import curves_text, report_beside, sparkline
from flows.student_train import student_train
from flows.teacher_cache import teacher_cache
from pipeline.cache.status import cache_status
from pipeline.teacher_cache import TeacherCacheStage

pytestmark = pytest.mark.usefixtures("prefect_server")


def artifacts(what: str, address: Path) -> list[Any]:
    key = ArtifactFilterKey(any_=[artifact_key(what, str(address))])
    with get_client(sync_client=True) as client:
        return client.read_artifacts(artifact_filter=ArtifactFilter(key=key))


def materialized(until: Callable[[list[Any]], bool]) -> list[Any]:
    """Asset events, which arrive a moment after the run."""
    import time

    names = EventFilter(event=EventNameFilter(prefix=["prefect.asset."]))
    deadline = time.monotonic() + 60
    while True:
        with get_client(sync_client=True) as client:
            body = {"filter": names.model_dump(mode="json"), "limit": 50}
            found = client._client.post("/events/filter", json=body).json()["events"]
        if until(found) or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def test_a_caches_shards_and_progress_are_shown_and_a_students_curve(write_recipe):
    recipe = write_recipe()
    cache, student = recipe.parent / "cache", recipe.parent / "student"
    teacher_cache(str(recipe))
    (progress,) = artifacts("progress", cache)
    assert progress.data == 100.0
    (table,) = artifacts("shards", cache)
    rows = json.loads(table.data)
    assert [row["state"] for row in rows] == ["committed"] * 3
    assert all(row["bytes"] > 0 and row["positions"] > 0 for row in rows)
    (student.parent / "report.html").write_text("a report")
    student_train(str(recipe))
    (training,) = artifacts("training", student)
    assert training.data == 100.0
    (curve,) = artifacts("curve", student)
    assert "**loss**" in curve.data
    assert "| 2 |" in curve.data
    (link,) = artifacts("report", student)
    assert str(student.parent / "report.html") in link.data
    events = materialized(
        lambda found: any(
            asset_of(str(student)).key == one["resource"]["prefect.resource.id"] for one in found
        )
    )
    own = [
        one
        for one in events
        if one["resource"]["prefect.resource.id"] == asset_of(str(student)).key
        and one["event"] == "prefect.asset.materialization.succeeded"
    ]
    assert own
    assert asset_of(str(cache)).key in {
        related["prefect.resource.id"] for related in own[0]["related"]
    }


def test_a_failed_shard_is_named_with_its_reason_everywhere(write_recipe, monkeypatch, caplog):
    recipe = write_recipe()
    cache = recipe.parent / "cache"
    make = TeacherCacheStage.make_shard
    made = []

    def fails_at_the_second(stage, item):
        made.append(item.shard)
        if len(made) == 2:
            raise ValueError("the disk sings")
        return make(stage, item)

    monkeypatch.setattr(TeacherCacheStage, "make_shard", fails_at_the_second)
    state = teacher_cache(str(recipe), return_state=True)
    assert state.is_failed()
    assert made[1] in state.message
    assert "the disk sings" in state.message
    (table,) = artifacts("shards", cache)
    failed, committed = json.loads(table.data)
    assert (failed["shard"], failed["state"]) == (made[1], "failed")
    assert "the disk sings" in failed["reason"]
    assert committed["state"] == "committed"
    assert f"shard {made[1]} failed" in caplog.text
    (noted,) = cache_status(cache).failures
    assert noted.shard == made[1]
    monkeypatch.setattr(TeacherCacheStage, "make_shard", make)
    teacher_cache(str(recipe))
    assert cache_status(cache).failures == ()
    assert cache_status(cache).missing == ()


def test_a_run_goes_on_when_nothing_can_be_shown(write_recipe, monkeypatch, caplog):
    def gone(*args, **kwargs):
        raise ConnectionError("the server is gone")

    monkeypatch.setattr("prefect.artifacts.Artifact.create", gone)
    assert teacher_cache(str(write_recipe()))["is_complete"]
    assert caplog.text.count("may not show where it stands") == 1


def test_a_curve_is_a_line_of_bars_and_a_table():
    assert sparkline([0.0, 1.0, 2.0]) == "▁▅█"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert len(sparkline(list(map(float, range(1000))))) == 60
    text = curves_text("/runs/a", [{"step": 1.0, "loss": 3.0}, {"step": 2.0, "loss": 1.0}])
    assert "3 → 1, lowest 1" in text
    assert text.rstrip().endswith("| 2 | 1 |")


def test_a_report_is_looked_for_in_the_runs_folder_and_beside_it(tmp_path):
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    assert report_beside(str(run)) is None
    (tmp_path / "runs" / "report.html").write_text("")
    assert report_beside(str(run)) == tmp_path / "runs" / "report.html"
    assert report_beside("s3://bucket/run") is None
