import signal
from pathlib import Path

import pytest
from prefect.exceptions import CancelledRun

import flows.teacher_cache
import pipeline.teacher_cache
from flows.events import COMMITTED
from flows.teacher_cache import teacher_cache
from flows.transient import NUM_RETRIES
from pipeline.cache.reader import CacheReader
from storage_schemas.errors import CacheIdentityError, CacheWriteError, RecipeError

pytestmark = pytest.mark.usefixtures("prefect_server")

NUM_SHARDS = 3
Stage = pipeline.teacher_cache.TeacherCacheStage


@pytest.fixture(autouse=True)
def events(monkeypatch) -> list[dict]:
    """What the flow emits, instead of the emission."""
    seen: list[dict] = []
    monkeypatch.setattr(flows.teacher_cache, "emit_event", lambda **event: seen.append(event))
    return seen


@pytest.fixture
def before_shard(monkeypatch):
    """Runs a function with the number of each call, before a shard is made."""

    def install(action):
        calls: list[str] = []
        real = Stage.make_shard

        def make_shard(self, item):
            calls.append(item.shard)
            action(len(calls))
            return real(self, item)

        monkeypatch.setattr(Stage, "make_shard", make_shard)
        return calls

    return install


def test_the_first_run_makes_the_shards_and_the_second_finds_them(
    write_recipe, events, before_shard
):
    recipe = write_recipe()
    made = teacher_cache(str(recipe))
    assert (made["shards_made"], made["shards_found"], made["views"]) == (NUM_SHARDS, 0, 12)
    calls = before_shard(lambda call: None)
    found = teacher_cache(str(recipe))
    assert (found["shards_made"], found["shards_found"]) == (0, NUM_SHARDS)
    assert calls == []
    cache = recipe.parent / "cache"
    reader = CacheReader.open(cache)
    expected = {
        "event": COMMITTED,
        "resource": {
            "prefect.resource.id": f"tidecache.cache.{reader.manifest.digest}",
            "prefect.resource.name": str(cache),
            "tidecache.cache.address": str(cache),
        },
        "payload": {
            "address": str(cache),
            "digest": reader.manifest.digest,
            "num_views": 12,
            "recipe": str(recipe),
        },
    }
    assert events == [expected, expected]


def test_more_views_extend_the_cache(write_recipe):
    recipe = write_recipe()
    teacher_cache(str(recipe))
    more = teacher_cache(str(recipe), ("noise.views=3",))
    assert (more["shards_made"], more["views"]) == (NUM_SHARDS, 18)


def test_on_sigterm_the_shard_in_flight_is_committed_and_no_other_starts(
    write_recipe, events, before_shard
):
    recipe = write_recipe()
    calls = before_shard(lambda call: call == 2 and signal.raise_signal(signal.SIGTERM))
    with pytest.raises(CancelledRun, match="stopped with 8 views committed"):
        teacher_cache(str(recipe))
    assert [entry.shard for entry in CacheReader.open(recipe.parent / "cache").entries] == calls
    assert len(calls) == 2
    assert events == []
    assert teacher_cache(str(recipe))["shards_made"] == NUM_SHARDS - 2


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), TimeoutError("slow")])
def test_a_transient_error_is_tried_again(write_recipe, before_shard, monkeypatch, error):
    monkeypatch.setattr(flows.teacher_cache, "WAITS", 0)

    def fail_twice(call: int) -> None:
        if call <= 2:
            raise error

    calls = before_shard(fail_twice)
    assert teacher_cache(str(write_recipe()))["shards_made"] == NUM_SHARDS
    assert len(calls) == 2 + NUM_SHARDS


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), OSError("no room"), CacheWriteError("full")]
)
def test_no_other_error_is_tried_again(write_recipe, before_shard, monkeypatch, events, error):
    monkeypatch.setattr(flows.teacher_cache, "WAITS", 0)

    def fail(call: int) -> None:
        raise error

    calls = before_shard(fail)
    with pytest.raises(type(error), match=str(error)):
        teacher_cache(str(write_recipe()))
    assert len(calls) == 1
    assert events == []


def test_retries_end(write_recipe, before_shard, monkeypatch):
    monkeypatch.setattr(flows.teacher_cache, "WAITS", 0)

    def fail(call: int) -> None:
        raise ConnectionError("gone for good")

    calls = before_shard(fail)
    with pytest.raises(ConnectionError, match="gone for good"):
        teacher_cache(str(write_recipe()))
    assert len(calls) == 1 + NUM_RETRIES


def test_waits_grow_exponentially():
    assert flows.teacher_cache.WAITS(NUM_RETRIES) == [5, 10, 20, 40]


def test_a_users_error_comes_out_as_itself_and_is_logged_without_a_traceback(write_recipe, caplog):
    with pytest.raises(RecipeError, match="got no such file"):
        teacher_cache("no-such.toml")
    recipe = write_recipe()
    teacher_cache(str(recipe))
    with pytest.raises(CacheIdentityError, match=r"noise\.seed"):
        teacher_cache(str(recipe), ("noise.seed=7",))
    assert [record for record in caplog.records if record.exc_info] == []


def test_paths_of_a_cache_are_absolute_whatever_the_recipe_says(write_recipe, monkeypatch, events):
    recipe = write_recipe()
    monkeypatch.chdir(recipe.parent)
    teacher_cache(recipe.name, ("cache.path=cache",))
    assert events[0]["payload"]["address"] == str(Path(recipe.parent, "cache"))
