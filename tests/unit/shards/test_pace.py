"""Rates and the time left, by a clock that is set by hand."""

import pytest

from pipeline.shards.pace import Pace, duration
from pipeline.shards.work import MadeShard
from storage_schemas.manifest import Counts, FileEntry, LedgerEntry


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def made(*, positions: int, tokens: int, num_bytes: int, seconds: float = 1.0) -> MadeShard:
    file = FileEntry(path="shards/p00000-v0000-0001/a", size=num_bytes, xxh3_128="0" * 32)
    numbers = {name: 0 for name in Counts.model_fields if name != "skips"}
    entry = LedgerEntry(
        shard="p00000-v0000-0001",
        folder="shards/p00000-v0000-0001",
        part=0,
        view_start=0,
        view_stop=1,
        files=(file,),
        counts=Counts(**numbers, skips={}),
    )
    return MadeShard(
        entry=entry,
        positions=positions,
        teacher_tokens=tokens,
        seconds=seconds,
        load_seconds=0.0,
        not_finite=(),
        worker="here:1",
    )


def test_the_time_left_follows_views_not_shards():
    clock = Clock()
    pace = Pace([100, 100, 600], clock=clock)
    clock.now += 10
    first = pace.after(made(positions=500, tokens=2000, num_bytes=10), 100)
    # 100 of 800 views took 10 s: 700 take 70, whatever the number of shards
    assert (first.done, first.total, first.seconds_left) == (1, 3, pytest.approx(70))
    assert (first.positions_per_second, first.tokens_per_second) == pytest.approx((50, 200))
    clock.now += 30
    second = pace.after(made(positions=300, tokens=2000, num_bytes=5), 100)
    assert second.seconds_left == pytest.approx(600 * 40 / 200)
    assert (second.positions_per_second, second.tokens_per_second) == pytest.approx((20, 100))
    assert second.num_bytes == 15
    assert pace.after(made(positions=1, tokens=1, num_bytes=1), 600).seconds_left == 0


def test_a_shard_that_was_there_already_tells_nothing_of_the_pace():
    clock = Clock()
    pace = Pace([100, 100, 100], clock=clock)
    clock.now += 1
    found = pace.after(made(positions=0, tokens=0, num_bytes=10, seconds=0.0), 100)
    assert (found.done, found.seconds_left, found.num_bytes) == (1, None, 0)
    clock.now += 9
    assert pace.after(made(positions=1, tokens=1, num_bytes=1), 100).seconds_left == 10


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "00:00:00"), (59.6, "00:01:00"), (3661.0, "01:01:01"), (200_000.0, "2d 07:33:20")],
)
def test_durations_are_read_at_a_glance(seconds, text):
    assert duration(seconds) == text


def test_a_line_for_a_person():
    clock = Clock()
    pace = Pace([10, 90], clock=clock)
    clock.now += 2
    line = str(pace.after(made(positions=2468, tokens=10_000, num_bytes=1_500_000), 10))
    assert line == (
        "1 of 2 shards, 00:00:18 left; 1,234 positions and 5,000 teacher tokens a second, "
        "1.5 MB written"
    )
