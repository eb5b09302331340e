"""What models say at cached positions: students by a plain pass, teachers by the cache itself."""

import numpy as np
import polars as pl
import pytest
import torch

from pipeline.cache.inspect import scan_chunks, scan_top_k
from pipeline.report.answers import student_answers, teacher_answers
from pipeline.report.calibration import chunk_agreement, token_agreement
from pipeline.report.views import positions_of, read_views
from pipeline.student.forward import masked_hidden

TOLERANCE = 2e-5  # of log-likelihoods in float32, batched otherwise
STORED = 2e-3  # logits are kept as float16


@pytest.fixture(scope="module", params=["tokens", "chunks"])
def views(request, runs):
    return read_views(
        runs.token_cache if request.param == "tokens" else runs.chunk_cache, max_views=12
    )


def test_a_students_answers_are_those_of_a_plain_pass_over_one_view(tiny, views):
    model, mask_id = tiny.model("student"), tiny.tokenizers["student"].mask_id
    answers = student_answers(model, views, mask_id=mask_id)
    first_P = first_C = 0
    for view in views.views:
        pair, is_masked_S = view.pair, torch.tensor(view.corruption.is_masked_S)
        ids_S = torch.tensor(pair.student_ids_S).long()
        with torch.no_grad():
            hidden_NH = masked_hidden(
                model, ids_S[None], is_masked_S[None], mask_id=mask_id, block_size=views.block_size
            )
            logp_SV = torch.zeros(len(ids_S), model.config.vocab_size)
            logp_SV[is_masked_S] = model.lm_head(hidden_NH).log_softmax(-1)
        at = positions_of(view)
        rows = slice(first_P, first_P + len(at))
        np.testing.assert_allclose(
            answers.logp_P[rows], logp_SV[at, ids_S[at]].numpy(), atol=TOLERANCE
        )
        np.testing.assert_allclose(
            answers.confidence_P[rows], logp_SV[at].exp().amax(1).numpy(), atol=TOLERANCE
        )
        np.testing.assert_array_equal(
            answers.is_correct_P[rows], (logp_SV[at].argmax(1) == ids_S[at]).numpy()
        )
        for number, (s0, s1) in enumerate(pair.chunks_C4[view.targets.chunk_C, 2:].tolist()):
            whole = float(sum(logp_SV[s, ids_S[s]] for s in range(s0, s1)))
            assert answers.logp_C[first_C + number] == pytest.approx(whole, abs=TOLERANCE)
        first_P, first_C = rows.stop, first_C + len(view.targets.chunk_C)
    assert first_P == len(answers.logp_P) == len(views.view_P)
    assert first_C == len(answers.logp_C) == len(views.logp_C)


def test_the_teachers_answers_are_what_inspecting_the_cache_shows(runs):
    views = read_views(runs.token_cache, max_views=12)
    answers = teacher_answers(views, torch.device("cpu"))
    top = scan_top_k(runs.token_cache).filter(pl.col("rank") < 5).collect()
    logp = scan_chunks(runs.token_cache).collect()
    row = 0
    for view in views.views:
        of_view = (pl.col("record_id") == view.pair.record_id) & (
            pl.col("view") == view.corruption.view
        )
        kept = top.filter(of_view).sort("teacher_position", "rank")
        num = len(view.targets.chunk_C)
        shares = kept["probability"].to_numpy().reshape(num, 5)
        np.testing.assert_allclose(answers.likely_p_PK[row : row + num], shares, atol=STORED)
        is_first = kept.filter(pl.col("rank") == 0)
        np.testing.assert_array_equal(
            answers.is_correct_P[row : row + num], is_first["is_gold"].to_numpy()
        )
        row += num
    assert row == len(answers.logp_P)
    assert set(answers.logp_P.tolist()) <= set(logp["logp"].to_list())  # exact, as it is stored


def test_the_teacher_agrees_with_itself_everywhere(runs):
    views = read_views(runs.token_cache, max_views=12)
    teacher = teacher_answers(views, torch.device("cpu"))
    agreement = token_agreement("s0", [teacher, teacher], teacher, views)
    assert agreement.share.mean == 1.0
    assert agreement.correlation.mean == pytest.approx(1.0)
    assert sum(one.num for one in agreement.bins) == len(views.view_P)


def test_sides_of_one_half_by_hand(tiny, runs):
    views = read_views(runs.chunk_cache, max_views=12)
    mask_id = tiny.tokenizers["student"].mask_id
    answers = student_answers(tiny.model("student"), views, mask_id=mask_id)
    temperature = 12.0  # 0.5^12: both sides are there
    agreement = chunk_agreement("s0", [answers], views, temperature=temperature)
    half = 0.5**temperature
    same = (np.exp(answers.logp_C) > half) == (np.exp(views.logp_C) > half)
    assert 0 < same.mean() < 1
    assert agreement.share.mean == pytest.approx(same.mean())


def test_views_are_spread_over_the_noise_and_depend_on_the_cache_alone(runs):
    views, again = (read_views(runs.token_cache, max_views=6) for _ in range(2))
    whole = read_views(runs.token_cache, max_views=10_000)
    times = [view.corruption.time for view in views.views]
    assert times == [view.corruption.time for view in again.views] == sorted(times)
    assert len(times) == 6
    all_times = [view.corruption.time for view in whole.views]
    assert (times[0], times[-1]) == (min(all_times), max(all_times))
