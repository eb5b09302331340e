"""The noise of one view: what its key decides, its share, and chunks masked whole on both sides.

Axes: S student position, T teacher position, C aligned chunk.
"""

import random
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from multiprocessing import get_context

import numpy as np
import pytest
from diffusion_pairs import MASK_ID, pair_of_chunks, pairs
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.diffusion.compdemo import teacher_passes
from pipeline.diffusion.corrupt import corrupt, draw_mask, has_any, is_covered
from storage_schemas.examples import Bools, Pair
from storage_schemas.views import Corruption

EPS = 1e-3
Z_BOUND = 4.0  # standard deviations; the draws are fixed by their keys, so no test is flaky


def _noise(pair: Pair, view: int = 0, *, seed: int = 0) -> Corruption:
    return corrupt(pair, seed=seed, view=view, eps=EPS)


def _key(corruption: Corruption) -> tuple[object, ...]:
    return (
        corruption.view,
        corruption.time,
        corruption.is_masked_S.tolist(),
        corruption.is_masked_T.tolist(),
        corruption.is_masked_C.tolist(),
    )


def _some_pairs(count: int = 24) -> list[Pair]:
    return [
        pair_of_chunks(f"r{i}", num_chunks=8, tokens_per_chunk=1 + i % 3, num_prompt=2)
        for i in range(count)
    ]


def _loop_is_covered(spans: list[list[int]], is_chosen: list[bool], length: int) -> list[bool]:
    return [
        any(
            chosen and start <= i < stop
            for (start, stop), chosen in zip(spans, is_chosen, strict=True)
        )
        for i in range(length)
    ]


# Same key, same mask


def test_order_and_batch_size_do_not_change_a_mask():
    examples = _some_pairs()
    expected = {pair.record_id: _key(_noise(pair)) for pair in examples}
    for size in (1, 5, 24):
        random.Random(size).shuffle(examples)
        for start in range(0, len(examples), size):
            batch = examples[start : start + size]
            assert {p.record_id: _key(_noise(p)) for p in batch} == {
                p.record_id: expected[p.record_id] for p in batch
            }


def test_a_retry_draws_the_same_mask():
    (pair,) = _some_pairs(1)
    assert _key(_noise(pair, 3)) == _key(_noise(pair, 3))


def test_two_worker_processes_draw_the_masks_of_one():
    examples = _some_pairs()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        noise = partial(corrupt, seed=0, view=1, eps=EPS)
        drawn = list(pool.map(noise, examples, chunksize=3))
    assert [_key(each) for each in drawn] == [_key(_noise(pair, 1)) for pair in examples]


def test_further_views_do_not_change_a_mask():
    for pair in _some_pairs(4):
        alone = _key(_noise(pair, 2))
        for num_views in (3, 8):
            assert _key([_noise(pair, view) for view in range(num_views)][2]) == alone


def test_the_draws_of_the_teachers_passes_do_not_change_a_mask():
    for pair in _some_pairs(4):
        before = _key(_noise(pair))
        for ratio in (None, 0.1, 0.5):
            teacher_passes(pair, _noise(pair), mask_id=MASK_ID, seed=0, demo_ratio=ratio)
            assert _key(_noise(pair)) == before


@pytest.mark.parametrize(("name", "view", "seed"), [("other", 0, 0), ("r", 1, 0), ("r", 0, 1)])
def test_another_record_view_or_seed_has_another_mask(name: str, view: int, seed: int):
    time, is_target_S = 0.5, np.ones(64, dtype=bool)
    ours = draw_mask(is_target_S, time, seed=0, record_id="r", view=0)
    theirs = draw_mask(is_target_S, time, seed=seed, record_id=name, view=view)
    # 64 fair coins agree in half of their throws, with a standard deviation of 4
    assert abs((ours == theirs).sum() - 32) < Z_BOUND * 4


def test_a_longer_response_keeps_the_mask_of_its_beginning():
    short = draw_mask(np.ones(16, dtype=bool), 0.5, seed=0, record_id="r", view=0)
    long = draw_mask(np.ones(48, dtype=bool), 0.5, seed=0, record_id="r", view=0)
    np.testing.assert_array_equal(long[:16], short)


# Shares


@pytest.mark.parametrize("time", [EPS, 0.1, 0.5, 0.9, 0.999])
def test_before_completion_the_masked_share_follows_the_time(time: float):
    num_records, num_tokens = 1000, 100
    is_target_S = np.ones(num_tokens, dtype=bool)
    num_masked = sum(
        int(draw_mask(is_target_S, time, seed=1, record_id=f"r{i}", view=0).sum())
        for i in range(num_records)
    )
    num_draws = num_records * num_tokens
    deviation = np.sqrt(num_draws * time * (1 - time))  # binomial
    assert abs(num_masked - num_draws * time) < Z_BOUND * deviation


def test_a_larger_time_masks_a_superset():
    is_target_S = np.ones(100, dtype=bool)
    masks = [
        draw_mask(is_target_S, time, seed=0, record_id="r", view=0) for time in (0.2, 0.5, 0.8)
    ]
    for smaller, larger in pairwise(masks):
        assert not (smaller & ~larger).any()


@pytest.mark.parametrize("tokens_per_chunk", [1, 2, 3, 5])
def test_after_completion_a_token_is_masked_unless_its_whole_chunk_was_spared(
    tokens_per_chunk: int,
):
    # P = 1 - (1 - t)^n, independently over chunks; each record has a time of its own
    num_records, num_chunks = 1500, 20
    surplus, variance = 0.0, 0.0
    for i in range(num_records):
        pair = pair_of_chunks(
            f"r{i}", num_chunks=num_chunks, tokens_per_chunk=tokens_per_chunk, num_prompt=1
        )
        noise = _noise(pair, seed=2)
        share = 1 - (1 - noise.time) ** tokens_per_chunk
        assert noise.is_masked_S.sum() == noise.is_masked_C.sum() * tokens_per_chunk
        surplus += float(noise.is_masked_C.sum()) - num_chunks * share
        variance += num_chunks * share * (1 - share)
    assert abs(surplus) < Z_BOUND * np.sqrt(variance)


# Chunks and prompts


def test_a_partly_drawn_chunk_is_completed_as_worked_by_hand(monkeypatch: pytest.MonkeyPatch):
    # student p a b b c, chunks b b | a and c unaligned; only the second b is drawn
    pair = Pair(
        record_id="r",
        student_ids_S=np.arange(5, dtype=np.int32),
        is_target_S=np.array([False, True, True, True, True]),
        teacher_ids_T=np.arange(6, dtype=np.int32),
        chunks_C4=np.array([[1, 4, 2, 4]], dtype=np.int32),
    )
    drawn_S = np.array([0.0, 0.9, 0.9, 0.1, 0.9])
    monkeypatch.setattr("pipeline.diffusion.corrupt.diffusion_time", lambda *_, **__: 0.5)
    monkeypatch.setattr("pipeline.diffusion.corrupt.uniforms_for", lambda *_: drawn_S)
    noise = _noise(pair)
    assert noise.is_masked_S.tolist() == [False, False, True, True, False]
    assert noise.is_masked_T.tolist() == [False, True, True, True, False, False]
    assert noise.is_masked_C.tolist() == [True]


@settings(max_examples=200, deadline=None)
@given(pairs(), st.integers(0, 5), st.integers(0, 5))
def test_a_chunk_is_masked_whole_on_both_sides_or_not_at_all(pair: Pair, seed: int, view: int):
    noise = _noise(pair, view, seed=seed)
    for (t0, t1, s0, s1), is_masked in zip(
        pair.chunks_C4.tolist(), noise.is_masked_C.tolist(), strict=True
    ):
        assert noise.is_masked_S[s0:s1].tolist() == [is_masked] * (s1 - s0)
        assert noise.is_masked_T[t0:t1].tolist() == [is_masked] * (t1 - t0)


@settings(max_examples=200, deadline=None)
@given(pairs(), st.integers(0, 5), st.integers(0, 5))
def test_the_mask_is_the_draw_and_the_chunks_it_touches(pair: Pair, seed: int, view: int):
    noise = _noise(pair, view, seed=seed)
    drawn_S = draw_mask(
        pair.is_target_S, noise.time, seed=seed, record_id=pair.record_id, view=view
    )
    expected_S = drawn_S.tolist()
    for _, _, s0, s1 in pair.chunks_C4.tolist():
        if any(drawn_S[s0:s1].tolist()):
            expected_S[s0:s1] = [True] * (s1 - s0)
    assert noise.is_masked_S.tolist() == expected_S


@settings(max_examples=200, deadline=None)
@given(pairs(), st.integers(0, 5))
def test_neither_a_prompt_token_nor_an_unaligned_teacher_token_is_ever_masked(
    pair: Pair, view: int
):
    noise = _noise(pair, view)
    assert not (noise.is_masked_S & ~pair.is_target_S).any()
    spans = pair.chunks_C4[:, :2].tolist()
    is_aligned_T = _loop_is_covered(spans, [True] * len(spans), len(pair.teacher_ids_T))
    assert not (noise.is_masked_T & ~np.array(is_aligned_T, dtype=bool)).any()


# Spans


@st.composite
def _spans(draw: st.DrawFn) -> tuple[list[list[int]], list[bool], list[bool]]:
    """Disjoint spans in order, which of them are chosen, and flags for the positions."""
    length = draw(st.integers(0, 20))
    edges = sorted(draw(st.sets(st.integers(0, length), max_size=length + 1)))
    spans = [[a, b] for a, b in pairwise(edges) if draw(st.booleans())]
    flags = st.booleans()
    return (
        spans,
        draw(st.lists(flags, min_size=len(spans), max_size=len(spans))),
        draw(st.lists(flags, min_size=length, max_size=length)),
    )


def _as_arrays(
    spans: list[list[int]], is_chosen: list[bool], is_set: list[bool]
) -> tuple[np.ndarray, Bools, Bools]:
    spans_C2 = np.array(spans, dtype=np.int32).reshape(-1, 2)
    return spans_C2, np.array(is_chosen, dtype=bool), np.array(is_set, dtype=bool)


@settings(max_examples=200, deadline=None)
@given(_spans())
def test_a_position_is_covered_iff_a_chosen_span_holds_it(
    case: tuple[list[list[int]], list[bool], list[bool]],
):
    spans, is_chosen, is_set = case
    spans_C2, is_chosen_C, _ = _as_arrays(*case)
    covered = is_covered(spans_C2, is_chosen_C, len(is_set))
    assert covered.dtype == np.bool_
    assert covered.tolist() == _loop_is_covered(spans, is_chosen, len(is_set))


@settings(max_examples=200, deadline=None)
@given(_spans())
def test_a_span_has_any_iff_one_of_its_positions_is_set(
    case: tuple[list[list[int]], list[bool], list[bool]],
):
    spans, _, is_set = case
    spans_C2, _, is_set_S = _as_arrays(*case)
    found = has_any(spans_C2, is_set_S)
    assert found.dtype == np.bool_
    assert found.tolist() == [any(is_set[start:stop]) for start, stop in spans]
