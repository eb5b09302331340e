"""The window of work in flight."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from flows.spread import spread

WINDOW = 3


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as pool:
        yield pool


def test_items_come_back_as_they_finish_and_no_more_than_the_window_is_in_flight(pool):
    gate, given, back = threading.Event(), [], []

    def submit(item):
        given.append(item)
        assert len(given) - len(back) <= WINDOW
        return pool.submit(gate.wait if item == 0 else int, 30)

    for item, _ in spread(range(10), submit, window=WINDOW, should_stop=lambda: False):
        back.append(item)
        if len(back) == 9:
            gate.set()
    assert given == list(range(10))
    assert sorted(back) == given
    assert back[-1] == 0


def test_once_told_to_stop_nothing_is_given_out_and_what_is_in_flight_comes_back(pool):
    given = []

    def submit(item):
        given.append(item)
        return pool.submit(int, item)

    done = list(spread(range(10), submit, window=WINDOW, should_stop=lambda: len(given) == 4))
    assert given == [0, 1, 2, 3]
    assert sorted((item, future.result()) for item, future in done) == [(i, i) for i in given]


def test_no_more_is_taken_from_the_work_than_is_given_out(pool):
    taken = []
    work = (taken.append(i) or i for i in range(1000))
    loop = spread(work, lambda i: pool.submit(int, i), window=WINDOW, should_stop=lambda: False)
    for _ in range(5):
        next(loop)
    assert len(taken) < 5 + WINDOW
