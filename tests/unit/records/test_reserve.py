"""Which records are set apart for the calibration."""

import pytest

from pipeline.records.reserve import is_reserved

NUM = 4000
IDS = [f"lib/{number}.py::name" for number in range(NUM)]


def reserved(count, *, seed=0, num_records=NUM, ids=IDS):
    return {one for one in ids if is_reserved(one, seed=seed, count=count, num_records=num_records)}


@pytest.mark.parametrize("count", [40, 256, 2000])
def test_the_share_is_what_is_asked_for_on_average(count):
    # a binomial: five standard deviations, which no fixed choice of ids has by chance
    deviation = (count * (1 - count / len(IDS))) ** 0.5
    assert abs(len(reserved(count)) - count) < 5 * deviation


def test_none_and_all_are_exact():
    assert reserved(0) == set()
    assert reserved(len(IDS)) == set(IDS)


def test_more_reserved_records_are_the_same_and_others():
    before: set[str] = set()
    for count in (10, 100, 500, 3000):
        found = reserved(count)
        assert before < found
        before = found


def test_a_records_fate_is_its_ids_and_the_seeds_alone():
    assert reserved(400, ids=IDS[::-1]) == reserved(400)
    some = IDS[100:200]
    assert reserved(400, ids=some) == reserved(400) & set(some)
    # half as many of half as many records is the same share
    assert reserved(200, num_records=len(IDS) // 2) == reserved(400)


def test_another_seed_reserves_others():
    one, other = reserved(400, seed=0), reserved(400, seed=1)
    assert one != other
    assert len(one & other) < 100  # 40 by chance


def test_reserving_does_not_look_at_the_noise():
    """The draws are a stream of their own: a reserved record's time and mask are as any other's."""
    from pipeline.diffusion.rng import uniforms_for

    for one in IDS[:20]:
        draws = {
            stream: uniforms_for(0, one, 0, stream, 1)[0] for stream in ("reserve", "time", "mask")
        }
        assert len(set(draws.values())) == 3
