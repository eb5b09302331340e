"""The order in which views are read."""

from collections import Counter
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.stream.order import Reader, ViewOrder

counts = st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(sum)
seeds, batch_sizes, lanes = st.integers(0, 5), st.integers(1, 7), st.integers(1, 6)


def _order(views_per_shard, seed=0, batch_size=1, num_lanes=4):
    return ViewOrder(views_per_shard, seed=seed, batch_size=batch_size, num_lanes=num_lanes)


def _reader(rank, world_size, worker, num_workers):
    return Reader(rank=rank, world_size=world_size, worker=worker, num_workers=num_workers)


def _views(order, first, stop):
    """(epoch, shard, place in the shard's own order) of every view of some micro-batches."""
    return [
        (take.epoch, take.shard, place)
        for number in range(first, stop)
        for take in order.micro_batch(number)
        for place in range(take.start, take.stop)
    ]


@given(counts, seeds, batch_sizes, lanes)
def test_each_epoch_visits_each_view_once(views_per_shard, seed, batch_size, num_lanes):
    total = sum(views_per_shard)
    order = _order(views_per_shard, seed, batch_size, num_lanes)
    drawn = _views(order, 0, -(-3 * total // batch_size))
    every = [(shard, row) for shard, views in enumerate(views_per_shard) for row in range(views)]
    for epoch in range(3):
        here = drawn[epoch * total : (epoch + 1) * total]
        assert {found for found, _, _ in here} == {epoch}
        assert sorted((shard, row) for _, shard, row in here) == every


@given(counts, seeds, batch_sizes, lanes, st.integers(0, 60))
def test_a_micro_batch_needs_nothing_of_those_before_it(
    views_per_shard, seed, batch_size, num_lanes, number
):
    used = _order(views_per_shard, seed, batch_size, num_lanes)
    for before in range(number):
        used.micro_batch(before)
    fresh = _order(views_per_shard, seed, batch_size, num_lanes)
    assert fresh.micro_batch(number) == used.micro_batch(number)
    assert sum(take.stop - take.start for take in fresh.micro_batch(number)) == batch_size


@given(counts, seeds, batch_sizes, lanes)
def test_cuts_are_where_takes_begin_and_end(views_per_shard, seed, batch_size, num_lanes):
    order = _order(views_per_shard, seed, batch_size, num_lanes)
    takes: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for number in range(-(-3 * sum(views_per_shard) // batch_size)):
        for take in order.micro_batch(number):
            takes.setdefault((take.epoch, take.shard), []).append((take.start, take.stop))
    for epoch in range(3):
        for shard, views in enumerate(views_per_shard):
            if views:
                assert list(pairwise(order.cuts(epoch, shard))) == sorted(takes[epoch, shard])


@given(counts, seeds, batch_sizes, lanes)
def test_lanes_share_no_shard_but_at_their_cuts(views_per_shard, seed, batch_size, num_lanes):
    order = _order(views_per_shard, seed, batch_size, num_lanes)
    lanes_of: dict[tuple[int, int], set[int]] = {}
    for number in range(-(-3 * sum(views_per_shard) // batch_size)):
        for take in order.micro_batch(number):
            found = lanes_of.setdefault((take.epoch, take.shard), set())
            found.add(number % order.num_lanes)
    for epoch in range(3):
        shared = [len(found) - 1 for (e, _), found in lanes_of.items() if e == epoch]
        assert sum(shared) <= order.num_lanes - 1


def test_equal_shards_that_divide_evenly_belong_to_one_lane_each():
    order = _order([16] * 12, batch_size=4, num_lanes=4)
    lanes_of = {(take.shard, n % 4) for n in range(48) for take in order.micro_batch(n)}
    assert Counter(shard for shard, _ in lanes_of) == dict.fromkeys(range(12), 1)
    assert Counter(lane for _, lane in lanes_of) == dict.fromkeys(range(4), 3)


@given(counts, seeds, batch_sizes, lanes, st.integers(1, 3), st.integers(0, 40), st.data())
def test_a_reader_opens_a_shard_once_an_epoch_and_closes_it_when_it_is_used_up(
    views_per_shard, seed, batch_size, num_lanes, num_readers, skip, data
):
    order = _order(views_per_shard, seed, batch_size, num_lanes)
    reader = Reader(rank=data.draw(st.integers(0, num_readers - 1)), world_size=num_readers)
    steps = list(islice(reader.steps(order, skip), 4 * sum(views_per_shard) // batch_size + 1))
    opened: Counter[tuple[int, int]] = Counter()
    closed: set[tuple[int, int]] = set()
    for step, number in zip(steps, reader.numbers(skip), strict=False):
        opened.update(step.opens)
        assert step.takes == order.micro_batch(number)
        for take in step.takes:
            assert opened[take.key] == 1
            assert take.key not in closed
        closed.update(step.closes)
    if num_readers == 1 or order.num_lanes % num_readers == 0:
        last_use = {take.key: i for i, step in enumerate(steps) for take in step.takes}
        for i, step in enumerate(steps):
            assert all(last_use[key] == i for key in step.closes)


def test_a_reader_of_large_shards_holds_no_more_than_its_lanes():
    order = _order([50, 61, 47, 58, 64, 70, 45, 52, 49, 66], batch_size=4, num_lanes=4)
    for reader, most in ((Reader(rank=0, world_size=1), 4), (Reader(rank=1, world_size=2), 2)):
        held = 0
        for step in islice(reader.steps(order, 0), 500):
            held += len(step.opens) - len(step.closes)
            assert held <= most


@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 30)
)
def test_processes_and_workers_read_each_micro_batch_once_also_when_their_numbers_change(
    world_size, num_workers, later_world_size, later_num_workers, skip
):
    def read(first, stop, world_size, num_workers):
        """In the order in which the processes take their workers' micro-batches in turn."""
        numbers = {
            (rank, worker): _reader(rank, world_size, worker, num_workers).numbers(first)
            for rank in range(world_size)
            for worker in range(num_workers)
        }
        turn = dict.fromkeys(range(world_size), 0)
        for number in range(first, stop):
            rank = number % world_size
            assert next(numbers[rank, turn[rank] % num_workers]) == number
            turn[rank] += 1
            yield number

    before = read(0, skip, world_size, num_workers)
    after = read(skip, skip + 40, later_world_size, later_num_workers)
    assert [*before, *after] == list(range(skip + 40))


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)])
def test_workers_have_lanes_of_their_own_where_their_number_divides_that_of_the_lanes(
    world_size, num_workers
):
    order = _order([10] * 8, batch_size=3, num_lanes=4)
    lanes_of = [
        {
            number % order.num_lanes
            for number in islice(_reader(rank, world_size, worker, num_workers).numbers(7), 20)
        }
        for rank in range(world_size)
        for worker in range(num_workers)
    ]
    assert sorted(lane for found in lanes_of for lane in found) == [0, 1, 2, 3]


def test_the_seed_alone_decides_the_order():
    first, again, other = (_views(_order([5, 3, 9], seed), 0, 17) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_epochs_differ():
    shards = [shard for _, shard, _ in _views(_order([1] * 20), 0, 40)]
    assert shards[:20] != shards[20:]
    assert sorted(shards[:20]) == sorted(shards[20:])


def test_lanes_take_turns():
    shards = [shard for _, shard, _ in _views(_order([50, 50], num_lanes=2), 0, 40)]
    assert shards == [shards[0], 1 - shards[0]] * 20


def test_a_cache_without_views_is_a_mistake_of_the_caller():
    with pytest.raises(AssertionError, match="a view to read"):
        _order([0, 0])
