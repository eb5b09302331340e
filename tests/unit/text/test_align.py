"""Chunks against a brute-force oracle that only knows their definition."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.text.align import align_chunks

Span = tuple[int, int]
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # busy machines


def offsets(*widths: int, start: int = 0) -> np.ndarray:
    """Byte spans of consecutive tokens of these widths."""
    edges = np.cumsum([start, *widths])
    return np.stack([edges[:-1], edges[1:]], axis=1)


def smallest_common_spans(teacher: np.ndarray, student: np.ndarray) -> list[Span]:
    """Byte spans that whole tokens cover on both sides and that contain no smaller such span."""

    def covered(side: np.ndarray) -> set[Span]:
        spans = {(int(a), int(b)) for i, (a, _) in enumerate(side) for _, b in side[i:]}
        return {(a, b) for a, b in spans if a < b}

    common = covered(teacher) & covered(student)
    shortest = {a: min(stop for start, stop in common if start == a) for a, _ in common}
    return sorted(
        (a, b)
        for a, b in shortest.items()
        if not any((c, d) != (a, b) and a <= c and d <= b for c, d in shortest.items())
    )


@st.composite
def two_sides(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Two tokenizations of the same bytes, tokens of no width included, edge tokens dropped."""
    size = draw(st.integers(1, 24))
    sides = []
    for _ in range(2):
        inner = draw(st.lists(st.integers(0, size), max_size=size))
        edges = np.array(sorted([0, *inner, size]))
        side = np.stack([edges[:-1], edges[1:]], axis=1)
        first, last = draw(st.integers(0, 2)), draw(st.integers(0, 2))
        sides.append(side[first : len(side) - last])
    return sides[0], sides[1]


def test_a_chunk_ends_where_both_sides_have_an_edge():
    # bytes:    a b | c d | e          teacher: a, bcd, e; student: ab, cd, e
    # "abcd" has no shared edge inside; "e" is a chunk by itself
    chunks = align_chunks(offsets(1, 3, 1), offsets(2, 2, 1))
    assert chunks.tolist() == [[0, 2, 0, 2], [2, 3, 2, 3]]
    assert chunks.dtype == np.int32


def test_equal_tokenizations_give_one_chunk_a_token():
    side = offsets(3, 1, 2)
    assert align_chunks(side, side).tolist() == [[0, 1, 0, 1], [1, 2, 1, 2], [2, 3, 2, 3]]


def test_a_side_without_tokens_gives_no_chunk():
    for teacher, student in (([], offsets(1, 2)), (offsets(1, 2), []), ([], np.zeros((0, 2)))):
        assert align_chunks(teacher, student).shape == (0, 4)


def test_sides_that_share_fewer_than_two_edges_give_no_chunk():
    assert align_chunks(offsets(2, start=0), offsets(2, start=1)).shape == (0, 4)
    assert align_chunks(offsets(2, start=0), offsets(2, start=2)).shape == (0, 4)


def test_what_only_one_side_covers_is_in_no_chunk():
    # the student's first token began in the template and its last one ends there: bytes 2 to 5 stay
    teacher, student = offsets(2, 3, 2), offsets(1, 2, start=2)
    assert align_chunks(teacher, student).tolist() == [[1, 2, 0, 2]]
    # the student's tokens start inside a teacher token: that token is in no chunk
    assert align_chunks(offsets(3, 2), offsets(2, 2, start=1)).tolist() == [[1, 2, 1, 2]]


def test_a_token_of_no_width_belongs_to_the_chunk_before_it():
    teacher = offsets(0, 1, 0, 1, 0)  # at 0 (nothing before it), at 1 and at 2
    assert align_chunks(teacher, offsets(1, 1)).tolist() == [[0, 3, 0, 1], [3, 5, 1, 2]]
    assert align_chunks(offsets(1, 1), teacher).tolist() == [[0, 1, 0, 3], [1, 2, 3, 5]]


@patient
@given(two_sides())
def test_chunks_are_exactly_the_smallest_common_spans(sides):
    teacher, student = sides
    spans = [
        (int(teacher[t0, 0]), int(teacher[t1 - 1, 1]))
        for t0, t1, _, _ in align_chunks(teacher, student).tolist()
    ]
    assert spans == smallest_common_spans(teacher, student)


@patient
@given(two_sides())
def test_both_sides_of_a_chunk_cover_the_same_bytes(sides):
    teacher, student = sides
    for t0, t1, s0, s1 in align_chunks(teacher, student).tolist():
        assert teacher[t0, 0] == student[s0, 0]
        assert teacher[t1 - 1, 1] == student[s1 - 1, 1]


@patient
@given(two_sides())
def test_chunks_follow_one_another_without_gap_or_overlap(sides):
    chunks = align_chunks(*sides)
    assert (chunks[:, ::2] < chunks[:, 1::2]).all()
    assert (chunks[1:, ::2] == chunks[:-1, 1::2]).all()


@patient
@given(two_sides())
def test_swapping_the_sides_swaps_the_columns(sides):
    teacher, student = sides
    swapped = align_chunks(student, teacher)
    assert align_chunks(teacher, student).tolist() == swapped[:, [2, 3, 0, 1]].tolist()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([[0, 1], [2, 3]], "without gaps"),
        ([[0, 2], [1, 3]], "without gaps"),
        ([[1, 0]], "sorted"),
        ([0, 1, 2], r"\[n, 2\]"),
        ([[0, 1, 2]], r"\[n, 2\]"),
        ([[0.0, 1.5]], "integers"),
    ],
    ids=str,
)
def test_offsets_that_are_no_tokenization_are_refused(wrong, message):
    with pytest.raises(ValueError, match=f"teacher offsets.*{message}"):
        align_chunks(wrong, offsets(1, 2))
    with pytest.raises(ValueError, match=f"student offsets.*{message}"):
        align_chunks(offsets(1, 2), wrong)
