"""The link between a launcher and its training processes: what it carries, and whom it ends."""

import math
import subprocess
import sys
import threading

import psutil
import pytest

from pipeline.launch.door import Door
from pipeline.launch.link import Link
from pipeline.launch.messages import Failed, Finished, Hello, Logged, first_cause, lost
from storage_schemas import errors
from storage_schemas.errors import CacheCorruptError, LostProcessError, TidecacheError

SECONDS = 20.0
# Waits for ever, as a process does that hangs in a collective.
WAITING_PROCESS = """
import sys, threading
from pipeline.launch.link import Link
link = Link(sys.argv[1], rank=int(sys.argv[2]), stop=threading.Event())
threading.Event().wait()
"""
LAUNCHER = f"""
import subprocess, sys
from pipeline.launch.door import Door
door = Door()
child = subprocess.Popen([sys.executable, "-c", {WAITING_PROCESS!r}, door.address, "0"])
while not [*door.messages(seconds=1.0)]:
    assert child.poll() is None
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def door():
    made = Door()
    yield made
    made.close()


@pytest.fixture
def connect(door):
    """`connect(rank, stop)`: a link of this process, which is not to end with it."""
    links = []

    def make(rank, stop=None):
        links.append(Link(door.address, rank=rank, stop=stop or threading.Event()))
        return links[-1]

    yield make
    for link in links:
        link.close()


@pytest.fixture
def start(door):
    """`start(rank)`: a connected process that waits for ever."""
    started = []

    def make(rank):
        command = [sys.executable, "-c", WAITING_PROCESS, door.address, str(rank)]
        started.append(subprocess.Popen(command))
        return started[-1]

    yield make
    for process in started:
        process.kill()
        process.wait()


def messages_of(door, count):
    """The next ones; a door that stays silent fails the test by its time limit."""
    found = []
    for _ in range(20):
        found += door.messages(seconds=1.0)
        if len(found) >= count:
            return found
    raise AssertionError(f"expected {count} messages, got {found}")


def test_messages_arrive_as_they_were_sent_and_nan_too(door, connect):
    link = connect(1)
    logged = Logged(rank=1, metrics={"loss": math.nan, "step": 3.0})
    finished = Finished(rank=1, summary={"output": "x", "steps": 4, "metrics": {"a": 0.1}})
    link.send(logged)
    link.send(finished)
    hello, first, second = messages_of(door, 3)
    assert isinstance(hello, Hello)
    assert hello.rank == 1
    assert math.isnan(first.metrics["loss"])
    assert first.metrics["step"] == 3.0
    assert second == finished


def test_a_wish_to_stop_reaches_who_is_there_and_who_comes_later(door, connect):
    early, late = threading.Event(), threading.Event()
    connect(0, early)
    messages_of(door, 1)
    assert not early.is_set()
    door.ask_to_stop()
    assert early.wait(SECONDS)
    connect(1, late)
    messages_of(door, 1)
    assert late.wait(SECONDS)


def test_a_process_that_leaves_without_a_word_is_lost_and_one_that_told_its_end_is_not(
    door, connect, start
):
    orderly = connect(0)
    process = start(5)
    messages_of(door, 2)
    orderly.send(Failed(rank=0, error="ValueError", message="no", trace="..."))
    orderly.close()
    process.kill()
    process.wait()
    said = messages_of(door, 2)
    while door.num_open:
        assert not [*door.messages(seconds=SECONDS)]
    assert sorted((failed.rank, failed.error) for failed in said) == [
        (0, "ValueError"),
        (5, "LostProcessError"),
    ]


def test_killing_the_connected_ends_a_process_that_hears_nothing(door, start):
    process = start(0)
    messages_of(door, 1)
    door.kill()
    assert process.wait(SECONDS) == -9


def test_a_training_process_ends_when_its_launcher_is_killed():
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child = psutil.Process(int(launcher.stdout.readline()))
    assert child.is_running()
    launcher.kill()
    launcher.communicate()
    assert psutil.wait_procs([child], timeout=SECONDS)[1] == []


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, TidecacheError) and name != "RecordError"
    ],
)
def test_our_own_errors_come_out_as_themselves(name):
    error = Failed(rank=2, error=name, message="shard 3 is short", trace="").as_error()
    assert type(error) is getattr(errors, name)
    assert str(error) == "shard 3 is short"


@pytest.mark.parametrize("name", ["KeyError", "RecordError"])
def test_other_errors_come_out_with_rank_and_trace(name):
    error = Failed(rank=2, error=name, message="'x'", trace="line 7").as_error()
    assert type(error) is LostProcessError
    assert str(error) == f"expected training process 2 to finish, got {name}: 'x'\nline 7"


def test_what_a_user_can_mend_is_raised_before_what_it_led_to():
    led_to = Failed(rank=0, error="RuntimeError", message="Connection reset by peer", trace="")
    cause = Failed(rank=1, error="CacheCorruptError", message="shard 3 is short", trace="")
    assert isinstance(first_cause([led_to, cause]), CacheCorruptError)
    assert "by peer" in str(first_cause([led_to]))


def test_a_crash_that_came_before_or_after_another_failure_is_its_cause_or_effect():
    noticed = Failed(rank=0, error="RuntimeError", message="Connection reset by peer", trace="")
    assert "end of process 1 without a word" in str(first_cause([noticed, lost(1)]))
    failed = Failed(rank=0, error="OutOfMemoryError", message="no memory on cuda:0", trace="")
    assert "no memory" in str(first_cause([noticed, failed, lost(1)]))
