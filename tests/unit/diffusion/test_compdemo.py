"""CompDemo: two passes that answer the masked chunks between them, each shown the other's.

Axes: T teacher position, C aligned chunk.
"""

import numpy as np
import pytest
from diffusion_pairs import MASK_ID, pair_of_chunks, pairs
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.diffusion.compdemo import split_mask, teacher_passes
from pipeline.diffusion.corrupt import corrupt
from storage_schemas.examples import Pair
from storage_schemas.views import TeacherPass

EPS = 1e-3
Z_BOUND = 4.0  # standard deviations of a binomial; the draws are fixed by their keys

ratios = st.sampled_from([0.1, 0.5, 0.9])


def _passes(pair: Pair, *, demo_ratio: float | None, view: int = 0) -> tuple[TeacherPass, ...]:
    corruption = corrupt(pair, seed=0, view=view, eps=EPS)
    return teacher_passes(pair, corruption, mask_id=MASK_ID, seed=0, demo_ratio=demo_ratio)


def test_the_second_pass_answers_what_the_first_one_shows(monkeypatch: pytest.MonkeyPatch):
    # method, section 2: pass 1 masks B (A is shown), pass 2 masks A; here chunk 0 is A, 1 and 2 B
    pair = pair_of_chunks("r", num_chunks=4, tokens_per_chunk=1)
    monkeypatch.setattr("pipeline.diffusion.corrupt.diffusion_time", lambda *_, **__: 0.5)
    drawn = {"mask": np.array([0.1, 0.1, 0.1, 0.9]), "compdemo": np.array([0.1, 0.9, 0.9, 0.1])}
    for module in ("corrupt", "compdemo"):
        monkeypatch.setattr(f"pipeline.diffusion.{module}.uniforms_for", lambda *key: drawn[key[3]])
    first, second = _passes(pair, demo_ratio=0.5)
    assert first.noised_ids_T.tolist() == [0, MASK_ID, MASK_ID, 3]
    assert second.noised_ids_T.tolist() == [MASK_ID, 1, 2, 3]


@settings(max_examples=200, deadline=None)
@given(pairs(), st.integers(0, 5), ratios)
def test_the_answers_of_the_passes_partition_what_is_masked(pair: Pair, view: int, ratio: float):
    corruption = corrupt(pair, seed=0, view=view, eps=EPS)
    first, second = _passes(pair, demo_ratio=ratio, view=view)
    for halves, whole in (
        ((first.is_answered_C, second.is_answered_C), corruption.is_masked_C),
        ((first.is_answered_T, second.is_answered_T), corruption.is_masked_T),
    ):
        assert not (halves[0] & halves[1]).any()
        np.testing.assert_array_equal(halves[0] | halves[1], whole)


@settings(max_examples=200, deadline=None)
@given(pairs(), st.integers(0, 5), st.one_of(st.none(), ratios))
def test_a_pass_holds_the_mask_id_exactly_where_it_answers(
    pair: Pair, view: int, ratio: float | None
):
    for each in _passes(pair, demo_ratio=ratio, view=view):
        np.testing.assert_array_equal(each.noised_ids_T == MASK_ID, each.is_answered_T)
        shown_T = ~each.is_answered_T
        np.testing.assert_array_equal(each.noised_ids_T[shown_T], pair.teacher_ids_T[shown_T])
        np.testing.assert_array_equal(each.clean_ids_T, pair.teacher_ids_T)
        assert each.noised_ids_T.dtype == np.int32
        for (t0, t1, _, _), is_answered in zip(
            pair.chunks_C4.tolist(), each.is_answered_C.tolist(), strict=True
        ):
            assert each.is_answered_T[t0:t1].tolist() == [is_answered] * (t1 - t0)


@settings(max_examples=100, deadline=None)
@given(pairs(), st.integers(0, 5), ratios)
def test_each_pass_shows_the_other_half_of_what_one_pass_alone_would_mask(
    pair: Pair, view: int, ratio: float
):
    (alone,) = _passes(pair, demo_ratio=None, view=view)
    first, second = _passes(pair, demo_ratio=ratio, view=view)
    for ours, theirs in ((first, second), (second, first)):
        is_shown_T = alone.is_answered_T & ~ours.is_answered_T
        np.testing.assert_array_equal(is_shown_T, theirs.is_answered_T)


@settings(max_examples=100, deadline=None)
@given(pairs(), st.integers(0, 5))
def test_without_compdemo_one_pass_answers_everything(pair: Pair, view: int):
    corruption = corrupt(pair, seed=0, view=view, eps=EPS)
    (alone,) = _passes(pair, demo_ratio=None, view=view)
    np.testing.assert_array_equal(alone.is_answered_C, corruption.is_masked_C)
    np.testing.assert_array_equal(alone.is_answered_T, corruption.is_masked_T)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
def test_the_share_shown_first_follows_the_ratio(ratio: float):
    num_records, num_chunks = 500, 40
    is_masked_C = np.ones(num_chunks, dtype=bool)
    num_first = sum(
        int(split_mask(is_masked_C, ratio=ratio, seed=0, record_id=f"r{i}", view=0)[0].sum())
        for i in range(num_records)
    )
    num_draws = num_records * num_chunks
    deviation = np.sqrt(num_draws * ratio * (1 - ratio))
    assert abs(num_first - num_draws * ratio) < Z_BOUND * deviation


def test_the_split_is_independent_of_the_mask():
    # of the masked chunks alone, the first half has the ratio too, at every time
    first, masked = 0, 0
    for i in range(1000):
        pair = pair_of_chunks(f"r{i}", num_chunks=20, tokens_per_chunk=2)
        _, second = _passes(pair, demo_ratio=0.3)
        first += int(second.is_answered_C.sum())
        masked += int(corrupt(pair, seed=0, view=0, eps=EPS).is_masked_C.sum())
    assert abs(first - 0.3 * masked) < Z_BOUND * np.sqrt(masked * 0.3 * 0.7)


@pytest.mark.parametrize(("ratio", "is_all_first"), [(0.0, False), (1.0, True)])
def test_an_extreme_ratio_leaves_one_pass_without_an_answer(ratio: float, is_all_first: bool):
    is_masked_C = np.array([True, False, True])
    first, second = split_mask(is_masked_C, ratio=ratio, seed=0, record_id="r", view=0)
    full, empty = (first, second) if is_all_first else (second, first)
    assert full.tolist() == is_masked_C.tolist()
    assert not empty.any()


def test_a_pair_without_chunks_has_passes_without_answers():
    pair = pair_of_chunks("r", num_chunks=0, tokens_per_chunk=1, num_prompt=3)
    for each in _passes(pair, demo_ratio=0.5):
        assert not each.is_answered_T.any()
        assert each.noised_ids_T.tolist() == [0, 1, 2]
